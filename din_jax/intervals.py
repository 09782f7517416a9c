"""Confidence intervals by the bootstrap over users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Interval(NamedTuple):
    """A statistic of all samples, and its confidence interval [low, high]."""

    value: float
    low: float
    high: float


def bootstrap(
    users: npt.NDArray[Any],
    statistic: Callable[[npt.NDArray[np.float64]], float],
    *,
    resamples: int = 400,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of a statistic (Efron 1979), over users and not over samples.

    A user's samples depend on one another, so that users are drawn, with all of their samples, as
    often as there are users, with replacement. The difference of two models, computed with the same
    weights, is paired.

    Args:
      users: [N] the user of each sample; any integers.
      statistic: of weights float64 [N], how often each sample is drawn; all metrics of
        `din_jax.metrics` take them.
      resamples: how many times users are drawn. Where the statistic is NaN, as an AUC of one class,
        a draw does not count.
      level: the fraction of intervals that hold the truth.
      seed: of the draws.

    Returns:
      The interval; NaN if there are fewer than two users, or the statistic is always NaN.
    """
    groups, group = np.unique(np.asarray(users), return_inverse=True)
    value = float(statistic(np.ones(len(group))))
    if len(groups) < 2:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    for i in range(resamples):
        drawn = np.bincount(rng.integers(len(groups), size=len(groups)), minlength=len(groups))
        found[i] = statistic(drawn[group].astype(np.float64))
    found = found[~np.isnan(found)]
    if not len(found):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def auc_statistic(
    labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> Callable[[npt.NDArray[np.float64]], float]:
    """`din_jax.metrics.auc` as a function of weights [N], for `bootstrap`: it sorts once.

    Args:
      labels: [N] 0 or 1.
      scores: [N], on any scale.
    """
    order = np.argsort(scores, kind="stable")
    y, ordered = np.asarray(labels, np.float64)[order], np.asarray(scores)[order]
    ties = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def statistic(weights: npt.NDArray[np.float64]) -> float:
        w = weights[order]
        positive, negative = (np.add.reduceat(one, ties) for one in (w * y, w * (1 - y)))
        pairs = positive.sum() * negative.sum()
        below = np.cumsum(negative) - negative / 2  # a tie counts ½
        return float(positive @ below / pairs) if pairs else float("nan")

    return statistic
