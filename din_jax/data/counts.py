"""n_j of Eq. 4: in how many training samples an id occurs, exactly.

A sample counts once for an id, however many of its lookups hold it. Histories are windows of the
stored events, and they need not be built: a window that holds id j is counted at the last
occurrence of j in it, and the windows whose last one is at event p are those that end in
[p + 1, min(p + L, next occurrence of j, end of the user's events)], a difference of two entries of
a prefix sum. L is `max_history`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from din_jax.data.packing import Packer, ranges
from din_jax.data.schema import BehaviorField, Field
from din_jax.data.store import Store

_VERSION = 1  # of the way of counting: a cache of another version is not used
_SAMPLES_AT_ONCE = 1 << 16  # of a table whose samples have to be looked at one by one


def sample_counts(
    store: Store,
    split: str,
    *,
    max_history: int = 0,
    extra_fields: Iterable[str] = (),
    frequent: Mapping[str, np.ndarray] | None = None,
    unknown: bool = False,
) -> dict[str, np.ndarray]:
    """n_j of every table that a model reads: {table: int64[K]}.

    Args:
      store, split: the samples trained on.
      max_history: use the most recent behaviours of a history; 0: all of them.
      extra_fields: optional fields taken as inputs.
      frequent, unknown: of the frequency filter, see `din_jax.optim.regularizer.filter_ids`.
    """
    fields = store.schema.inputs(extra_fields)
    packer = Packer(store, max_history)
    counts = {}
    for table in store.schema.tables:
        ads = [f for f in fields if f.table == table.name]
        behaviors = [
            (s.name, b) for s in store.schema.sequences for b in s.fields if b.table == table.name
        ]
        if not ads and not behaviors:
            continue
        samples = store.split(split)
        ids = _Ids(table.rows, (frequent or {}).get(table.name), unknown)
        one_hot = not any(f.multi_hot for f in ads) and not any(b.multi_hot for _, b in behaviors)
        windows = None
        if one_hot and len(behaviors) == 1:
            windows = _Windows.of(packer, *behaviors[0], samples, ids)
        if windows is not None:
            found = windows.counts() + windows.counts_outside(ads, samples)
        else:
            found = _one_by_one(packer, ads, behaviors, samples, ids)
        counts[table.name] = found[: table.rows]
    return counts


def cached_counts(
    store: Store, split: str, *, max_history: int = 0, extra_fields: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """`sample_counts`, cached in the store's folder.

    A store that can't be written to is counted each time.
    """
    extra_fields = sorted(extra_fields)
    what = [_VERSION, store.fingerprint, split, max_history, extra_fields]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    path = store.path / "counts" / digest
    with contextlib.suppress(OSError):
        saved = path.read_bytes()
        # Otherwise it is damaged, and made again.
        if len(saved) > 4 and saved[:4] == zlib.crc32(saved[4:]).to_bytes(4):
            with np.load(io.BytesIO(saved[4:])) as arrays:
                return dict(arrays)
    counts: dict[str, Any] = sample_counts(
        store, split, max_history=max_history, extra_fields=extra_fields
    )
    buffer = io.BytesIO()
    np.savez(buffer, **counts)
    content = buffer.getvalue()
    partial = path.with_name(f".{digest}.partial-{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(zlib.crc32(content).to_bytes(4) + content)
        partial.replace(path)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    return counts


class _Ids:
    """Ids as they are looked up: filtered. Those that are not looked up become K.

    Attributes:
      rows: K + 1.
    """

    def __init__(self, rows: int, frequent: np.ndarray | None, unknown: bool):
        self.rows, self.frequent, self.unknown = rows + 1, frequent, unknown

    def of_ad(self, ids: np.ndarray) -> np.ndarray:
        ids = ids.astype(np.int64)
        return (
            ids
            if self.frequent is None or not self.unknown
            else np.where(self.frequent[ids], ids, 0)
        )

    def visited(self, ids: np.ndarray) -> np.ndarray:
        if self.frequent is None or self.unknown:
            return self.of_ad(ids)
        ids = ids.astype(np.int64)
        return np.where(self.frequent[ids], ids, self.rows - 1)


class _Windows:
    """The histories of the samples in one behaviour field of one id each."""

    def __init__(
        self, packer: Packer, ids: np.ndarray, start: np.ndarray, end: np.ndarray, looked_up: _Ids
    ):
        self.packer, self.ids, self.start, self.end = packer, ids, start, end
        self.looked_up, self.rows = looked_up, looked_up.rows
        # Occurrences in order of (id, event): the one after another is the next of the same id.
        self.order = np.argsort(ids, kind="stable")
        self.sorted_ids = ids[self.order]

    @staticmethod
    def of(
        packer: Packer, name: str, behavior: BehaviorField, samples: range, looked_up: _Ids
    ) -> _Windows | None:
        """None if histories overlap in another way than those of one user do."""
        store = packer.store
        start = store.column(f"sequences/{name}.start")[samples.start : samples.stop]
        end = store.column(f"sequences/{name}.end")[samples.start : samples.stop]
        ids = looked_up.visited(store.column(f"events/{name}/{behavior.name}"))
        windows = _Windows(packer, ids, start.astype(np.int64), end.astype(np.int64), looked_up)
        return windows if windows.apart() else None

    def _last_ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct starts of non-empty windows, ascending, and the last end of each."""
        some = self.end > self.start
        starts, which = np.unique(self.start[some], return_inverse=True)
        last = np.zeros(len(starts), np.int64)
        np.maximum.at(last, which, self.end[some])
        return starts, last

    def apart(self) -> bool:
        """Whether windows that start at different events have no event in common."""
        starts, last = self._last_ends()
        return bool((last[:-1] <= starts[1:]).all())

    def counts(self) -> np.ndarray:
        """[K] windows that hold each id."""
        events = len(self.ids)
        ending = np.concatenate([[0], np.cumsum(np.bincount(self.end, minlength=events + 1))])
        # Empty windows end where they start: they hold nothing.
        empty = np.bincount(self.end[self.end == self.start], minlength=events + 1)
        ending[1:] -= np.cumsum(empty)

        starts, last = self._last_ends()
        p = np.arange(events)
        block = np.searchsorted(starts, p, side="right") - 1
        stop = np.where(block >= 0, last[block], 0) if len(starts) else np.zeros(events, np.int64)
        following = np.full(events, events, np.int64)
        same = self.sorted_ids[1:] == self.sorted_ids[:-1]
        following[self.order[:-1][same]] = self.order[1:][same]
        stop = np.minimum(stop, following)
        if self.packer.max_history:
            stop = np.minimum(stop, p + self.packer.max_history)
        # Windows that end in [p + 1, stop]; ending[e] is how many end before e.
        found = np.where(stop > p, ending[np.maximum(stop, p) + 1] - ending[p + 1], 0)
        return np.bincount(self.ids, weights=found, minlength=self.rows).astype(np.int64)

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """[samples] whether each sample's window holds the id given for it."""
        start = self.start
        if self.packer.max_history:
            start = np.maximum(start, self.end - self.packer.max_history)
        # The last occurrence of the id before the window's end, by bisection in (id, event) order.
        span = len(self.ids) + 1
        keys = self.sorted_ids * span + self.order
        at = np.searchsorted(keys, ids * span + self.end) - 1
        found = np.maximum(at, 0)
        if not len(keys):
            return np.zeros(len(ids), bool)
        return (at >= 0) & (self.sorted_ids[found] == ids) & (self.order[found] >= start)

    def counts_outside(self, fields: list[Field], samples: range) -> np.ndarray:
        """[K] samples that hold an id in one of `fields` and not in their window."""
        counts = np.zeros(self.rows, np.int64)
        before: list[np.ndarray] = []
        for field in fields:
            column = self.packer.store.column(f"fields/{field.name}")
            ids = self.looked_up.of_ad(column[samples.start : samples.stop])
            new = ~self.holds(ids)
            for other in before:
                new &= ids != other
            before.append(ids)
            counts += np.bincount(ids[new], minlength=self.rows)
        return counts


def _one_by_one(
    packer: Packer,
    fields: list[Field],
    behaviors: list[tuple[str, BehaviorField]],
    samples: range,
    looked_up: _Ids,
) -> np.ndarray:
    """[K] for any lookups: every (sample, id) pair is made, a part of the samples at a time."""
    store, rows = packer.store, looked_up.rows
    counts = np.zeros(rows, np.int64)
    for begin in range(samples.start, samples.stop, _SAMPLES_AT_ONCE):
        part = np.arange(begin, min(begin + _SAMPLES_AT_ONCE, samples.stop))
        pairs: list[np.ndarray] = []

        def add(sample: np.ndarray, ids: np.ndarray, pairs: list[np.ndarray] = pairs) -> None:
            pairs.append(sample.astype(np.int64) * rows + ids)

        def values(name: str, owner: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """The ids of a multi-hot column at some places, and the owner of each."""
            offsets = store.column(f"{name}.offsets")
            inner, of = ranges(offsets[at].astype(np.int64), offsets[at + 1].astype(np.int64))
            return owner[of], store.column(name)[inner]

        here = np.arange(len(part))
        for field in fields:
            name = f"fields/{field.name}"
            if field.multi_hot:
                owner, ids = values(name, here, part)
            else:
                owner, ids = here, store.column(name)[part]
            add(owner, looked_up.of_ad(ids))
        for sequence, behavior in behaviors:
            name = f"events/{sequence}/{behavior.name}"
            at, owner = ranges(*packer.history(sequence, part))
            if behavior.multi_hot:
                owner, ids = values(name, owner, at)
            else:
                ids = store.column(name)[at]
            add(owner, looked_up.visited(ids))
        distinct = np.unique(np.concatenate(pairs))
        counts += np.bincount(distinct % rows, minlength=rows)
    return counts
