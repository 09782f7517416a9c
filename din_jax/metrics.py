"""AUC, log loss, user-weighted AUC (Eq. 10), RelaImpr (Eq. 11) and calibration.

All are computed exactly, in vectorised float64 NumPy. In an AUC a tie counts ½. With the samples'
weights, a sample of weight 2 counts as two equal samples, and one of weight 0 not at all.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Weighting = Literal["impressions", "positives", "users"]
WEIGHTED = "weighted_"  # what the names of metrics with the samples' weights begin with
_SELECTABLE = ("user_weighted_auc", "auc", "log_loss")
# The metrics that may choose the best weights of a run; those with weights if the store has them.
SELECTABLE = (*_SELECTABLE, *(f"{WEIGHTED}{name}" for name in _SELECTABLE))


def auc(
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
) -> float:
    """Area under the ROC curve: the fraction of (positive, negative) pairs in the right order.

    With weights a pair counts the product of its two weights.

    Args:
      labels: [N] 0 or 1.
      scores: [N], on any scale.
      weights: [N] the samples' weights, by default 1.

    Returns:
      A number in [0, 1]; NaN if all labels are equal, of the samples whose weight is not 0.

    Raises:
      ValueError: see `user_auc`.
    """
    single_user = np.zeros(len(labels), np.int64)
    return user_auc(single_user, labels, scores, weights).weighted("impressions")


class UserAUC(NamedTuple):
    """The AUC of each user who has both classes; users with only one class are skipped.

    Attributes:
      users: [U] the users, ascending.
      auc: [U] AUC within each user's samples.
      impressions: [U] the number of samples, or the sum of their weights.
      positives: [U] the same of the samples with label 1.
      skipped: the number of users with only one class, of the samples whose weight is not 0.
    """

    users: npt.NDArray[Any]
    auc: npt.NDArray[Any]
    impressions: npt.NDArray[Any]
    positives: npt.NDArray[Any]
    skipped: int

    def weighted(self, weighting: Weighting) -> float:
        """The weighted mean over users; NaN if there is none.

        Args:
          weighting: "impressions" (Eq. 10); "positives", by clicks, as Eq. 10's text ("#impression
            or click") allows; or "users", unweighted.
        """
        weight = {
            "impressions": self.impressions,
            "positives": self.positives,
            "users": np.ones(len(self.auc)),
        }[weighting]
        return float(np.average(self.auc, weights=weight)) if len(self.auc) else float("nan")


def user_auc(
    users: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
) -> UserAUC:
    """Computes the AUC within each user's samples.

    Args:
      users: [N] the user of each sample; any integers.
      labels: [N] 0 or 1.
      scores: [N], on any scale.
      weights: [N] the samples' weights, by default 1.

    Raises:
      ValueError: the lengths differ, a label is neither 0 nor 1, a score is NaN, or a weight is
        negative, infinite or NaN.
    """
    users, labels, scores, weights = _checked(users, labels, scores, weights)
    if not len(users):
        empty = np.empty(0)
        return UserAUC(users, empty, empty, empty, 0)
    order = np.lexsort((scores, users))
    users, scores = users[order], scores[order]
    positive, negative = (weights * labels)[order], (weights * (1 - labels))[order]
    new_user = np.concatenate([[True], users[1:] != users[:-1]])
    new_tie = new_user | np.concatenate([[True], scores[1:] != scores[:-1]])
    # The first sample of each group of ties, and the first group of each user.
    tie_start = np.flatnonzero(new_tie)
    first_tie = np.flatnonzero(new_user[tie_start])
    ties = np.diff(np.append(first_tie, len(tie_start)))
    positive, negative = (np.add.reduceat(one, tie_start) for one in (positive, negative))
    # The user's negatives with lower scores than each group, and half of those with equal scores.
    below = np.cumsum(negative) - negative
    below = below - np.repeat(below[first_tie], ties) + negative / 2
    positives, negatives, in_order = (
        np.add.reduceat(one, first_tie) for one in (positive, negative, positive * below)
    )
    both = (positives > 0) & (negatives > 0)
    p, n = positives[both].astype(np.float64), negatives[both].astype(np.float64)
    return UserAUC(
        users=users[tie_start[first_tie]][both],
        auc=in_order[both] / (p * n),
        impressions=(positives + negatives)[both],
        positives=positives[both],
        skipped=int((~both).sum()),
    )


def user_weighted_auc(
    users: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
) -> float:
    """User-weighted AUC (Eq. 10): the mean AUC of users, weighted by impressions.

    Users whose labels are all equal are skipped. With the samples' weights, a user's impressions
    are the sum of theirs.

    Args: see `user_auc`.

    Returns:
      A number in [0, 1]; NaN if all users are skipped.

    Raises:
      ValueError: see `user_auc`.
    """
    return user_auc(users, labels, scores, weights).weighted("impressions")


def log_loss(
    labels: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
) -> float:
    """Mean negative log-likelihood, in nats; probabilities are clipped to [1e-15, 1 − 1e-15].

    With `weights` [N] it is the weighted mean; NaN if all are 0.
    """
    p = np.clip(np.asarray(probabilities, np.float64), 1e-15, 1 - 1e-15)
    y = np.asarray(labels, np.float64)
    return -_mean(y * np.log(p) + (1 - y) * np.log1p(-p), weights)


def calibration_ratio(
    labels: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
) -> float:
    """Mean prediction over mean label: 1 is calibrated, more than 1 overestimates.

    With `weights` [N] both are weighted means. NaN if no label, of a weight over 0, is 1.
    """
    mean_label = _mean(np.asarray(labels, np.float64), weights)
    if not mean_label:
        return float("nan")
    return _mean(np.asarray(probabilities, np.float64), weights) / mean_label


def expected_calibration_error(
    labels: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    bins: int = 10,
    weights: npt.NDArray[Any] | None = None,
) -> float:
    """ECE: the mean of |mean prediction − mean label| over bins of equal width, by samples.

    With `weights` [N] all means are weighted; NaN if all weights are 0.
    """
    p = np.asarray(probabilities, np.float64)
    y = np.asarray(labels, np.float64)
    bin_index = np.minimum((p * bins).astype(np.int64), bins - 1)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    gap = np.bincount(bin_index, weights=w * (p - y), minlength=bins)
    return float(np.abs(gap).sum() / w.sum()) if w.any() else float("nan")


def rela_impr(measured: float, base: float) -> float:
    """RelaImpr (Eq. 11): the relative increase of AUC − 0.5 over that of `base`, in per cent.

    0.5 is the AUC of chance. NaN if `base` is not above 0.5.
    """
    return ((measured - 0.5) / (base - 0.5) - 1) * 100 if base > 0.5 else float("nan")


def _mean(values: npt.NDArray[np.float64], weights: npt.NDArray[Any] | None) -> float:
    """The weighted mean of values [N]; NaN if all weights are 0."""
    if weights is None:
        return float(np.mean(values))
    weights = np.asarray(weights, np.float64)
    return float(np.average(values, weights=weights)) if weights.any() else float("nan")


def lower_is_better(metric: str) -> bool:
    """Whether the smaller value of a metric of `config.train.select` is the better one."""
    return metric.removeprefix(WEIGHTED) == "log_loss"


def all_metrics(
    users: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    probabilities: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None = None,
) -> dict[str, float]:
    """Computes all metrics, under the names that the commands print.

    Args:
      users: [N] the user of each sample.
      labels: [N] 0 or 1.
      probabilities: [N] predicted click probabilities.
      weights: [N] the samples' weights. With them the metrics that take them follow the others,
        with "weighted_" before their names.

    Raises:
      ValueError: see `user_auc`.
    """
    by_user = user_auc(users, labels, probabilities)
    found = {
        "user_weighted_auc": by_user.weighted("impressions"),
        "auc": auc(labels, probabilities),
        "log_loss": log_loss(labels, probabilities),
        "positive_weighted_auc": by_user.weighted("positives"),
        "unweighted_user_auc": by_user.weighted("users"),
        "calibration_ratio": calibration_ratio(labels, probabilities),
        "expected_calibration_error": expected_calibration_error(labels, probabilities),
        "samples": len(labels),
        "users": len(by_user.auc) + by_user.skipped,
        "users_skipped": by_user.skipped,
    }
    if weights is None:
        return found
    by_user = user_auc(users, labels, probabilities, weights)
    weighted = {
        "user_weighted_auc": by_user.weighted("impressions"),
        "auc": auc(labels, probabilities, weights),
        "log_loss": log_loss(labels, probabilities, weights),
        "calibration_ratio": calibration_ratio(labels, probabilities, weights),
        "expected_calibration_error": expected_calibration_error(
            labels, probabilities, weights=weights
        ),
        "users_skipped": by_user.skipped,
    }
    return found | {f"{WEIGHTED}{name}": value for name, value in weighted.items()}


class PairedDifference(NamedTuple):
    """The mean difference of two models' AUC over the same users, and its 95 % interval."""

    mean: float
    low: float
    high: float
    users: int


def paired_difference(ours: UserAUC, theirs: UserAUC) -> PairedDifference:
    """The difference of user-weighted AUC, `ours` minus `theirs`, paired over users.

    The interval is the normal approximation of a weighted mean over independent users, with Eq.
    10's weights: mean ± 1.96 · sqrt(Σ w²(d − mean)²) / Σ w.

    Raises:
      ValueError: the two have different users or impressions.
    """
    if not np.array_equal(ours.users, theirs.users) or not np.array_equal(
        ours.impressions, theirs.impressions
    ):
        raise ValueError("a paired difference needs both models scored on the same samples")
    difference = ours.auc - theirs.auc
    weight = ours.impressions
    if not len(weight):
        return PairedDifference(float("nan"), float("nan"), float("nan"), 0)
    mean = float(np.average(difference, weights=weight))
    error = float(np.sqrt(np.sum((weight * (difference - mean)) ** 2)) / weight.sum())
    return PairedDifference(mean, mean - 1.96 * error, mean + 1.96 * error, len(difference))


def _checked(
    users: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    weights: npt.NDArray[Any] | None,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Converts the arguments of `user_auc` to arrays; raises ValueError if they are invalid."""
    users, scores = np.asarray(users), np.asarray(scores, np.float64)
    raw, labels = np.asarray(labels), np.asarray(labels).astype(np.int64)
    if not len(users) == len(labels) == len(scores):
        raise ValueError(f"{len(users)} users, {len(labels)} labels, {len(scores)} scores")
    if not np.array_equal(raw, labels) or ((labels != 0) & (labels != 1)).any():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    if weights is None:
        return users, labels, scores, np.ones(len(users), np.int64)
    weights = np.asarray(weights, np.float64)
    if len(weights) != len(users):
        raise ValueError(f"{len(weights)} weights for {len(users)} samples")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights must be finite numbers from 0 on")
    return users, labels, scores, weights
