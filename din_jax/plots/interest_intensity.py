"""The intensity of the interest, Σw of section 4.3, by user."""

from __future__ import annotations

import numpy as np

from din_jax.plots.calibration import wilson
from din_jax.plots.picture import BLUE, VERMILION, Picture, new_figure, style
from din_jax.plots.scored_run import ScoredRun


def interest_intensity(scored: ScoredRun, sequence: str = "") -> Picture:
    """The intensity of the interest, Σw of section 4.3, by user, and how often they click.

    Raises:
      DinError: the model has no activation unit.
    """
    name = sequence or next(iter(scored.weights))
    found = scored.weights[name]
    normalize = scored.run.config.model.attention.normalize
    if normalize in ("none", "sigmoid"):
        words, of_sample = "Σw", found.sums(found.weights)
    else:  # what normalization takes from the weights: a softmax sums to 1
        raw = found.raw.astype(np.float64)
        words, of_sample = "Σσ(w)", found.sums(0.5 * (1 + np.tanh(raw / 2)))
    users, user = np.unique(scored.scores.users[scored.chosen], return_inverse=True)
    impressions = np.bincount(user)
    mean = np.bincount(user, of_sample) / impressions
    labels = scored.scores.labels[scored.chosen].astype(np.float64)
    p = scored.scores.probabilities[scored.chosen]
    order = np.argsort(of_sample, kind="stable")
    edges = np.unique(np.linspace(0, len(order), 11).astype(int))
    n = np.diff(edges)
    x, observed, predicted = (
        np.add.reduceat(v[order], edges[:-1]) / n for v in (of_sample, labels, p)
    )
    low, high = wilson(observed, n)
    with style():
        figure, axes = new_figure(1, 2, size=(7.4, 3.0))
        left, right = axes[0]
        left.hist(mean, bins=40, range=tuple(np.quantile(mean, [0, 0.995])), color=BLUE)
        left.set(xlabel=f"mean intensity {words} of a user's impressions", ylabel="users")
        right.errorbar(
            x,
            observed,
            np.maximum(0, [observed - low, high - observed]),
            color=BLUE,
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1,
            label="observed, 95 % interval",
        )
        right.plot(
            x,
            predicted,
            color=VERMILION,
            linestyle="--",
            marker="s",
            markersize=3,
            label="predicted",
        )
        right.set(xlabel=f"intensity {words} of an impression", ylabel="CTR")
        right.legend(loc="best", fontsize=8)
    softened = (
        f" The model's weights are normalized ({normalize}), so that w are the activation unit's "
        "outputs before it."
        if words != "Σw"
        else ""
    )
    return Picture(
        "interest_intensity",
        "Intensity of the interest",
        figure,
        f"Left: users by {words} over their behaviours of {name!r}, the mean of their impressions, "
        f"{len(users):,} users of {scored.split}. Right: CTR of impressions by {words}, ten parts "
        "of equally many. An ad that activates more of a history is the more interesting, if the "
        f"line rises.{softened}",
        {"intensity": x, "observed": observed, "predicted": predicted, "by_user": mean},
    )
