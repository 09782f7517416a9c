"""Bucket sizes of the packed axes: the few padded lengths that a compiled step meets."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

_MULTIPLE = 8  # capacities are multiples of this
_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.97, 1.0)  # of batches' lengths, for the common buckets
_CLOSE = 1.05  # a common bucket that is closer than this to the next one is left out
_GROWTH = 1.5  # beyond the common ones each bucket is larger than the one before by this factor


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Bucket i fixes a capacity (padded length) for each packed axis; the last holds any batch.

    All axes of a batch share one bucket, so that the number of compilations does not multiply.

    Attributes:
      axes: "SEQUENCE" (T), "SEQUENCE.FIELD" (a behaviour's multi-hot field) and "FIELD" (a
        sample's).
      sizes: one tuple of capacities a bucket, ascending, in the order of `axes`.
    """

    axes: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]

    @staticmethod
    def fit(axes: Sequence[str], lengths: np.ndarray, longest: Sequence[int]) -> Buckets:
        """Few buckets for batches like those given.

        Args:
          axes: names of the packed axes.
          lengths: [batches, axes] of trial batches.
          longest: [axes] what a batch can hold at most.
        """
        if not axes:
            return Buckets((), ((),))
        top = _round_up(np.asarray(longest))
        common = [_round_up(np.quantile(lengths, q, axis=0)) for q in _QUANTILES]
        sizes = [np.minimum(common.pop(), top)]
        while common:
            size = np.minimum(common.pop(), sizes[0])
            if (sizes[0] > size * _CLOSE).any():
                sizes.insert(0, size)
        while (sizes[-1] < top).any():
            sizes.append(np.minimum(_round_up(sizes[-1] * _GROWTH), top))
        return Buckets(tuple(axes), tuple(tuple(int(c) for c in size) for size in sizes))

    def smallest(self, lengths: Iterable[int]) -> dict[str, int]:
        """The capacities {axis: int} of the smallest bucket that holds `lengths`, one an axis.

        Raises:
          ValueError: no bucket does.
        """
        lengths = tuple(int(n) for n in lengths)
        for size in self.sizes:
            if all(n <= capacity for n, capacity in zip(lengths, size, strict=True)):
                return dict(zip(self.axes, size, strict=True))
        raise ValueError(f"lengths {lengths} of {self.axes} exceed {self.sizes[-1]}")


def _round_up(lengths: np.ndarray) -> np.ndarray:
    up = np.ceil(np.asarray(lengths) / _MULTIPLE).astype(np.int64) * _MULTIPLE
    return np.maximum(up, _MULTIPLE)
