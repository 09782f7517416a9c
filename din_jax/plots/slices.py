"""AUC of parts of a split: by history length, by the ad's popularity, by unknown ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.intervals import Interval, auc_statistic, bootstrap
from din_jax.plots.picture import BLUE, GREY, Picture, new_figure, style
from din_jax.plots.scored_run import ScoredRun

Array = npt.NDArray[Any]
_RESAMPLES = 200


def quantile_groups(values: Array, groups: int = 5) -> tuple[Array, list[str]]:
    """Groups numbers [N] into intervals of about equally many: int [N], and each group's name."""
    values = np.asarray(values, np.int64)
    edges = np.quantile(values, np.arange(1, groups) / groups, method="inverted_cdf")
    lower = np.unique([values.min(), *(np.unique(edges) + 1)])
    lower = lower[lower <= values.max()]
    upper = [*(lower[1:] - 1), values.max()]
    names = [f"{a:,}" if a == b else f"{a:,}–{b:,}" for a, b in zip(lower, upper, strict=True)]
    return np.searchsorted(lower, values, side="right") - 1, names


def auc_by_group(scored: ScoredRun, group: Array, names: list[str]) -> dict[str, Interval]:
    """{group: AUC, with its interval over users}, of groups that have both labels."""
    scores = scored.scores
    found = {}
    for i, name in enumerate(names):
        chosen = group == i
        labels = scores.labels[chosen]
        if 0 < labels.sum() < len(labels):
            statistic = auc_statistic(labels, scores.probabilities[chosen])
            found[f"{name}\n({len(labels):,})"] = bootstrap(
                scores.users[chosen], statistic, resamples=_RESAMPLES
            )
    return found


def slices(scored: ScoredRun) -> dict[str, tuple[Array, list[str]]]:
    """{what the split is cut by: (int [N], the group of each sample; the groups' names)}."""
    store, samples = scored.store, scored.samples
    found = {}
    lengths = np.zeros(len(samples), np.int64)
    for sequence in scored.schema.sequences:
        start, end = scored.history(sequence.name, samples)
        lengths += end - start
    if scored.schema.sequences:
        found["behaviours in the history"] = quantile_groups(lengths)
    goods = scored.goods()
    ad = store.column(f"fields/{goods.name}")[samples]
    counts = store.vocabulary(goods.table).counts[ad]
    found[f"occurrences of the ad's {goods.name} in training"] = quantile_groups(counts)
    found["unknown ids"] = _unknown(scored, ad)
    return found


def _unknown(scored: ScoredRun, ad: Array) -> tuple[Array, list[str]]:
    """By ids that training lacks: of the ad, or else among the behaviours."""
    goods = scored.goods()
    in_history = np.zeros(len(ad), bool)
    for sequence in scored.schema.sequences:
        for field in sequence.fields:
            if field.ad != goods.name or field.multi_hot:
                continue
            events = scored.store.column(f"events/{sequence.name}/{field.name}")
            unknown = np.concatenate([[0], np.cumsum(events == 0)])
            start, end = scored.history(sequence.name, scored.samples)
            in_history |= unknown[end] > unknown[start]
    names = ["none", f"some {goods.name}\nin the history", f"the ad's {goods.name}"]
    return np.where(ad == 0, 2, np.where(in_history, 1, 0)), names


def auc_by_slice(scored: ScoredRun) -> Picture:
    """AUC by history length, by popularity of the ad and by unknown ids."""
    data: dict[str, Any] = {
        title: auc_by_group(scored, *groups) for title, groups in slices(scored).items()
    }
    overall = scored.scores.metrics["auc"]
    values = [v for group in data.values() for i in group.values() for v in i if np.isfinite(v)]
    with style():
        figure, axes = new_figure(len(data), 1, size=(6.4, 1.9 * len(data)))
        for ax, (title, group) in zip(axes[:, 0], data.items(), strict=True):
            x = np.arange(len(group))
            value = np.array([i.value for i in group.values()])
            error = [[i.value - i.low for i in group.values()]]
            error += [[i.high - i.value for i in group.values()]]
            ax.axhline(overall, color=GREY, linestyle="--", linewidth=1)
            ax.errorbar(
                x, value, np.maximum(np.nan_to_num(error), 0), fmt="o", color=BLUE, capsize=3
            )
            ax.set_xticks(x, list(group), fontsize=8)
            ax.set(title=f"by {title}", ylabel="AUC", xlim=(-0.6, max(len(group), 1) - 0.4))
            ax.grid(axis="x", visible=False)
            if values:
                margin = 0.1 * (max(values) - min(values)) + 0.005
                ax.set_ylim(min([*values, overall]) - margin, max([*values, overall]) + margin)
    return Picture(
        "auc_by_slice",
        "Where the model ranks well",
        figure,
        f"AUC of parts of the {scored.described}, with 95 % intervals (bootstrap over users) and "
        "the number of samples below each part; the dashed line is the AUC of all, "
        f"{overall:.4f}. The parts of the first two rows have about equally many samples.",
        data,
    )
