"""AUC, log loss, user-weighted AUC (Eq. 10), RelaImpr (Eq. 11) and calibration.

All are computed exactly, in vectorised float64 NumPy. In an AUC a tie counts ½.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Weighting = Literal["impressions", "positives", "users"]


def auc(labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> float:
    """Area under the ROC curve: the fraction of (positive, negative) pairs in the right order.

    Args:
      labels: [N] 0 or 1.
      scores: [N], on any scale.

    Returns:
      A number in [0, 1]; NaN if all labels are equal.
    """
    single_user = np.zeros(len(labels), np.int64)
    return user_auc(single_user, labels, scores).weighted("impressions")


class UserAUC(NamedTuple):
    """The AUC of each user who has both classes; users with only one class are skipped.

    Attributes:
      users: [U] the users, ascending.
      auc: [U] AUC within each user's samples.
      impressions: [U] the number of samples.
      positives: [U] the number of samples with label 1.
      skipped: the number of users with only one class.
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
    users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> UserAUC:
    """Computes the AUC within each user's samples.

    Args:
      users: [N] the user of each sample; any integers.
      labels: [N] 0 or 1.
      scores: [N], on any scale.

    Raises:
      ValueError: the lengths differ, a label is neither 0 nor 1, or a score is NaN.
    """
    users, labels, scores = _checked(users, labels, scores)
    if not len(users):
        empty = np.empty(0)
        return UserAUC(users, empty, empty, empty, 0)
    order = np.lexsort((scores, users))
    users, labels, scores = users[order], labels[order], scores[order]
    new_user = np.concatenate([[True], users[1:] != users[:-1]])
    new_tie = new_user | np.concatenate([[True], scores[1:] != scores[:-1]])
    # The first sample of each user and of each group of ties, and the index of each sample's group.
    user_start, tie_start = np.flatnonzero(new_user), np.flatnonzero(new_tie)
    user_index, tie_index = np.cumsum(new_user) - 1, np.cumsum(new_tie) - 1
    tie_size = np.diff(np.append(tie_start, len(users)))
    # The midrank within the user, from 1: tied samples have the mean of their ranks.
    midrank = tie_start[tie_index] - user_start[user_index] + (tie_size[tie_index] + 1) / 2

    impressions = np.diff(np.append(user_start, len(users)))
    positives = np.add.reduceat(labels, user_start)
    negatives = impressions - positives
    rank_sum = np.add.reduceat(midrank * labels, user_start)
    both = (positives > 0) & (negatives > 0)
    p, n = positives[both].astype(np.float64), negatives[both].astype(np.float64)
    return UserAUC(
        users=users[user_start][both],
        auc=(rank_sum[both] - p * (p + 1) / 2) / (p * n),
        impressions=impressions[both],
        positives=positives[both],
        skipped=int((~both).sum()),
    )


def user_weighted_auc(
    users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> float:
    """User-weighted AUC (Eq. 10): the mean AUC of users, weighted by impressions.

    Users whose labels are all equal are skipped.

    Args: see `user_auc`.

    Returns:
      A number in [0, 1]; NaN if all users are skipped.

    Raises:
      ValueError: see `user_auc`.
    """
    return user_auc(users, labels, scores).weighted("impressions")


def log_loss(labels: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> float:
    """Mean negative log-likelihood, in nats; probabilities are clipped to [1e-15, 1 − 1e-15]."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-15, 1 - 1e-15)
    y = np.asarray(labels, np.float64)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def calibration_ratio(labels: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> float:
    """Mean prediction over mean label: 1 is calibrated, more than 1 overestimates."""
    mean_label = float(np.mean(labels))
    if not mean_label:
        return float("nan")
    return float(np.mean(probabilities, dtype=np.float64)) / mean_label


def expected_calibration_error(
    labels: npt.NDArray[Any], probabilities: npt.NDArray[Any], bins: int = 10
) -> float:
    """ECE: the mean of |mean prediction − mean label| over bins of equal width, by samples."""
    p = np.asarray(probabilities, np.float64)
    y = np.asarray(labels, np.float64)
    bin_index = np.minimum((p * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_index, weights=p - y, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def rela_impr(measured: float, base: float) -> float:
    """RelaImpr (Eq. 11): the relative increase of AUC − 0.5 over that of `base`, in per cent.

    0.5 is the AUC of chance. NaN if `base` is not above 0.5.
    """
    return ((measured - 0.5) / (base - 0.5) - 1) * 100 if base > 0.5 else float("nan")


def all_metrics(
    users: npt.NDArray[Any], labels: npt.NDArray[Any], probabilities: npt.NDArray[Any]
) -> dict[str, float]:
    """Computes all metrics, under the names that the commands print.

    Args:
      users: [N] the user of each sample.
      labels: [N] 0 or 1.
      probabilities: [N] predicted click probabilities.
    """
    by_user = user_auc(users, labels, probabilities)
    return {
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
    users: npt.NDArray[Any], labels: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Converts the arguments of `user_auc` to arrays; raises ValueError if they are invalid."""
    users, scores = np.asarray(users), np.asarray(scores, np.float64)
    raw, labels = np.asarray(labels), np.asarray(labels).astype(np.int64)
    if not len(users) == len(labels) == len(scores):
        raise ValueError(f"{len(users)} users, {len(labels)} labels, {len(scores)} scores")
    if not np.array_equal(raw, labels) or ((labels != 0) & (labels != 1)).any():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    return users, labels, scores
