"""Samples goods by popularity, from all goods or from the categories of one bundle."""

from __future__ import annotations

import numpy as np


class GoodsSampler:
    """Samples goods with probability proportional to a weight.

    Args:
      bundle_of_good: [goods] bundle numbers from 0 on; every bundle has at least one good.
      weight: [goods] positive.
    """

    def __init__(self, bundle_of_good: np.ndarray, weight: np.ndarray):
        self._order = np.argsort(bundle_of_good, kind="stable")
        self._cumulative = np.concatenate([[0.0], np.cumsum(weight[self._order])])
        goods_per_bundle = np.bincount(bundle_of_good)
        self._first = np.concatenate([[0], np.cumsum(goods_per_bundle)])

    def from_bundles(self, rng: np.random.Generator, bundle: np.ndarray) -> np.ndarray:
        """[len(bundle)] one good from each given bundle."""
        low = self._cumulative[self._first[bundle]]
        high = self._cumulative[self._first[bundle + 1]]
        return self._goods_at(low + (high - low) * rng.random(len(bundle)))

    def from_all(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """[size] goods from the whole catalogue."""
        return self._goods_at(self._cumulative[-1] * rng.random(size))

    def _goods_at(self, cumulative_weight: np.ndarray) -> np.ndarray:
        index = np.searchsorted(self._cumulative, cumulative_weight, side="right") - 1
        goods: np.ndarray = self._order[np.minimum(index, len(self._order) - 1)]
        return goods


def sample_interests(
    rng: np.random.Generator, interests: np.ndarray, count: np.ndarray, user: np.ndarray
) -> np.ndarray:
    """[len(user)] for each entry, one of that user's first `count[user]` interests, uniformly."""
    column = (rng.random(len(user)) * count[user]).astype(np.int64)
    sampled: np.ndarray = interests[user, column]
    return sampled
