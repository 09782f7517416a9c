"""Random access to the packed batches of a run."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from din_jax.data.buckets import Ladder
from din_jax.data.length_balance import balance_lengths
from din_jax.data.packing import Batch, Packer
from din_jax.data.store import Store
from din_jax.errors import DinError

_TRIAL_GROUPS = 512  # of batches that are alike, drawn to find the quantiles
_SAMPLES_AT_ONCE = 2048  # of small batches, packed together
_SAMPLES_A_LOOK = 1 << 20  # whose lengths are held in memory at once


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
                order[begin:end] = (first + balance_lengths(groups, batches)).ravel()
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


def _most(lengths: np.ndarray, share: int) -> np.ndarray:
    """[axes]: the most that a device's share of the samples takes, of lengths [samples, axes]."""
    return np.add.reduceat(lengths, np.arange(0, len(lengths), share), axis=0).max(axis=0)
