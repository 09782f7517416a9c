"""AUC, log loss, user-weighted AUC (Eq. 10), RelaImpr (Eq. 11), calibration.

All are exact and vectorised, in float64 NumPy; a tie between a positive and a negative is worth ½.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Weighting = Literal["impressions", "positives", "users"]


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the fraction of (positive, negative) pairs in the right order.

    Args:
      labels: [N] 0 or 1.
      scores: [N], in any scale.

    Returns:
      A number in [0, 1]; NaN if all labels are the same.
    """
    everyone = np.zeros(len(labels), np.int64)
    return user_auc(everyone, labels, scores).weighted("impressions")


class UserAUC(NamedTuple):
    """The AUC of each user who has both a positive and a negative; the others are skipped."""

    users: np.ndarray  # [U] the users, ascending
    auc: np.ndarray  # [U]
    impressions: np.ndarray  # [U] samples of the user
    positives: np.ndarray  # [U]
    skipped: int  # users of one class only

    def weighted(self, weighting: Weighting) -> float:
        """The mean over users; Eq. 10 with "impressions". NaN if there is no user.

        "positives" weights a user by clicks, as Eq. 10's text ("#impression or click") allows;
        "users" counts each user once.
        """
        weight = {
            "impressions": self.impressions,
            "positives": self.positives,
            "users": np.ones(len(self.auc)),
        }[weighting]
        return float(np.average(self.auc, weights=weight)) if len(self.auc) else float("nan")


def user_auc(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> UserAUC:
    """The AUC within each user's samples.

    Args:
      users: [N] whose sample it is; any integers.
      labels: [N] 0 or 1.
      scores: [N], in any scale.

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
    user_at = np.flatnonzero(new_user)
    # Midrank within the user: tied samples share the mean of their places (from 1).
    tie_at = np.flatnonzero(new_tie)
    tie_of = np.cumsum(new_tie) - 1
    tie_size = np.diff(np.append(tie_at, len(users)))
    user_of = np.cumsum(new_user) - 1
    midrank = tie_at[tie_of] - user_at[user_of] + (tie_size[tie_of] + 1) / 2

    impressions = np.diff(np.append(user_at, len(users)))
    positives = np.add.reduceat(labels, user_at)
    negatives = impressions - positives
    rank_sum = np.add.reduceat(midrank * labels, user_at)
    both = (positives > 0) & (negatives > 0)
    p, n = positives[both].astype(np.float64), negatives[both].astype(np.float64)
    return UserAUC(
        users=users[user_at][both],
        auc=(rank_sum[both] - p * (p + 1) / 2) / (p * n),
        impressions=impressions[both],
        positives=positives[both],
        skipped=int((~both).sum()),
    )


def user_weighted_auc(users: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> float:
    """User-weighted AUC (Eq. 10): the mean AUC of users, weighted by impressions.

    Users whose labels are all the same are left out.

    Args: see `user_auc`.

    Returns:
      A number in [0, 1]; NaN if no user is left.

    Raises:
      ValueError: see `user_auc`.
    """
    return user_auc(users, labels, scores).weighted("impressions")


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean negative log-likelihood, in nats; probabilities are clipped to [1e-15, 1 − 1e-15]."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-15, 1 - 1e-15)
    y = np.asarray(labels, np.float64)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def calibration_ratio(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean prediction over mean label: 1 is calibrated, above 1 overestimates."""
    clicks = float(np.mean(labels))
    return float(np.mean(probabilities, dtype=np.float64)) / clicks if clicks else float("nan")


def expected_calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = 10
) -> float:
    """ECE: mean |mean prediction − mean label| over equally wide bins, weighted by samples."""
    p = np.asarray(probabilities, np.float64)
    y = np.asarray(labels, np.float64)
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    gap = np.bincount(bin_of, weights=p - y, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def rela_impr(measured: float, base: float) -> float:
    """RelaImpr (Eq. 11), in per cent: how much farther from 0.5, the AUC of chance, than `base`.

    NaN if `base` is not above 0.5: there is nothing then that could be improved on.
    """
    return ((measured - 0.5) / (base - 0.5) - 1) * 100 if base > 0.5 else float("nan")


def all_metrics(
    users: np.ndarray, labels: np.ndarray, probabilities: np.ndarray
) -> dict[str, float]:
    """Every metric of scored samples, under the names that the commands print.

    Args:
      users: [N] whose sample it is.
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
    """Mean difference of two models' AUC over the same users, with its 95 % interval."""

    mean: float
    low: float
    high: float
    users: int


def paired_difference(ours: UserAUC, theirs: UserAUC) -> PairedDifference:
    """User-weighted AUC of `ours` minus `theirs`, user by user.

    The interval is the normal approximation of a weighted mean over independent users, with Eq.
    10's weights: mean ± 1.96 · sqrt(Σ w²(d − mean)²) / Σ w.

    Raises:
      ValueError: the two were not computed on the same users and impressions.
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
    users: np.ndarray, labels: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    users, scores = np.asarray(users), np.asarray(scores, np.float64)
    raw, labels = np.asarray(labels), np.asarray(labels).astype(np.int64)
    if not len(users) == len(labels) == len(scores):
        raise ValueError(f"{len(users)} users, {len(labels)} labels, {len(scores)} scores")
    if not np.array_equal(raw, labels) or ((labels != 0) & (labels != 1)).any():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN")
    return users, labels, scores
