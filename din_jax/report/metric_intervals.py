"""The metrics of a model, and differences of two models, with confidence intervals over users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tqdm

from din_jax.intervals import Interval, auc_statistic, bootstrap
from din_jax.metrics import WEIGHTED, expected_calibration_error, user_auc
from din_jax.training.evaluation import Scores

Weights = npt.NDArray[np.float64]
Statistic = Callable[[Weights], float]


def statistics(
    users: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
    *,
    calibrated: bool = True,
) -> dict[str, Statistic]:
    """{metric: a function of how often each sample is drawn}, with what can be computed before.

    Args:
      users, labels, probabilities, weights: see `din_jax.metrics.all_metrics`.
      calibrated: whether `probabilities` are such, and not scores on any scale.
    """
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    found = _statistics(users, y, p, np.ones(len(y)), calibrated)
    if weights is not None:
        of_weights = _statistics(users, y, p, np.asarray(weights, np.float64), calibrated)
        found |= {f"{WEIGHTED}{name}": statistic for name, statistic in of_weights.items()}
    return found


def _statistics(
    users: npt.NDArray[Any], y: Weights, p: Weights, own: Weights, calibrated: bool
) -> dict[str, Statistic]:
    by_user = user_auc(users, y, p, own)
    # All samples of a user are drawn as often as the first of them.
    distinct, first = np.unique(users, return_index=True)
    first_of_user = first[np.searchsorted(distinct, by_user.users)]
    auc_of = auc_statistic(y, p)
    found: dict[str, Statistic] = {
        "user_weighted_auc": lambda w: _mean(by_user.auc, by_user.impressions * w[first_of_user]),
        "auc": lambda w: auc_of(own * w),
    }
    if calibrated:
        clipped = np.clip(p, 1e-15, 1 - 1e-15)
        losses = -(y * np.log(clipped) + (1 - y) * np.log1p(-clipped))
        found |= {
            "log_loss": lambda w: _mean(losses, own * w),
            "calibration_ratio": lambda w: _ratio(float(own * w @ p), float(own * w @ y)),
            "expected_calibration_error": lambda w: expected_calibration_error(
                y, p, weights=own * w
            ),
        }
    return found


def metric_intervals(scores: Scores) -> dict[str, Interval]:
    """{metric: its value and its 95 % interval}."""
    found = statistics(scores.users, scores.labels, scores.probabilities, scores.weights)
    # disable=None: no bar if the output is not a terminal
    bar = tqdm.tqdm(found.items(), desc="intervals", disable=None, leave=False)
    return {name: bootstrap(scores.users, statistic) for name, statistic in bar}


def metric_differences(
    users: npt.NDArray[Any], ours: dict[str, Statistic], theirs: dict[str, Statistic]
) -> dict[str, Interval]:
    """{metric that both have: ours minus theirs, paired over users, with its 95 % interval}.

    Args:
      users: [N] the user of each sample.
      ours, theirs: `statistics` of the same samples.
    """

    def difference(name: str) -> Statistic:
        return lambda w: ours[name](w) - theirs[name](w)

    return {name: bootstrap(users, difference(name)) for name in ours if name in theirs}


def _mean(values: Weights, weights: Weights) -> float:
    return _ratio(float(values @ weights), float(weights.sum()))


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else float("nan")
