"""A random-access source of packed batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from din_jax.data.buckets import Buckets
from din_jax.data.length_balance import balance_lengths
from din_jax.data.packing import Batch, Packer
from din_jax.data.store import Store
from din_jax.errors import DinError

_TRIAL_GROUPS = 512  # random groups of batches whose lengths `Buckets.fit` is given
_CHUNK_SAMPLES = 2048  # samples per chunk of small batches
_SCANNED_SAMPLES = 1 << 20  # samples whose lengths are in memory while searching the longest


@dataclasses.dataclass(frozen=True)
class Shards:
    """The split of a global batch into local batches of B / M consecutive samples per device.

    The packed axes of all local batches have equal capacities. These depend on offsets, which every
    process reads for the global batch. Behaviours are read only for the devices in `local`.

    Attributes:
      count: M, the number of devices.
      local: the indices of this process's devices.
    """

    count: int = 1
    local: range = range(1)


class BatchSource:
    """A random-access source of a run's packed batches, for Grain.

    Batch i is batch i mod `batches_per_epoch` of epoch i div `batches_per_epoch`. Each epoch has
    its own permutation, seeded by (seed, epoch), and has each sample once. Its last batch may have
    fewer than B samples, and is padded with samples of weight 0. The store's samples of weight 0
    are left out.

    Small batches are packed in chunks, because the overhead of NumPy's calls for a single batch
    would exceed the work. For the same reason one call may take several steps. The batches of a
    call must have equal padded lengths, so they are length-balanced: neighbouring batches exchange
    samples until they have nearly equal numbers of behaviours, which keeps padding small. The
    balancing does not depend on the number of devices.

    Args:
      store, split: the samples.
      batch_size: B.
      max_history, ages: see `Packer`.
      weighted: see `Packer`; False also keeps the samples of weight 0.
      seed: the seed of the permutations.
      shuffle: if False, batches follow the store's order, apart from length balancing.
      epochs: the number of epochs.
      shards: the split among devices. With several devices a batch has a leading axis of the
        devices in `shards.local`.
      buckets: those to use if they hold all batches, which is known before of batches that are not
        shuffled. Other ones are compiled anew.
      steps_per_call: the size of the groups of neighbouring batches that are length-balanced and,
        on one device, padded to equal lengths. Groups do not cross epochs.

    Attributes:
      samples: the split's samples in the store, of which those of weight 0 are left out.
      count: the number of samples in an epoch.
      steps_per_call: the number of neighbouring batches with equal shapes; 1 on several devices.
      batches_per_chunk, chunks: the size and the number of chunks.
      fingerprint: everything that the batches' order and content depend on.
      buckets: the capacities that batches are padded to.

    Raises:
      DinError: there is no such split, it has no samples, or none of a weight over 0, M does not
        divide B, or there are no times for `ages`.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        batch_size: int,
        *,
        max_history: int = 0,
        ages: bool = False,
        weighted: bool = True,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int = 1,
        shards: Shards = Shards(),
        steps_per_call: int = 1,
        buckets: Buckets | None = None,
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
        self.packer = Packer(store, max_history, ages=ages, weighted=weighted)
        self._kept = self._of_weight()
        self.count = len(self.samples) if self._kept is None else len(self._kept)
        if not self.count:
            raise DinError(
                f"{store.path}: all samples of the split {split!r} have weight 0 (samples/weight); "
                "prepare the store with weights over 0"
            )
        self.batches_per_epoch = -(-self.count // batch_size)
        self.fingerprint = {
            "store": store.fingerprint,
            "split": split,
            "batch_size": batch_size,
            "max_history": max_history,
            "ages": ages,
            "seed": seed,
            "shuffle": shuffle,
            "balanced_batches": steps_per_call,
        }
        self._balanced_batches = steps_per_call
        # Equal lengths of the M shards of several batches would need more padding.
        self.steps_per_call = steps_per_call if shards.count == 1 else 1
        self.batches_per_chunk = steps_per_call * max(
            1, _CHUNK_SAMPLES // (steps_per_call * batch_size)
        )
        self.chunks = epochs * -(-self.batches_per_epoch // self.batches_per_chunk)
        self._permutation = functools.lru_cache(maxsize=2)(self._permutation_of)
        self._last_chunk = functools.lru_cache(maxsize=1)(self.chunk)
        # Large enough for the prefetched chunks, so that `samples_of` does not balance them again.
        self._chunk_samples = functools.lru_cache(maxsize=8)(self._samples_of_chunk)
        self.buckets = self._fit_buckets(buckets)

    def _of_weight(self) -> npt.NDArray[Any] | None:
        """The positions in the split of the samples of a weight over 0; None if that is all."""
        if self.packer.weights is None:
            return None
        kept = self.packer.weights[self.samples.start : self.samples.stop] > 0
        return None if kept.all() else np.flatnonzero(kept)

    def _of_epoch(self, positions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """int64: the store's samples at these positions of an epoch that is not shuffled."""
        if self._kept is not None:
            positions = self._kept[positions]
        return positions.astype(np.int64) + self.samples.start

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __getitem__(self, index: int) -> Batch:
        chunk, position = self.chunk_of(int(index))
        return self._last_chunk(chunk)[position]

    def chunk_of(self, index: int) -> tuple[int, int]:
        """The chunk that contains batch `index`, and the batch's position in it."""
        epoch, position = divmod(index, self.batches_per_epoch)
        chunk, position = divmod(position, self.batches_per_chunk)
        return epoch * (self.chunks // self.epochs) + chunk, position

    def chunk(self, index: int) -> list[Batch]:
        """Packs chunk `index`: up to `batches_per_chunk` neighbouring batches of an epoch."""
        samples, lengths = self._chunk_samples(index)
        size, local_size = self.batch_size, self.batch_size // self.shards.count
        groups, capacities = [], []
        for begin in range(0, len(samples), size):
            batch_samples = samples[begin : begin + size]
            if begin % (self.steps_per_call * size) == 0:
                call_lengths = lengths[begin : begin + self.steps_per_call * size]
                capacity = self.buckets.smallest(_longest_shard(call_lengths, local_size))
            for m in self.shards.local:
                groups.append(batch_samples[m * local_size : (m + 1) * local_size])
                capacities.append(capacity)
        packed = self.packer.pack(groups, local_size, capacities)
        if self.shards.count == 1:
            return packed
        local = len(self.shards.local)
        return [
            jax.tree.map(lambda *leaves: np.stack(leaves), *packed[i : i + local])
            for i in range(0, len(packed), local)
        ]

    def samples_of(self, index: int) -> npt.NDArray[Any]:
        """int64: the store's samples in batch `index`, over all devices."""
        chunk, position = self.chunk_of(int(index))
        return self._chunk_samples(chunk)[0][position * self.batch_size :][: self.batch_size]

    def _samples_of_chunk(self, chunk: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The samples of a chunk, batch after batch, and their lengths [N, axes]."""
        epoch, chunk = divmod(chunk, self.chunks // self.epochs)
        size = self.batches_per_chunk * self.batch_size
        begin, end = chunk * size, min((chunk + 1) * size, self.count)
        samples = self._of_epoch(
            self._permutation(epoch)[begin:end] if self.shuffle else np.arange(begin, end)
        )
        lengths = self.packer.lengths(samples)
        order = self._balanced_order(lengths)
        return samples[order], lengths[order]

    def _balanced_order(self, lengths: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The order of the samples in which their batches are length-balanced.

        Balances each full group of batches, then the remaining full batches. A last batch that is
        not full is unchanged.
        """
        order, totals, size = np.arange(len(lengths)), lengths.sum(axis=1), self.batch_size
        full_groups_end = len(order) // (self._balanced_batches * size)
        full_groups_end *= self._balanced_batches * size
        remaining = (len(order) - full_groups_end) // size
        for begin, end, batches in (
            (0, full_groups_end, self._balanced_batches),
            (full_groups_end, full_groups_end + remaining * size, remaining),
        ):
            if batches > 1 and begin < end:
                groups = totals[begin:end].reshape(-1, batches * size)
                first = np.arange(begin, end, batches * size)[:, np.newaxis]
                order[begin:end] = (first + balance_lengths(groups, batches)).ravel()
        return order

    def next_group(self, index: int) -> int:
        """The index of the first batch of the next group, whose shapes may differ."""
        epoch, position = divmod(index, self.batches_per_epoch)
        group_end = (position // self.steps_per_call + 1) * self.steps_per_call
        return epoch * self.batches_per_epoch + min(self.batches_per_epoch, group_end)

    def real_samples(self, index: int) -> int:
        """The number of samples in batch `index` over all devices, without padding."""
        begin = int(index) % self.batches_per_epoch * self.batch_size
        return min(self.batch_size, self.count - begin)

    def _permutation_of(self, epoch: int) -> npt.NDArray[Any]:
        count = self.count
        order = np.arange(count, dtype=np.uint32 if count < 1 << 32 else np.uint64)
        np.random.default_rng([self.seed, epoch]).shuffle(order)
        return order

    def _fit_buckets(self, given: Buckets | None) -> Buckets:
        """Fits the buckets to the batches' lengths; on several devices, to their longest shards.

        If the batches are shuffled, random batches have their distribution of lengths, and the
        longest possible batch has the samples with the longest histories. Otherwise the lengths of
        all batches are used.
        """
        size, local_size = self.batch_size, self.batch_size // self.shards.count
        group = self.steps_per_call * size
        if not self.shuffle:
            call_lengths = []
            for chunk in range(self.chunks // self.epochs):
                _, lengths = self._samples_of_chunk(chunk)
                call_lengths += [
                    _longest_shard(lengths[i : i + group], local_size)
                    for i in range(0, len(lengths), group)
                ]
            all_lengths = np.stack(call_lengths)
            if given is not None and (all_lengths <= np.array(given.sizes[-1])).all():
                return given
            return Buckets.fit(self.packer.axes, all_lengths, all_lengths.max(axis=0).tolist())
        longest = np.empty((0, len(self.packer.axes)), np.int64)
        for start in range(0, self.count, _SCANNED_SAMPLES):
            stop = min(start + _SCANNED_SAMPLES, self.count)
            lengths = self.packer.lengths(self._of_epoch(np.arange(start, stop)))
            longest = np.sort(np.concatenate([longest, lengths]), axis=0)[-local_size:]
        count = min(self._balanced_batches * size, self.count)
        random_groups = np.random.default_rng(0).integers(self.count, size=(_TRIAL_GROUPS, count))
        trials = []
        for lengths in map(self.packer.lengths, map(self._of_epoch, random_groups)):
            balanced = lengths[self._balanced_order(lengths)]
            trials.append(_longest_shard(balanced[:group], local_size))
        return Buckets.fit(self.packer.axes, np.stack(trials), longest.sum(axis=0).tolist())


def _longest_shard(lengths: npt.NDArray[Any], local_size: int) -> npt.NDArray[Any]:
    """[axes] the greatest total length of a shard of `local_size` samples.

    Args:
      lengths: [samples, axes].
      local_size: B / M.
    """
    begins = np.arange(0, len(lengths), local_size)
    longest: npt.NDArray[Any] = np.add.reduceat(lengths, begins, axis=0).max(axis=0)
    return longest
