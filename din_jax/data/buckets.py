"""Bucket sizes of the packed axes: the few padded lengths that a compiled step meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

_ROUND_TO = 8  # capacities are multiples of this
_RUNGS_AT = (0.25, 0.5, 0.75, 0.9, 0.97, 1.0)  # quantiles of batches' totals: the common rungs
_CLOSE = 1.05  # a common rung that is closer than this to the next is left out
_FAR = 1.5  # beyond the common ones, each rung is this much larger than the one before


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


def _round_up(lengths: np.ndarray) -> np.ndarray:
    up = np.ceil(np.asarray(lengths) / _ROUND_TO).astype(np.int64) * _ROUND_TO
    return np.maximum(up, _ROUND_TO)
