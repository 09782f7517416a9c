"""Draws goods by popularity, from all or from a bundle of categories."""

from __future__ import annotations

import numpy as np


class GoodsOfBundles:
    """Draws goods in proportion to a weight: from all, or from given bundles.

    Args:
      bundle_of_good: [goods] from 0 on; every bundle up to the last has at least one good.
      weight: [goods] positive.
    """

    def __init__(self, bundle_of_good: np.ndarray, weight: np.ndarray):
        self.order = np.argsort(bundle_of_good, kind="stable")
        self.cumulative = np.concatenate([[0.0], np.cumsum(weight[self.order])])
        counts = np.bincount(bundle_of_good)
        self.first = np.concatenate([[0], np.cumsum(counts)])

    def of(self, rng: np.random.Generator, bundle: np.ndarray) -> np.ndarray:
        """A good of each of the bundles."""
        low = self.cumulative[self.first[bundle]]
        high = self.cumulative[self.first[bundle + 1]]
        return self._at(low + (high - low) * rng.random(len(bundle)))

    def any(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """As many goods, of all."""
        return self._at(self.cumulative[-1] * rng.random(size))

    def _at(self, x: np.ndarray) -> np.ndarray:
        at = np.searchsorted(self.cumulative, x, side="right") - 1
        return self.order[np.minimum(at, len(self.order) - 1)]


def pick(
    rng: np.random.Generator, interests: np.ndarray, count: np.ndarray, user: np.ndarray
) -> np.ndarray:
    """One of each user's first `count[user]` interests, uniformly."""
    return interests[user, (rng.random(len(user)) * count[user]).astype(np.int64)]
