"""Length-balanced batches: samples are exchanged between neighbouring batches."""

from __future__ import annotations

import numpy as np

_DEALT_SINGLY = 8  # samples of a batch that are dealt one by one, the longest; the rest in lots


def balance_lengths(sizes: np.ndarray, batches: int) -> np.ndarray:
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
