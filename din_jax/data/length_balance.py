"""Length balancing: neighbouring batches exchange samples, so that their lengths nearly agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_SINGLE_ROUNDS = 8  # rounds, with the longest samples, that are assigned one at a time


def balance_lengths(lengths: npt.NDArray[Any], batches: int) -> npt.NDArray[Any]:
    """Assigns the samples of each group to its batches so that total lengths are nearly equal.

    A greedy algorithm, in rounds that give each batch one sample, the longest samples first: in
    each round the batch with the smallest total length gets the longest sample.

    Args:
      lengths: [G, batches · B] the lengths of the samples of G groups.
      batches: the number of batches in each group.

    Returns:
      [G, batches · B] positions in the group: those of the first batch, ascending, then those of
      the second, and so on.
    """
    groups, count = lengths.shape
    size = count // batches
    positions = np.argsort(-lengths, axis=1, kind="stable").reshape(groups, size, batches)
    positions[:, 0].sort(axis=1)  # otherwise the longest sample would always be in the first batch
    ranked = np.take_along_axis(lengths, positions.reshape(groups, count), axis=1)
    # Each row of `positions` is a round. Several rounds of short samples are assigned together: it
    # takes fewer NumPy calls, and balances as well.
    single = min(size, _SINGLE_ROUNDS)
    begins = [*range(single), *range(single, size, max(1, -(-(size - single) // 4)))]
    added = np.add.reduceat(ranked.reshape(positions.shape), begins, axis=1)
    totals, receivers = np.zeros((groups, batches), np.int64), np.empty(added.shape, np.int64)
    for i in range(len(begins)):
        receivers[:, i] = order = np.argsort(totals, axis=1, kind="stable")
        np.put_along_axis(totals, order, np.take_along_axis(totals, order, 1) + added[:, i], 1)
    assigned = np.empty_like(positions)
    rounds = np.diff([*begins, size])
    np.put_along_axis(assigned, np.repeat(receivers, rounds, axis=1), positions, axis=2)
    return np.sort(assigned.transpose(0, 2, 1), axis=2).reshape(groups, count)
