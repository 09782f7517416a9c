"""Packed batches: samples sliced out of a store, end to end, with no padding between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from din_jax.data.store import Store

Array: TypeAlias = Any  # NumPy's on the host, JAX's inside a step


class Packed(NamedTuple):
    """Ids of S segments end to end; padding carries segment id S."""

    values: Array  # int32[N]
    segment_ids: Array  # int32[N], ascending


class Behaviors(NamedTuple):
    """One behaviour sequence of the whole batch, end to end; padding carries segment id B."""

    fields: dict[str, Array | Packed]  # int32[T]; multi-hot: segments are positions in T
    segment_ids: Array  # int32[T], ascending: which sample


class Batch(NamedTuple):
    """B samples. `weight` is 1 for a sample, and 0 for padding that fills the last batch up.

    A sample of weight 0 has no behaviours. A batch for several devices has a device axis before
    all others, and B / M samples on each, packed by themselves.
    """

    label: Array  # float32[B]
    weight: Array  # float32[B]
    user: Array  # int32[B], groups Eq. 10; no model reads it
    fields: dict[str, Array | Packed]  # int32[B]; multi-hot: segments are samples
    sequences: dict[str, Behaviors]


class Packer:
    """Slices samples out of a store into packed batches.

    Args:
      store: where the samples are.
      max_history: use the most recent behaviours of each history; 0: all of them.
    """

    def __init__(self, store: Store, max_history: int = 0):
        self.store = store
        self.max_history = max_history
        self._multi_hot = [f.name for f in store.schema.fields if f.multi_hot]
        self._nested = [
            (s.name, f.name) for s in store.schema.sequences for f in s.fields if f.multi_hot
        ]
        self.axes = (
            *self._multi_hot,
            *(s.name for s in store.schema.sequences),
            *(f"{s}.{f}" for s, f in self._nested),
        )

    def history(self, name: str, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 (start, end) of the samples' histories in the events of a sequence."""
        start = self.store.column(f"sequences/{name}.start")[samples].astype(np.int64)
        end = self.store.column(f"sequences/{name}.end")[samples].astype(np.int64)
        if self.max_history:
            start = np.maximum(start, end - self.max_history)
        return start, end

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        """[N, axes] how much of each packed axis each sample takes."""
        columns = []
        for name in self._multi_hot:
            offsets = self.store.column(f"fields/{name}.offsets")
            columns.append(offsets[samples + 1].astype(np.int64) - offsets[samples])
        histories = {s.name: self.history(s.name, samples) for s in self.store.schema.sequences}
        columns += [end - start for start, end in histories.values()]
        for sequence, field in self._nested:
            start, end = histories[sequence]
            offsets = self.store.column(f"events/{sequence}/{field}.offsets")
            columns.append(offsets[end].astype(np.int64) - offsets[start])
        return np.stack(columns, axis=1) if columns else np.empty((len(samples), 0), np.int64)

    def pack(
        self, groups: Sequence[np.ndarray], batch_size: int, capacities: Sequence[Mapping[str, int]]
    ) -> list[Batch]:
        """A batch for each group of samples, at most `batch_size`, filled up with weight 0.

        All are read together: for small batches the calls that read cost more than the data.

        Args:
          groups: samples in the store.
          batch_size: B.
          capacities: padded lengths of each packed axis, for each group; see `Buckets`.
        """
        store, schema = self.store, self.store.schema
        samples = np.concatenate(groups)
        sizes = np.array([len(group) for group in groups])
        whole = np.full(len(groups), batch_size)
        one_each = _Axis(samples, samples + 1, sizes, whole, whole)

        def capacity(axis: str) -> np.ndarray:
            return np.array([of_axis[axis] for of_axis in capacities])

        def multi_hot(name: str, of: _Axis, axis: str) -> list[Packed]:
            offsets = store.column(f"{name}.offsets")
            start, end = (offsets[at].astype(np.int64) for at in (of.at, of.at + 1))
            inner = _Axis(start, end, of.lengths, capacity(axis), of.capacity)
            return list(map(Packed, inner.take(store.column(name)), inner.segment_ids))

        fields: dict[str, Sequence[Array | Packed]] = {}
        for field in schema.fields:
            name = f"fields/{field.name}"
            fields[field.name] = (
                multi_hot(name, one_each, field.name)
                if field.multi_hot
                else one_each.take(store.column(name))
            )
        sequences: dict[str, list[Behaviors]] = {}
        for sequence in schema.sequences:
            start, end = self.history(sequence.name, samples)
            history = _Axis(start, end, sizes, capacity(sequence.name), whole)
            values: dict[str, Sequence[Array | Packed]] = {}
            for behavior in sequence.fields:
                name = f"events/{sequence.name}/{behavior.name}"
                values[behavior.name] = (
                    multi_hot(name, history, f"{sequence.name}.{behavior.name}")
                    if behavior.multi_hot
                    else history.take(store.column(name))
                )
            sequences[sequence.name] = [
                Behaviors({name: of_field[g] for name, of_field in values.items()}, segment_ids)
                for g, segment_ids in enumerate(history.segment_ids)
            ]
        label = one_each.take(store.column("samples/label"), np.float32)
        user = one_each.take(store.column("samples/user"))
        return [
            Batch(
                label=label[g],
                weight=(np.arange(batch_size) < sizes[g]).astype(np.float32),
                user=user[g],
                fields={name: of_groups[g] for name, of_groups in fields.items()},
                sequences={name: of_groups[g] for name, of_groups in sequences.items()},
            )
            for g in range(len(groups))
        ]


class _Axis:
    """A packed axis of G batches: the values of their segments end to end, then padding.

    Args:
      start, end: [S] the range of each segment's values, batch by batch.
      sizes: [G] number of segments of each batch.
      capacity: [G] of each batch.
      segments: [G] segment id of padding.

    Attributes:
      at: [N] the values' positions, start[i] … end[i] − 1 of all segments.
      lengths: [G] number of values of each batch.
      capacity: as given.
      segment_ids: int32[capacity] of each batch.
    """

    def __init__(
        self,
        start: np.ndarray,
        end: np.ndarray,
        sizes: np.ndarray,
        capacity: np.ndarray,
        segments: np.ndarray,
    ):
        length = end - start
        stops = np.concatenate([[0], np.cumsum(length)])
        self.at = np.arange(stops[-1]) + np.repeat(start - stops[:-1], length)
        self.capacity = capacity
        self._cuts = stops[np.concatenate([[0], np.cumsum(sizes)])]
        self.lengths = np.diff(self._cuts)
        number = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        self.segment_ids = self._padded(np.repeat(number, length), segments, np.int32)

    def take(self, values: np.ndarray, dtype: Any = np.int32) -> list[np.ndarray]:
        """[capacity] of each batch: the values, then zeros."""
        return self._padded(values[self.at], np.zeros_like(self.capacity), dtype)

    def _padded(self, flat: np.ndarray, fill: np.ndarray, dtype: Any) -> list[np.ndarray]:
        out = np.repeat(fill.astype(dtype), self.capacity)
        parts, begin = [], 0
        for capacity, *real in zip(
            self.capacity.tolist(), self._cuts[:-1].tolist(), self._cuts[1:].tolist(), strict=True
        ):
            part = out[begin : begin + capacity]
            values = flat[slice(*real)]
            part[: len(values)] = values
            parts.append(part)
            begin += capacity
        return parts


def ranges(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions start[i] … end[i] − 1 of all ranges, end to end, and which i each is of."""
    length = end - start
    segment = np.repeat(np.arange(len(start), dtype=np.int32), length)
    shift = start - (np.cumsum(length) - length)
    return np.arange(len(segment)) + np.repeat(shift, length), segment
