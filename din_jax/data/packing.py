"""Packs samples of a store into batches, concatenated without padding between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from din_jax.data.store import Store
from din_jax.errors import DinError

Array: TypeAlias = Any  # a NumPy array on the host, a JAX array inside a step

AGE_BUCKETS = 32  # the last holds all ages from 2³¹ − 1 seconds on, 68 years


class Packed(NamedTuple):
    """The concatenated ids of S segments, then padding.

    Attributes:
      values: int32[N].
      segment_ids: int32[N], ascending; S for padding.
      weights: float32[N], of the ids of a weighted field; None of other fields.
    """

    values: Array
    segment_ids: Array
    weights: Array | None = None


class Behaviors(NamedTuple):
    """One behaviour sequence of a batch, concatenated over its samples, then padding.

    Attributes:
      fields: {name: int32[T]}; a multi-hot field is `Packed`, and its segments are behaviours. A
        numeric field is float32[T], NaN where the number is missing.
      segment_ids: int32[T], ascending: the sample of each behaviour; B for padding.
      age: int32[T], the bucket of each behaviour's age (`age_bucket`); 0 for padding. None if the
        batches carry no ages.
    """

    fields: dict[str, Array | Packed]
    segment_ids: Array
    age: Array | None = None


class Batch(NamedTuple):
    """A batch of B samples, of which the last may be padding.

    A batch for several devices has a leading device axis on all arrays, and B / M samples on each
    device, packed separately.

    Attributes:
      label: float32[B], 0 or 1.
      weight: float32[B], over 0 for a sample: its weight in the loss and in the statistics of Dice,
        1 unless the store has weights; 0 for padding, which has no behaviours.
      user: int32[B], the groups of Eq. 10; no model reads it.
      fields: {name: int32[B]}; a multi-hot field is `Packed`, and its segments are samples. A
        numeric field is float32[B], NaN where the number is missing.
      sequences: {name: behaviour sequence}.
    """

    label: Array
    weight: Array
    user: Array
    fields: dict[str, Array | Packed]
    sequences: dict[str, Behaviors]


class Packer:
    """Packs samples of a store into batches.

    Args:
      store: the data set.
      max_history: the number of most recent behaviours of a history to use; 0 uses all.
      ages: whether batches carry the ages of behaviours.
      weighted: whether batches carry the samples' weights, if the store has them; otherwise all
        samples weigh 1, as they do when they are scored.

    Attributes:
      weights: float32, the weights of the store's samples; None if all are 1.
      axes: names of the packed axes, see `Buckets`.

    Raises:
      DinError: `ages`, but a sequence of the store has no times.
    """

    def __init__(
        self,
        store: Store,
        max_history: int = 0,
        *,
        ages: bool = False,
        weighted: bool = True,
    ):
        self.store = store
        self.max_history = max_history
        self.ages = ages
        has_weights = weighted and store.schema.weighted
        self.weights = store.column("samples/weight") if has_weights else None
        without_times = [s.name for s in store.schema.sequences if not s.times]
        if ages and without_times:
            raise DinError(
                f"{store.path}: the store has no times of: {', '.join(without_times)}; "
                "config.model.attention.age=True needs them. Prepare the store anew if its source "
                "has times (docs/store.md says which), or set config.model.attention.age=False"
            )
        self._multi_hot = [f.name for f in store.schema.fields if f.multi_hot]
        self._nested = [
            (s.name, f.name) for s in store.schema.sequences for f in s.fields if f.multi_hot
        ]
        self.axes = (
            *self._multi_hot,
            *(s.name for s in store.schema.sequences),
            *(f"{s}.{f}" for s, f in self._nested),
        )

    def history(
        self, name: str, samples: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The samples' histories as ranges of a sequence's events: int64 (start [N], end [N])."""
        start = self.store.column(f"sequences/{name}.start")[samples].astype(np.int64)
        end = self.store.column(f"sequences/{name}.end")[samples].astype(np.int64)
        if self.max_history:
            start = np.maximum(start, end - self.max_history)
        return start, end

    def lengths(self, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[N, axes] the length of each sample along each packed axis."""
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
        self,
        groups: Sequence[npt.NDArray[Any]],
        batch_size: int,
        capacities: Sequence[Mapping[str, int]],
    ) -> list[Batch]:
        """Packs each group of samples into a batch.

        All groups are read together: for small batches the overhead of a NumPy call exceeds the
        cost of the data.

        Args:
          groups: the samples of each batch, at most `batch_size`; the rest of the batch is padding.
          batch_size: B.
          capacities: for each batch, the capacity of each packed axis; see `Buckets`.
        """
        store, schema = self.store, self.store.schema
        samples = np.concatenate(groups)
        sizes = np.array([len(group) for group in groups])
        batch_sizes = np.full(len(groups), batch_size)
        sample_axis = _Axis(samples, samples + 1, sizes, batch_sizes, batch_sizes)

        def capacity(axis: str) -> npt.NDArray[Any]:
            return np.array([batch_capacities[axis] for batch_capacities in capacities])

        def multi_hot(name: str, outer: _Axis, axis: str, weighted: bool) -> list[Packed]:
            offsets = store.column(f"{name}.offsets")
            start, end = (
                offsets[i].astype(np.int64) for i in (outer.positions, outer.positions + 1)
            )
            inner = _Axis(start, end, outer.lengths, capacity(axis), outer.capacity)
            weights: Sequence[Array | None] = [None] * len(groups)
            if weighted:
                weights = inner.take(store.column(f"{name}.weights"), np.float32)
            return list(map(Packed, inner.take(store.column(name)), inner.segment_ids, weights))

        fields: dict[str, Sequence[Array | Packed]] = {}
        for field in schema.fields:
            name = f"fields/{field.name}"
            fields[field.name] = (
                multi_hot(name, sample_axis, field.name, field.weighted)
                if field.multi_hot
                else sample_axis.take(store.column(name))
            )
        for number in schema.numbers:
            fields[number.name] = sample_axis.take(
                store.column(f"fields/{number.name}"), np.float32
            )
        sequences: dict[str, list[Behaviors]] = {}
        for sequence in schema.sequences:
            start, end = self.history(sequence.name, samples)
            history = _Axis(start, end, sizes, capacity(sequence.name), batch_sizes)
            values: dict[str, Sequence[Array | Packed]] = {}
            for behavior in sequence.fields:
                name = f"events/{sequence.name}/{behavior.name}"
                values[behavior.name] = (
                    multi_hot(name, history, f"{sequence.name}.{behavior.name}", behavior.weighted)
                    if behavior.multi_hot
                    else history.take(store.column(name))
                )
            for behavior_number in sequence.numbers:
                name = f"events/{sequence.name}/{behavior_number.name}"
                values[behavior_number.name] = history.take(store.column(name), np.float32)
            ages: Sequence[Array | None] = [None] * len(groups)
            if self.ages:
                now = store.column("samples/time")[samples].astype(np.int64)
                then = store.column(f"events/{sequence.name}.time")[history.positions]
                ages = history.pad(age_bucket(np.repeat(now, end - start) - then.astype(np.int64)))
            sequences[sequence.name] = [
                Behaviors(
                    {name: by_batch[g] for name, by_batch in values.items()}, segment_ids, age
                )
                for g, (segment_ids, age) in enumerate(zip(history.segment_ids, ages, strict=True))
            ]
        label = sample_axis.take(store.column("samples/label"), np.float32)
        user = sample_axis.take(store.column("samples/user"))
        ones = np.ones(len(samples), np.float32)
        weight = sample_axis.pad(
            ones if self.weights is None else self.weights[samples], np.float32
        )
        return [
            Batch(
                label=label[g],
                weight=weight[g],
                user=user[g],
                fields={name: by_batch[g] for name, by_batch in fields.items()},
                sequences={name: by_batch[g] for name, by_batch in sequences.items()},
            )
            for g in range(len(groups))
        ]


class _Axis:
    """A packed axis of G batches: the concatenated values of their segments, then padding.

    Args:
      start, end: [S] the range of each segment's values in a column, batch after batch.
      sizes: [G] the number of segments of each batch.
      capacity: [G] the padded length of each batch.
      segments: [G] the segment id of each batch's padding.

    Attributes:
      positions: [N] the positions of all segments' values in a column, start[i] … end[i] − 1.
      lengths: [G] the number of values of each batch.
      capacity: see above.
      segment_ids: int32[capacity] of each batch.
    """

    def __init__(
        self,
        start: npt.NDArray[Any],
        end: npt.NDArray[Any],
        sizes: npt.NDArray[Any],
        capacity: npt.NDArray[Any],
        segments: npt.NDArray[Any],
    ):
        length = end - start
        stops = np.concatenate([[0], np.cumsum(length)])
        self.positions = np.arange(stops[-1]) + np.repeat(start - stops[:-1], length)
        self.capacity = capacity
        self._bounds = stops[np.concatenate([[0], np.cumsum(sizes)])]
        self.lengths = np.diff(self._bounds)
        segment = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        self.segment_ids = self._padded(np.repeat(segment, length), segments, np.int32)

    def take(self, values: npt.NDArray[Any], dtype: Any = np.int32) -> list[npt.NDArray[Any]]:
        """Gathers the values of each batch, padded with zeros to its capacity."""
        return self.pad(values[self.positions], dtype)

    def pad(self, values: npt.NDArray[Any], dtype: Any = np.int32) -> list[npt.NDArray[Any]]:
        """Splits the values of all batches, [N], and pads each with zeros to its capacity."""
        return self._padded(values, np.zeros_like(self.capacity), dtype)

    def _padded(
        self, flat: npt.NDArray[Any], fill: npt.NDArray[Any], dtype: Any
    ) -> list[npt.NDArray[Any]]:
        """Splits the values of all batches, [N], and pads each with its element of `fill`."""
        padded = np.repeat(fill.astype(dtype), self.capacity)
        arrays, begin = [], 0
        for capacity, *bounds in zip(
            self.capacity.tolist(),
            self._bounds[:-1].tolist(),
            self._bounds[1:].tolist(),
            strict=True,
        ):
            array = padded[begin : begin + capacity]
            values = flat[slice(*bounds)]
            array[: len(values)] = values
            arrays.append(array)
            begin += capacity
        return arrays


def age_bucket(seconds: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """int32: the logarithmic bucket of each age, ⌊log₂(1 + seconds)⌋, at most AGE_BUCKETS − 1.

    Bucket 0 holds the ages below a second, bucket i those from 2ⁱ − 1 to 2ⁱ⁺¹ − 2 seconds.
    """
    # The exponent of a float is exact, as its logarithm need not be: 1 + seconds = m · 2ᵉ, m < 1.
    _, exponent = np.frexp(1.0 + np.maximum(seconds, 0))
    buckets: npt.NDArray[Any] = np.minimum(exponent - 1, AGE_BUCKETS - 1)
    return buckets


def ranges(
    start: npt.NDArray[Any], end: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Concatenates the ranges start[i] … end[i] − 1; also returns the i of each element."""
    length = end - start
    segment = np.repeat(np.arange(len(start), dtype=np.int32), length)
    shift = start - (np.cumsum(length) - length)
    return np.arange(len(segment)) + np.repeat(shift, length), segment
