"""The reliability diagram, and the distributions of the scores of each label."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from din_jax.plots.picture import BLUE, GREY, VERMILION, Picture, new_figure, style
from din_jax.plots.scored_run import ScoredRun

Array = npt.NDArray[Any]


class Bins(NamedTuple):
    """Samples in bins of equally many, by predicted probability.

    Attributes:
      predicted, observed: [bins] the mean prediction, and the fraction of clicks.
      low, high: [bins] the fraction's 95 % interval (Wilson 1927).
      samples: [bins] how many.
    """

    predicted: Array
    observed: Array
    low: Array
    high: Array
    samples: Array


def reliability_bins(labels: Array, probabilities: Array, bins: int = 15) -> Bins:
    """Groups samples by their predicted probability, equally many in each bin.

    Args:
      labels: [N] 0 or 1.
      probabilities: [N].
      bins: at most how many.
    """
    order = np.argsort(probabilities, kind="stable")
    edges = np.unique(np.linspace(0, len(order), bins + 1).astype(np.int64))
    n = np.diff(edges)
    predicted = np.add.reduceat(np.asarray(probabilities, np.float64)[order], edges[:-1]) / n
    observed = np.add.reduceat(np.asarray(labels, np.float64)[order], edges[:-1]) / n
    low, high = wilson(observed, n)
    return Bins(predicted, observed, low, high, n)


def wilson(fraction: Array, n: Array, z: float = 1.96) -> tuple[Array, Array]:
    """The 95 % interval of a fraction of n trials (Wilson 1927)."""
    centre = (fraction + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


def reliability(scored: ScoredRun) -> Picture:
    """The reliability diagram: how often impressions of each predicted CTR are clicked."""
    scores = scored.scores
    bins = reliability_bins(scores.labels, scores.probabilities)
    with style():
        figure, axes = new_figure(2, 1, size=(5.2, 5.2), height_ratios=(4, 1), sharex=True)
        (above,), (below,) = axes
        top = 1.05 * max(bins.high.max(), bins.predicted.max())
        above.plot([0, top], [0, top], color=GREY, linestyle="--", label="perfectly calibrated")
        above.errorbar(
            bins.predicted,
            bins.observed,
            np.maximum(0, [bins.observed - bins.low, bins.high - bins.observed]),
            color=BLUE,
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1,
            label="model, 95 % interval",
        )
        above.set(ylabel="observed CTR", xlim=(0, top), ylim=(0, top))
        above.legend(loc="upper left")
        below.hist(scores.probabilities, bins=40, range=(0, top), color=BLUE)
        below.set(xlabel="predicted CTR", ylabel="samples")
    ratio, error = (
        scores.metrics[name] for name in ("calibration_ratio", "expected_calibration_error")
    )
    return Picture(
        "reliability",
        "Reliability of the predicted CTR",
        figure,
        f"Above: the fraction of clicks among impressions of about equal predicted CTR, "
        f"{len(bins.samples)} bins of equally many of the {scored.described}; points on the dashed "
        f"line are calibrated. Below: how many impressions have which prediction. The mean "
        f"prediction is {ratio:.3f} times the mean label; the expected calibration error is "
        f"{error:.4f}.",
        bins._asdict(),
    )


def score_distributions(scored: ScoredRun) -> Picture:
    """The distributions of the predicted CTR of clicked and of other impressions."""
    scores = scored.scores
    edges = np.linspace(0, min(1.0, float(scores.probabilities.max()) * 1.02), 41)
    clicked = scores.labels == 1
    data = {}
    with style():
        figure, axes = new_figure(size=(6.0, 3.2))
        ax = axes[0, 0]
        for chosen, name, color, line in (
            (~clicked, "not clicked", BLUE, "-"),
            (clicked, "clicked", VERMILION, "--"),
        ):
            p = scores.probabilities[chosen]
            data[name] = np.histogram(p, edges, density=bool(len(p)))[0]
            label = f"{name}, {len(p):,}"
            ax.stairs(data[name], edges, color=color, fill=True, alpha=0.2)
            ax.stairs(data[name], edges, color=color, linestyle=line, linewidth=1.5, label=label)
            if len(p):
                ax.axvline(p.mean(), color=color, linestyle=":", linewidth=1)
        ax.set(xlabel="predicted CTR", ylabel="density", xlim=(0, edges[-1]))
        ax.legend(loc="upper right")
    return Picture(
        "score_distributions",
        "Predicted CTR by label",
        figure,
        "The distribution of the predicted CTR of impressions that were clicked and of the others, "
        f"{scored.described}; dotted lines are the means. The less the two overlap, the higher the "
        f"AUC, here {scores.metrics['auc']:.4f}.",
        data | {"edges": edges},
    )
