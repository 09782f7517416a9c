"""Buckets: the few padded lengths of the packed axes for which a step is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_MULTIPLE = 8  # capacities are multiples of this
_QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.97, 1.0)  # of the trial batches' lengths: typical buckets
_CLOSE = 1.05  # a typical bucket is dropped if the next one is larger by less than this factor
_GROWTH = 1.5  # growth factor of the buckets above the typical ones


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Capacities (padded lengths) of the packed axes, one tuple per bucket.

    The largest bucket holds any batch. All axes of a batch are padded to the same bucket: with one
    bucket per axis the number of compilations would be the product of their numbers of buckets.

    Attributes:
      axes: names of the packed axes: "SEQUENCE" (T), "SEQUENCE.FIELD" (a behaviour's multi-hot
        field) and "FIELD" (a sample's multi-hot field).
      sizes: the capacities of each bucket, in the order of `axes`; ascending.
    """

    axes: tuple[str, ...]
    sizes: tuple[tuple[int, ...], ...]

    @staticmethod
    def fit(axes: Sequence[str], lengths: npt.NDArray[Any], longest: Sequence[int]) -> Buckets:
        """Chooses buckets from the lengths of trial batches.

        Args:
          axes: names of the packed axes.
          lengths: [batches, axes] lengths of trial batches.
          longest: [axes] the greatest lengths that a batch can have.
        """
        if not axes:
            return Buckets((), ((),))
        largest = _round_up(np.asarray(longest))
        typical = [_round_up(np.quantile(lengths, q, axis=0)) for q in _QUANTILES]
        sizes = [np.minimum(typical.pop(), largest)]
        while typical:
            size = np.minimum(typical.pop(), sizes[0])
            if (sizes[0] > size * _CLOSE).any():
                sizes.insert(0, size)
        while (sizes[-1] < largest).any():
            sizes.append(np.minimum(_round_up(sizes[-1] * _GROWTH), largest))
        return Buckets(tuple(axes), tuple(tuple(int(c) for c in size) for size in sizes))

    def smallest(self, lengths: Iterable[int]) -> dict[str, int]:
        """Returns the capacities {axis: int} of the smallest bucket that holds `lengths` [axes].

        Raises:
          ValueError: no bucket holds them.
        """
        lengths = tuple(int(n) for n in lengths)
        for size in self.sizes:
            if all(n <= capacity for n, capacity in zip(lengths, size, strict=True)):
                return dict(zip(self.axes, size, strict=True))
        raise ValueError(f"lengths {lengths} of {self.axes} exceed {self.sizes[-1]}")


def _round_up(lengths: npt.NDArray[Any]) -> npt.NDArray[Any]:
    rounded = np.ceil(np.asarray(lengths) / _MULTIPLE).astype(np.int64) * _MULTIPLE
    return np.maximum(rounded, _MULTIPLE)
