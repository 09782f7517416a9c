"""Random access to the packed batches of a run."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from din_jax.data.buckets import Buckets
from din_jax.data.length_balance import balance_lengths
from din_jax.data.packing import Batch, Packer
from din_jax.data.store import Store
from din_jax.errors import DinError

_TRIAL_GROUPS = 512  # of batches of one call, drawn to fit the buckets
_CHUNK_SAMPLES = 2048  # of small batches, packed together
_SCANNED_SAMPLES = 1 << 20  # whose lengths are in memory at once while the longest are looked for


@dataclasses.dataclass(frozen=True)
class Shards:
    """How a global batch is split among devices: B / M samples for each, in their order.

    The packed axes of all devices have the same capacities. They come from offsets, which every
    process reads for the global batch; behaviours are read only for the devices in `local`.
    """

    count: int = 1  # M
    local: range = range(1)  # this process' devices, of range(M)


class BatchSource:
    """Random access to the packed batches of a run, for Grain.

    Batch i of a shuffled source is batch i mod `batches_per_epoch` of epoch i div
    `batches_per_epoch`; every epoch has a permutation of its own, made of seed and epoch. An epoch
    has each sample once: its last batch may hold fewer, filled up with weight 0.

    Small batches are made in chunks of several: the NumPy calls for a single one would cost more
    than the work. For the same reason several steps may be taken in one call. The batches of such a
    call need the same padded lengths, so they are length-balanced: neighbouring batches exchange
    samples until their behaviours are about as many, which keeps padding small. The assignment is
    the same on any number of devices.

    Args:
      store, split: what to read.
      batch_size: B.
      max_history: see `Packer`.
      seed: of the order.
      shuffle: if False, batches follow the store's order, apart from length balancing.
      epochs: how many.
      shards: of several devices; a batch then has the axis of those in `shards.local`.
      steps_per_call: so many neighbouring batches are length-balanced and, on one device, padded
        to the same lengths. Groups begin anew with each epoch.

    Attributes:
      steps_per_call: how many neighbouring batches have the same shapes; 1 on several devices.
      batches_per_chunk, chunks: of those that are packed together.
      fingerprint: all that the order and the content of the batches depend on.
      buckets: the capacities that batches are padded to.

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
        steps_per_call: int = 1,
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
        self.fingerprint = {
            "store": store.fingerprint,
            "split": split,
            "batch_size": batch_size,
            "max_history": max_history,
            "seed": seed,
            "shuffle": shuffle,
            "balanced_batches": steps_per_call,
        }
        self._balanced_batches = steps_per_call
        # The M shards of several batches would need more padding.
        self.steps_per_call = steps_per_call if shards.count == 1 else 1
        self.batches_per_chunk = steps_per_call * max(
            1, _CHUNK_SAMPLES // (steps_per_call * batch_size)
        )
        self.chunks = epochs * -(-self.batches_per_epoch // self.batches_per_chunk)
        self._permutation = functools.lru_cache(maxsize=2)(self._permutation_of)
        self._last_chunk = functools.lru_cache(maxsize=1)(self.chunk)
        # Enough for chunks read ahead: `samples_of` must not balance them again.
        self._chunk_samples = functools.lru_cache(maxsize=8)(self._samples_of_chunk)
        self.buckets = self._fit_buckets()

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __getitem__(self, index: int) -> Batch:
        chunk, position = self.chunk_of(int(index))
        return self._last_chunk(chunk)[position]

    def chunk_of(self, index: int) -> tuple[int, int]:
        """The chunk of batch `index`, and the batch's position in it."""
        epoch, position = divmod(index, self.batches_per_epoch)
        chunk, position = divmod(position, self.batches_per_chunk)
        return epoch * (self.chunks // self.epochs) + chunk, position

    def chunk(self, index: int) -> list[Batch]:
        """Chunk `index`: at most `batches_per_chunk` neighbouring batches of an epoch."""
        samples, lengths = self._chunk_samples(index)
        size, local_size = self.batch_size, self.batch_size // self.shards.count
        groups, capacities = [], []
        for begin in range(0, len(samples), size):
            of_batch = samples[begin : begin + size]
            if begin % (self.steps_per_call * size) == 0:
                of_call = lengths[begin : begin + self.steps_per_call * size]
                capacity = self.buckets.smallest(_longest_shard(of_call, local_size))
            for m in self.shards.local:
                groups.append(of_batch[m * local_size : (m + 1) * local_size])
                capacities.append(capacity)
        packed = self.packer.pack(groups, local_size, capacities)
        if self.shards.count == 1:
            return packed
        local = len(self.shards.local)
        return [
            jax.tree.map(lambda *parts: np.stack(parts), *packed[i : i + local])
            for i in range(0, len(packed), local)
        ]

    def samples_of(self, index: int) -> np.ndarray:
        """int64: which of the store's samples batch `index` has, on all devices."""
        chunk, position = self.chunk_of(int(index))
        return self._chunk_samples(chunk)[0][position * self.batch_size :][: self.batch_size]

    def _samples_of_chunk(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of a chunk, one batch's after the other's, and their lengths."""
        epoch, chunk = divmod(chunk, self.chunks // self.epochs)
        size = self.batches_per_chunk * self.batch_size
        begin, end = chunk * size, min((chunk + 1) * size, len(self.samples))
        if self.shuffle:
            samples = self._permutation(epoch)[begin:end].astype(np.int64)
        else:
            samples = np.arange(begin, end)
        samples += self.samples.start
        lengths = self.packer.lengths(samples)
        order = self._balanced_order(lengths)
        return samples[order], lengths[order]

    def _balanced_order(self, lengths: np.ndarray) -> np.ndarray:
        """The order of samples that makes their batches length-balanced.

        Whole groups of batches are balanced, then the full batches that are left at the end; a last
        batch that is not full stays as it is.
        """
        order, totals, size = np.arange(len(lengths)), lengths.sum(axis=1), self.batch_size
        whole = len(order) // (self._balanced_batches * size) * self._balanced_batches * size
        left = (len(order) - whole) // size
        for begin, end, batches in (
            (0, whole, self._balanced_batches),
            (whole, whole + left * size, left),
        ):
            if batches > 1 and begin < end:
                groups = totals[begin:end].reshape(-1, batches * size)
                first = np.arange(begin, end, batches * size)[:, np.newaxis]
                order[begin:end] = (first + balance_lengths(groups, batches)).ravel()
        return order

    def next_group(self, index: int) -> int:
        """The first batch after `index` whose shapes may differ from its own."""
        epoch, position = divmod(index, self.batches_per_epoch)
        after = (position // self.steps_per_call + 1) * self.steps_per_call
        return epoch * self.batches_per_epoch + min(self.batches_per_epoch, after)

    def real_samples(self, index: int) -> int:
        """How many samples batch `index` has on all devices, without those of weight 0."""
        begin = int(index) % self.batches_per_epoch * self.batch_size
        return min(self.batch_size, len(self.samples) - begin)

    def _permutation_of(self, epoch: int) -> np.ndarray:
        count = len(self.samples)
        order = np.arange(count, dtype=np.uint32 if count < 1 << 32 else np.uint64)
        np.random.default_rng([self.seed, epoch]).shuffle(order)
        return order

    def _fit_buckets(self) -> Buckets:
        """Buckets for the lengths that batches have; of several devices the fullest shard counts.

        Shuffled batches are like any others drawn at random, and the longest possible one has the
        longest histories. Unshuffled ones are known, and all are looked at.
        """
        size, local_size = self.batch_size, self.batch_size // self.shards.count
        group = self.steps_per_call * size
        if not self.shuffle:
            lengths_of_calls = []
            for chunk in range(self.chunks // self.epochs):
                _, lengths = self._samples_of_chunk(chunk)
                lengths_of_calls += [
                    _longest_shard(lengths[i : i + group], local_size)
                    for i in range(0, len(lengths), group)
                ]
            known = np.stack(lengths_of_calls)
            return Buckets.fit(self.packer.axes, known, known.max(axis=0).tolist())
        longest = np.empty((0, len(self.packer.axes)), np.int64)
        for start in range(self.samples.start, self.samples.stop, _SCANNED_SAMPLES):
            stop = min(start + _SCANNED_SAMPLES, self.samples.stop)
            lengths = self.packer.lengths(np.arange(start, stop))
            longest = np.sort(np.concatenate([longest, lengths]), axis=0)[-local_size:]
        count = min(self._balanced_batches * size, len(self.samples))
        drawn = np.random.default_rng(0).integers(
            self.samples.start, self.samples.stop, size=(_TRIAL_GROUPS, count)
        )
        trials = []
        for lengths in map(self.packer.lengths, drawn):
            balanced = lengths[self._balanced_order(lengths)]
            trials.append(_longest_shard(balanced[:group], local_size))
        return Buckets.fit(self.packer.axes, np.stack(trials), longest.sum(axis=0).tolist())


def _longest_shard(lengths: np.ndarray, local_size: int) -> np.ndarray:
    """[axes]: the most that a shard of `local_size` samples holds, of lengths [samples, axes]."""
    begins = np.arange(0, len(lengths), local_size)
    return np.add.reduceat(lengths, begins, axis=0).max(axis=0)
