"""Permutation importance: what it costs to take a feature from other samples (Breiman 2001)."""

from __future__ import annotations

from typing import Any

import numpy as np

from din_jax.metrics import auc, user_weighted_auc
from din_jax.plots.picture import BLUE, GREY, Picture, new_figure, style
from din_jax.plots.scored_run import ScoredRun

_REPEATS = 3
_GROUPS = {"user": "all of the profile", "ad": "all of the ad", "context": "all of the context"}


def features_read(scored: ScoredRun) -> dict[str, list[str]]:
    """{name for people: the fields and sequences that are permuted together}."""
    config = scored.run.config.model
    schema = scored.schema.without(config.without)
    group_of = {f.name: f.group for f in schema.inputs(config.extra_fields)}
    group_of |= {n.name: n.group for n in schema.numbers}
    found = {name: [name] for name in group_of}
    found |= {f"behaviours: {s.name}": [s.name] for s in schema.sequences}
    for group, name in _GROUPS.items():
        members = [n for n, of in group_of.items() if of == group]
        if len(members) > 1:
            found[name] = members
    return found


def importance(scored: ScoredRun, repeats: int = _REPEATS) -> dict[str, list[float]]:
    """{feature: the loss of AUC by each permutation of it among the samples}.

    The AUC is user-weighted, or that of all samples if no user has both labels.
    """
    chosen = scored.chosen
    users, labels = scored.scores.users[chosen], scored.scores.labels[chosen]
    samples = scored.samples[chosen]

    def measured(p: Any) -> float:
        found = user_weighted_auc(users, labels, p)
        return found if np.isfinite(found) else auc(labels, p)

    whole = measured(scored.scores.probabilities[chosen])
    losses: dict[str, list[float]] = {}
    for name, members in features_read(scored).items():
        for repeat in range(repeats):
            order = np.random.default_rng(repeat).permutation(samples)
            p = scored.probabilities_of(samples, dict.fromkeys(members, order))
            losses.setdefault(name, []).append(whole - measured(p))
    return losses


def feature_importance(scored: ScoredRun, repeats: int = _REPEATS) -> Picture:
    """The user-weighted AUC that is lost when a feature comes from another sample."""
    losses = importance(scored, repeats)
    names = sorted(losses, key=lambda name: np.mean(losses[name]))
    mean = np.array([np.mean(losses[name]) for name in names])
    low, high = (np.array([f(losses[name]) for name in names]) for f in (min, max))
    with style():
        figure, axes = new_figure(size=(6.2, 0.9 + 0.26 * len(names)))
        ax = axes[0, 0]
        y = np.arange(len(names))
        ax.barh(
            y,
            mean,
            xerr=[mean - low, high - mean],
            color=BLUE,
            ecolor="black",
            capsize=2,
            height=0.7,
        )
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_yticks(y, names)
        ax.set_xlabel("loss of user-weighted AUC")
        ax.grid(axis="y", visible=False)
    return Picture(
        "feature_importance",
        "Permutation importance of the features",
        figure,
        f"What is lost of the user-weighted AUC on {len(scored.chosen):,} samples of "
        f"{scored.split} if a feature's values are permuted among the samples: the mean of "
        f"{repeats} permutations, and their range. Features that say the same replace one another: "
        "what stands for both of them costs little alone. Within a user only what differs between "
        "impressions can be lost.",
        losses,
    )
