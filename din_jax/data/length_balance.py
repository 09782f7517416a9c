"""Length-balanced batches: neighbouring batches exchange samples, so that they are equally long."""

from __future__ import annotations

import numpy as np

_ONE_BY_ONE = 8  # rounds of single samples, of the longest ones; later rounds go several at a time


def balance_lengths(lengths: np.ndarray, batches: int) -> np.ndarray:
    """Assigns the samples of each group to its batches, so that total lengths are nearly equal.

    Greedy, in rounds of one sample a batch, the longest samples first: in each round the batch with
    the smallest total gets the longest sample.

    Args:
      lengths: [G, batches · B] of the samples of G groups.
      batches: of each group.

    Returns:
      [G, batches · B]: positions in the group: the first batch's, ascending, then the second's, and
      so on.
    """
    groups, count = lengths.shape
    size = count // batches
    positions = np.argsort(-lengths, axis=1, kind="stable").reshape(groups, size, batches)
    positions[:, 0].sort(axis=1)  # else the longest of all would always be in the first batch
    ranked = np.take_along_axis(lengths, positions.reshape(groups, count), axis=1)
    # Each row of `positions` is a round. Rounds of short samples are assigned several at a time:
    # fewer calls, and the totals are as even.
    single = min(size, _ONE_BY_ONE)
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
