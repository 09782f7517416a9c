"""Store to packed batches through Grain: shuffled, whole batches, resumable.

A batch holds behaviours end to end (`values[T]`, `segment_ids[T]`), not `[B, longest]`. Each
packed axis is padded up to the capacity of a rung of a `Ladder`, so that a compiled step meets few
shapes. Padding carries the segment id that is one past the last, and its content means nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import grain
import jax
import numpy as np

from din_jax.errors import DinError
from din_jax.store import Store

_ROUND_TO = 8  # capacities are multiples of this
_RUNGS_AT = (0.25, 0.5, 0.75, 0.9, 0.97, 1.0)  # quantiles of batches' totals: the common rungs
_TRIAL_GROUPS = 512  # of batches that are alike, drawn to find the quantiles
_SAMPLES_AT_ONCE = 2048  # of small batches, packed together
_SAMPLES_A_LOOK = 1 << 20  # whose lengths are held in memory at once
_DEALT_SINGLY = 8  # samples of a batch that are dealt one by one, the longest; the rest in lots
_CLOSE = 1.05  # a common rung that is closer than this to the next is left out
_FAR = 1.5  # beyond the common ones, each rung is this much larger than the one before


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


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Rung i fixes a capacity for each packed axis; the last rung holds any batch.

    Axes are "SEQUENCE" (T), "SEQUENCE.FIELD" (a behaviour's multi-hot field) and "FIELD" (a
    sample's).
    """

    axes: tuple[str, ...]
    rungs: tuple[tuple[int, ...], ...]

    @staticmethod
    def fit(axes: Sequence[str], totals: np.ndarray, worst: Sequence[int]) -> Ladder:
        """A ladder of few rungs for batches like those given.

        Args:
          axes: names of the packed axes.
          totals: [batches, axes] what batches like the expected ones hold.
          worst: [axes] what a batch can hold at most.
        """
        if not axes:
            return Ladder((), ((),))
        top = _round_up(np.asarray(worst))
        common = [_round_up(np.quantile(totals, q, axis=0)) for q in _RUNGS_AT]
        rungs = [np.minimum(common.pop(), top)]
        while common:
            rung = np.minimum(common.pop(), rungs[0])
            if (rungs[0] > rung * _CLOSE).any():
                rungs.insert(0, rung)
        while (rungs[-1] < top).any():
            rungs.append(np.minimum(_round_up(rungs[-1] * _FAR), top))
        return Ladder(tuple(axes), tuple(tuple(int(c) for c in rung) for rung in rungs))

    def lowest(self, lengths: Iterable[int]) -> dict[str, int]:
        """The capacities of the lowest rung that holds `lengths` (one an axis)."""
        lengths = tuple(int(n) for n in lengths)
        for rung in self.rungs:
            if all(n <= capacity for n, capacity in zip(lengths, rung, strict=True)):
                return dict(zip(self.axes, rung, strict=True))
        raise ValueError(f"lengths {lengths} of {self.axes} exceed {self.rungs[-1]}")


class Packer:
    """Slices samples out of a store into packed batches.

    Args:
      store: where the samples are.
      max_history: the most recent behaviours kept of each history; 0 keeps all.
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

        All are read in one go, since small batches cost little more than the calls that read them.

        Args:
          groups: samples in the store.
          batch_size: B.
          capacities: of each packed axis, for each group; see `Ladder`.
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
            inner = _Axis(start, end, of.held, capacity(axis), of.capacity)
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
    """A packed axis of G batches: the values of their segments end to end, and room to spare.

    Args:
      start, end: [S] where the values of each segment are, all batches' one after the other.
      sizes: [G] how many segments are of each batch.
      capacity: [G] of each batch.
      segments: [G] the id that padding has.

    Attributes:
      at: [N] the values' positions, start[i] … end[i] − 1 of all segments.
      held: [G] how many values are of each batch.
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
        self.held = np.diff(self._cuts)
        number = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        self.segment_ids = self._padded(np.repeat(number, length), segments, np.int32)

    def take(self, values: np.ndarray, dtype: Any = np.int32) -> list[np.ndarray]:
        """[capacity] of each batch: the values, then zeros."""
        return self._padded(values[self.at], np.zeros_like(self.capacity), dtype)

    def _padded(self, flat: np.ndarray, fill: np.ndarray, dtype: Any) -> list[np.ndarray]:
        out = np.repeat(fill.astype(dtype), self.capacity)
        found, begin = [], 0
        for capacity, *real in zip(
            self.capacity.tolist(), self._cuts[:-1].tolist(), self._cuts[1:].tolist(), strict=True
        ):
            part = out[begin : begin + capacity]
            values = flat[slice(*real)]
            part[: len(values)] = values
            found.append(part)
            begin += capacity
        return found


@dataclasses.dataclass(frozen=True)
class Shards:
    """How batches are split among devices: B / M samples for each, in their order.

    All devices' packed axes have the same capacities. They come from offsets, which every process
    reads for the whole batch; behaviours are read only for the devices in `local`.
    """

    count: int = 1  # M
    local: range = range(1)  # the devices whose shares are read, of range(M)


class BatchSource:
    """Random access to the packed batches of a run, for Grain.

    Batch i of a shuffled source is batch i mod `batches_per_epoch` of epoch i div
    `batches_per_epoch`; every epoch has a permutation of its own, made of seed and epoch. An epoch
    has each sample once: its last batch may hold fewer, filled up with weight 0.

    Small batches are made several at once, in stretches: of one alone the calls would cost more
    than the work. For the same reason several steps may be taken in one call, for which neighbours
    have to be `alike`: their samples are dealt among them so that each batch holds about as much,
    and little padding makes their shapes the same. On any number of devices they are the same.

    Args:
      store, split: what to read.
      batch_size: B.
      max_history: see `Packer`.
      seed: of the order.
      shuffle: if not, batches follow the store's order, but for dealing.
      epochs: how many.
      shards: of several devices; a batch then has the axis of those in `shards.local`.
      alike: so many neighbouring batches are dealt their samples and have the same shapes, on
        several devices the samples alone; groups begin with each epoch.

    Raises:
      DinError: there is no such split, it has no samples, or M does not divide B.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        batch_size: int,
        *,
        max_history: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int = 1,
        shards: Shards = Shards(),
        alike: int = 1,
    ):
        self.samples = store.split(split)
        if not self.samples:
            raise DinError(f"{store.path}: the split {split!r} has no samples")
        if batch_size % shards.count:
            below = batch_size - batch_size % shards.count
            raise DinError(
                f"config.train.batch_size={batch_size}: a batch is split evenly among "
                f"{shards.count} devices; use "
                + " or ".join(str(size) for size in (below, below + shards.count) if size)
            )
        self.shards = shards
        self.batch_size, self.seed, self.shuffle, self.epochs = batch_size, seed, shuffle, epochs
        self.batches_per_epoch = -(-len(self.samples) // batch_size)
        self.packer = Packer(store, max_history)
        # All that the order and the content of the batches depend on.
        self.fingerprint = {
            "store": store.fingerprint,
            "split": split,
            "batch_size": batch_size,
            "max_history": max_history,
            "seed": seed,
            "shuffle": shuffle,
            "dealt": alike,
        }
        self.dealt = alike
        self.alike = alike if shards.count == 1 else 1  # M shares each would need more padding
        self.at_once = alike * max(1, _SAMPLES_AT_ONCE // (alike * batch_size))
        self.stretches = epochs * -(-self.batches_per_epoch // self.at_once)
        self._order = functools.lru_cache(maxsize=2)(self._order_of)
        self._last_stretch = functools.lru_cache(maxsize=1)(self.stretch)
        # Those read ahead too: who asks for a batch's samples later need not deal them again.
        self._recent_samples = functools.lru_cache(maxsize=8)(self._samples_of)
        self.ladder = self._ladder()

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __getitem__(self, index: int) -> Batch:
        stretch, place = self.place(int(index))
        return self._last_stretch(stretch)[place]

    def place(self, index: int) -> tuple[int, int]:
        """The stretch that batch `index` is in, and its place there."""
        epoch, place = divmod(index, self.batches_per_epoch)
        stretch, place = divmod(place, self.at_once)
        return epoch * (self.stretches // self.epochs) + stretch, place

    def stretch(self, index: int) -> list[Batch]:
        """Stretch `index`: at most `at_once` neighbouring batches of an epoch, packed together."""
        samples, lengths = self._recent_samples(index)
        size, share = self.batch_size, self.batch_size // self.shards.count
        groups, capacities = [], []
        for begin in range(0, len(samples), size):
            of_batch = samples[begin : begin + size]
            if begin % (self.alike * size) == 0:
                of_alike = lengths[begin : begin + self.alike * size]
                capacity = self.ladder.lowest(_most(of_alike, share))
            for m in self.shards.local:
                groups.append(of_batch[m * share : (m + 1) * share])
                capacities.append(capacity)
        packed = self.packer.pack(groups, share, capacities)
        if self.shards.count == 1:
            return packed
        local = len(self.shards.local)
        return [
            jax.tree.map(lambda *parts: np.stack(parts), *packed[i : i + local])
            for i in range(0, len(packed), local)
        ]

    def samples_of(self, index: int) -> np.ndarray:
        """int64: which of the store's samples batch `index` has, on all devices."""
        stretch, place = self.place(int(index))
        return self._recent_samples(stretch)[0][place * self.batch_size :][: self.batch_size]

    def _samples_of(self, stretch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a stretch, one batch's after the other's, and their lengths."""
        epoch, stretch = divmod(stretch, self.stretches // self.epochs)
        size = self.at_once * self.batch_size
        begin, end = stretch * size, min((stretch + 1) * size, len(self.samples))
        if self.shuffle:
            samples = self._order(epoch)[begin:end].astype(np.int64)
        else:
            samples = np.arange(begin, end)
        samples += self.samples.start
        lengths = self.packer.lengths(samples)
        dealt = self._dealt(lengths)
        return samples[dealt], lengths[dealt]

    def _dealt(self, lengths: np.ndarray) -> np.ndarray:
        """Where the samples of whole groups, and of what is left, are in the batches' order."""
        order, sizes, size = np.arange(len(lengths)), lengths.sum(axis=1), self.batch_size
        whole = len(order) // (self.dealt * size) * self.dealt * size
        left = (len(order) - whole) // size  # a last batch that is not full stays as it is
        for begin, end, batches in ((0, whole, self.dealt), (whole, whole + left * size, left)):
            if batches > 1 and begin < end:
                groups = sizes[begin:end].reshape(-1, batches * size)
                first = np.arange(begin, end, batches * size)[:, np.newaxis]
                order[begin:end] = (first + _deal(groups, batches)).ravel()
        return order

    def next_group(self, index: int) -> int:
        """The first batch after `index` that need not be like it in shape."""
        epoch, place = divmod(index, self.batches_per_epoch)
        after = min(self.batches_per_epoch, (place // self.alike + 1) * self.alike)
        return epoch * self.batches_per_epoch + after

    def real_samples(self, index: int) -> int:
        """How many samples batch `index` has on all devices, without what fills it up."""
        begin = int(index) % self.batches_per_epoch * self.batch_size
        return min(self.batch_size, len(self.samples) - begin)

    def _order_of(self, epoch: int) -> np.ndarray:
        count = len(self.samples)
        order = np.arange(count, dtype=np.uint32 if count < 1 << 32 else np.uint64)
        np.random.default_rng([self.seed, epoch]).shuffle(order)
        return order

    def _ladder(self) -> Ladder:
        # Shuffled batches are like any others drawn at random; the worst has the longest histories.
        # Unshuffled ones are known, and neighbours are alike: look at them all. Of several devices
        # the one with the most counts.
        size, share = self.batch_size, self.batch_size // self.shards.count
        group = self.alike * size
        if not self.shuffle:
            totals = []
            for stretch in range(self.stretches // self.epochs):
                _, lengths = self._samples_of(stretch)
                totals += [
                    _most(lengths[i : i + group], share) for i in range(0, len(lengths), group)
                ]
            known = np.stack(totals)
            return Ladder.fit(self.packer.axes, known, known.max(axis=0).tolist())
        longest = np.empty((0, len(self.packer.axes)), np.int64)
        for start in range(self.samples.start, self.samples.stop, _SAMPLES_A_LOOK):
            stop = min(start + _SAMPLES_A_LOOK, self.samples.stop)
            lengths = self.packer.lengths(np.arange(start, stop))
            longest = np.sort(np.concatenate([longest, lengths]), axis=0)[-share:]
        count = min(self.dealt * size, len(self.samples))
        drawn = np.random.default_rng(0).integers(
            self.samples.start, self.samples.stop, size=(_TRIAL_GROUPS, count)
        )
        trials = []
        for lengths in map(self.packer.lengths, drawn):
            trials.append(_most(lengths[self._dealt(lengths)][:group], share))
        return Ladder.fit(self.packer.axes, np.stack(trials), longest.sum(axis=0).tolist())


class _Stretches:
    """A source as Grain reads it: its cost is a call's, and small batches are many."""

    def __init__(self, source: BatchSource):
        self._source = source

    def __len__(self) -> int:
        return self._source.stretches

    def __getitem__(self, index: int) -> list[Batch]:
        return self._source.stretch(int(index))


def batches(source: BatchSource, start: int = 0, *, prefetch: int = 8) -> Iterator[Batch]:
    """Iterates over a source's batches from position `start`, read ahead in a thread of its own.

    Args:
      source: what is read; `source.fingerprint` says of what.
      start: the first batch.
      prefetch: how many batches are read ahead; small ones in whole stretches.
    """
    if start >= len(source):
        return
    stretch, place = source.place(start)
    ahead = max(2, -(-prefetch // source.at_once))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.source(_Stretches(source)).to_iter_dataset(options))
    if stretch:
        state: Mapping[str, Any] = iterator.get_state()
        iterator.set_state({**state, "next_index": stretch})
    for of_stretch in iterator:
        yield from of_stretch[place:]
        place = 0


def _most(lengths: np.ndarray, share: int) -> np.ndarray:
    """[axes]: the most that a device's share of the samples takes, of lengths [samples, axes]."""
    return np.add.reduceat(lengths, np.arange(0, len(lengths), share), axis=0).max(axis=0)


def _deal(sizes: np.ndarray, batches: int) -> np.ndarray:
    """Deals the samples of each group among its batches, so that their totals are nearly equal.

    In rounds of one sample a batch, the longest first: in each, the batch that has least so far
    gets the longest.

    Args:
      sizes: [G, batches · B].

    Returns:
      [G, batches · B]: the first batch's places in its group, ascending, then the second's, and on.
    """
    groups, count = sizes.shape
    size = count // batches
    places = np.argsort(-sizes, axis=1, kind="stable").reshape(groups, size, batches)
    places[:, 0].sort(axis=1)  # else the longest of all would always be in the first batch
    ranked = np.take_along_axis(sizes, places.reshape(groups, count), axis=1)
    # A batch gets one sample of each row. Rows of short ones go in lots: few calls, as even.
    singly = min(size, _DEALT_SINGLY)
    lots = [*range(singly), *range(singly, size, max(1, -(-(size - singly) // 4)))]
    given = np.add.reduceat(ranked.reshape(places.shape), lots, axis=1)
    held, receivers = np.zeros((groups, batches), np.int64), np.empty(given.shape, np.int64)
    for lot in range(len(lots)):
        receivers[:, lot] = order = np.argsort(held, axis=1, kind="stable")
        np.put_along_axis(held, order, np.take_along_axis(held, order, 1) + given[:, lot], 1)
    dealt = np.empty_like(places)
    rows = np.diff([*lots, size])
    np.put_along_axis(dealt, np.repeat(receivers, rows, axis=1), places, axis=2)
    return np.sort(dealt.transpose(0, 2, 1), axis=2).reshape(groups, count)


def _round_up(lengths: np.ndarray) -> np.ndarray:
    up = np.ceil(np.asarray(lengths) / _ROUND_TO).astype(np.int64) * _ROUND_TO
    return np.maximum(up, _ROUND_TO)


def ranges(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions start[i] … end[i] − 1 of all ranges, end to end, and which i each is of."""
    length = end - start
    segment = np.repeat(np.arange(len(start), dtype=np.int32), length)
    shift = start - (np.cumsum(length) - length)
    return np.arange(len(segment)) + np.repeat(shift, length), segment
