"""Computes n_j of Eq. 4: the exact number of training samples in which an id occurs.

A sample counts once for an id, even if several of its lookups have it. If the store has weights, a
sample counts its weight instead of 1, so that a weight of 2 is two equal samples; fractional
sums are as exact as float64 holds the sum of all weights. Histories are windows of the
stored events, and are counted without being built: a window that contains id j is counted at its
last occurrence of j. The windows whose last occurrence of j is event p are those that end in
[p + 1, min(p + L, next occurrence of j, end of the user's events)]: their number is a difference of
two entries of a prefix sum. L is `max_history`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.data.cache import cached
from din_jax.data.packing import Packer, ranges
from din_jax.data.schema import BehaviorField, Field
from din_jax.data.store import Store

_VERSION = 1  # version of the counting algorithm; a cache of another version is ignored
_SAMPLES_AT_ONCE = 1 << 16  # samples in memory at a time in `_brute_force_counts`


def sample_counts(
    store: Store,
    split: str,
    *,
    max_history: int = 0,
    extra_fields: Iterable[str] = (),
    frequent: Mapping[str, npt.NDArray[Any]] | None = None,
    unknown: bool = False,
) -> dict[str, npt.NDArray[Any]]:
    """Computes n_j of every table that a model reads: {table: int64[K]}.

    With weights, n_j is the sum of the weights of the samples with id j, and float64.

    Args:
      store, split: the training samples.
      max_history: the number of most recent behaviours of a history to use; 0 uses all.
      extra_fields: names of optional fields that are inputs.
      frequent, unknown: the frequency filter, see `din_jax.optim.regularizer.filter_ids`.
    """
    fields = store.schema.inputs(extra_fields)
    packer = Packer(store, max_history)
    samples, weights = store.split(split), None
    if packer.weights is not None:
        weights = packer.weights[samples.start : samples.stop].astype(np.float64)
    counts = {}
    for table in store.schema.tables:
        ads = [f for f in fields if f.table == table.name]
        behaviors = [
            (s.name, b) for s in store.schema.sequences for b in s.fields if b.table == table.name
        ]
        if not ads and not behaviors:
            continue
        ids = _Ids(table.rows, (frequent or {}).get(table.name), unknown)
        one_hot = not any(f.multi_hot for f in ads) and not any(b.multi_hot for _, b in behaviors)
        windows = None
        if one_hot and len(behaviors) == 1:
            windows = _Windows.of(packer, *behaviors[0], samples, ids)
        if windows is not None:
            n = windows.counts(weights) + windows.counts_outside(ads, samples, weights)
        else:
            n = _brute_force_counts(packer, ads, behaviors, samples, ids, weights)
        counts[table.name] = n[: table.rows]
    return counts


def cached_counts(
    store: Store, split: str, *, max_history: int = 0, extra_fields: Iterable[str] = ()
) -> dict[str, npt.NDArray[Any]]:
    """`sample_counts`, cached in the store's folder if it is writable.

    Args: see `sample_counts`.
    """
    extra_fields = sorted(extra_fields)

    def compute() -> bytes:
        counts: dict[str, Any] = sample_counts(
            store, split, max_history=max_history, extra_fields=extra_fields
        )
        buffer = io.BytesIO()
        np.savez(buffer, **counts)
        return buffer.getvalue()

    content = cached(store, "counts", [_VERSION, split, max_history, extra_fields], compute)
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


class _Ids:
    """Applies the frequency filter to ids. An id that is not looked up becomes K.

    Attributes:
      rows: K + 1.
    """

    def __init__(self, rows: int, frequent: npt.NDArray[Any] | None, unknown: bool):
        self.rows, self.frequent, self.unknown = rows + 1, frequent, unknown

    def of_ad(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The filtered ids of an ad, user or context field."""
        ids = ids.astype(np.int64)
        return (
            ids
            if self.frequent is None or not self.unknown
            else np.where(self.frequent[ids], ids, 0)
        )

    def visited(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The filtered ids of a behaviour field."""
        if self.frequent is None or self.unknown:
            return self.of_ad(ids)
        ids = ids.astype(np.int64)
        return np.where(self.frequent[ids], ids, self.rows - 1)


class _Windows:
    """The samples' histories as windows of one behaviour field, which has one id per event."""

    def __init__(
        self,
        packer: Packer,
        ids: npt.NDArray[Any],
        start: npt.NDArray[Any],
        end: npt.NDArray[Any],
        looked_up: _Ids,
    ):
        self.packer, self.ids, self.start, self.end = packer, ids, start, end
        self.looked_up, self.rows = looked_up, looked_up.rows
        # Events ordered by (id, event): an id's next occurrence is the next entry.
        self.order = np.argsort(ids, kind="stable")
        self.sorted_ids = ids[self.order]

    @staticmethod
    def of(
        packer: Packer, name: str, behavior: BehaviorField, samples: range, looked_up: _Ids
    ) -> _Windows | None:
        """Makes the windows; None if windows overlap that start at different events."""
        store = packer.store
        start = store.column(f"sequences/{name}.start")[samples.start : samples.stop]
        end = store.column(f"sequences/{name}.end")[samples.start : samples.stop]
        ids = looked_up.visited(store.column(f"events/{name}/{behavior.name}"))
        windows = _Windows(packer, ids, start.astype(np.int64), end.astype(np.int64), looked_up)
        return windows if windows.apart() else None

    def _last_ends(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The distinct starts of non-empty windows, ascending, and the last end for each start."""
        non_empty = self.end > self.start
        starts, inverse = np.unique(self.start[non_empty], return_inverse=True)
        last = np.zeros(len(starts), np.int64)
        np.maximum.at(last, inverse, self.end[non_empty])
        return starts, last

    def apart(self) -> bool:
        """Whether windows that start at different events are disjoint."""
        starts, last = self._last_ends()
        return bool((last[:-1] <= starts[1:]).all())

    def counts(self, weights: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """[K] the number of windows that contain each id, or their total weight."""
        events = len(self.ids)
        # ends_before[e]: the number of windows that end before event e, without empty ones. All
        # "numbers" are sums of weights, if there are any.
        non_empty = self.end > self.start
        ends_before = np.concatenate(
            [[0], np.cumsum(_bincount(self.end, non_empty, weights, events + 1))]
        )

        starts, last = self._last_ends()
        p = np.arange(events)
        block = np.searchsorted(starts, p, side="right") - 1
        stop = np.where(block >= 0, last[block], 0) if len(starts) else np.zeros(events, np.int64)
        next_occurrence = np.full(events, events, np.int64)
        same_id = self.sorted_ids[1:] == self.sorted_ids[:-1]
        next_occurrence[self.order[:-1][same_id]] = self.order[1:][same_id]
        stop = np.minimum(stop, next_occurrence)
        if self.packer.max_history:
            stop = np.minimum(stop, p + self.packer.max_history)
        # The number of windows that end in [p + 1, stop].
        windows = np.where(stop > p, ends_before[np.maximum(stop, p) + 1] - ends_before[p + 1], 0)
        n = np.bincount(self.ids, weights=windows, minlength=self.rows)
        return n if weights is not None else n.astype(np.int64)

    def contains(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """bool [samples]: whether sample i's window contains `ids[i]`."""
        start = self.start
        if self.packer.max_history:
            start = np.maximum(start, self.end - self.packer.max_history)
        # Finds the id's last occurrence before the window's end, by bisection in (id, event) order.
        span = len(self.ids) + 1
        keys = self.sorted_ids * span + self.order
        position = np.searchsorted(keys, ids * span + self.end) - 1
        occurrence = np.maximum(position, 0)
        if not len(keys):
            return np.zeros(len(ids), bool)
        contained: npt.NDArray[np.bool_] = (
            (position >= 0)
            & (self.sorted_ids[occurrence] == ids)
            & (self.order[occurrence] >= start)
        )
        return contained

    def counts_outside(
        self, fields: list[Field], samples: range, weights: npt.NDArray[Any] | None
    ) -> npt.NDArray[Any]:
        """[K] the samples with an id in one of `fields` but not in their window, as `counts`."""
        counts = np.zeros(self.rows, np.int64 if weights is None else np.float64)
        counted: list[npt.NDArray[Any]] = []
        for field in fields:
            column = self.packer.store.column(f"fields/{field.name}")
            ids = self.looked_up.of_ad(column[samples.start : samples.stop])
            new = ~self.contains(ids)
            for other in counted:
                new &= ids != other
            counted.append(ids)
            counts += _bincount(ids, new, weights, self.rows)
        return counts


def _brute_force_counts(
    packer: Packer,
    fields: list[Field],
    behaviors: list[tuple[str, BehaviorField]],
    samples: range,
    looked_up: _Ids,
    weights: npt.NDArray[Any] | None,
) -> npt.NDArray[Any]:
    """[K] counts for any lookups, from all (sample, id) pairs, a chunk of samples at a time."""
    store, rows = packer.store, looked_up.rows
    counts = np.zeros(rows, np.int64 if weights is None else np.float64)
    for begin in range(samples.start, samples.stop, _SAMPLES_AT_ONCE):
        chunk = np.arange(begin, min(begin + _SAMPLES_AT_ONCE, samples.stop))
        pairs: list[npt.NDArray[Any]] = []

        def add(
            sample: npt.NDArray[Any], ids: npt.NDArray[Any], pairs: list[npt.NDArray[Any]] = pairs
        ) -> None:
            pairs.append(sample.astype(np.int64) * rows + ids)

        def values(
            name: str, owner: npt.NDArray[Any], positions: npt.NDArray[Any]
        ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
            """The ids of a multi-hot column at `positions`, and the owner of each id."""
            offsets = store.column(f"{name}.offsets")
            start, end = (offsets[i].astype(np.int64) for i in (positions, positions + 1))
            value_positions, segment = ranges(start, end)
            return owner[segment], store.column(name)[value_positions]

        local = np.arange(len(chunk))
        for field in fields:
            name = f"fields/{field.name}"
            if field.multi_hot:
                owner, ids = values(name, local, chunk)
            else:
                owner, ids = local, store.column(name)[chunk]
            add(owner, looked_up.of_ad(ids))
        for sequence, behavior in behaviors:
            name = f"events/{sequence}/{behavior.name}"
            events, owner = ranges(*packer.history(sequence, chunk))
            if behavior.multi_hot:
                owner, ids = values(name, owner, events)
            else:
                ids = store.column(name)[events]
            add(owner, looked_up.visited(ids))
        distinct = np.unique(np.concatenate(pairs))
        of_pair = None if weights is None else weights[chunk - samples.start][distinct // rows]
        counts += np.bincount(distinct % rows, weights=of_pair, minlength=rows)
    return counts


def _bincount(
    ids: npt.NDArray[Any],
    counted: npt.NDArray[np.bool_],
    weights: npt.NDArray[Any] | None,
    rows: int,
) -> npt.NDArray[Any]:
    """[rows] how many of the counted samples have each id, or the sum of their weights."""
    weights = None if weights is None else weights[counted]
    return np.bincount(ids[counted], weights=weights, minlength=rows)
