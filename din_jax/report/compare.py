"""Compares models and activations over seeds."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from din_jax.config import check
from din_jax.errors import DinError
from din_jax.metrics import paired_difference, rela_impr, user_auc
from din_jax.report.experiments import METRICS, mean_over_seeds, tested


def compare(
    config: ConfigDict, models: list[str], activations: list[str], seeds: int, workdir: Path
) -> dict[str, Any]:
    """Trains each model with each activation on each seed, and compares their scores of test.

    Runs that are complete are not trained again, one that was stopped goes on. A difference
    between two lines is paired over users: the AUC of a user is the mean over seeds.

    Args:
      config: of every run, but for model, activation and seed.
      models, activations: what to compare; the first model is the one compared with.
      seeds: how many, from `config.seed` on.
      workdir: folder of the runs.

    Raises:
      DinError: a model or an activation is unknown or named twice.

    Returns:
      {"lines": one dict a model and activation, "differences": one dict a pair}.
    """
    if len(set(models)) < len(models) or len(set(activations)) < len(activations):
        raise DinError("compare: a model or an activation is named twice")
    lines, planned = [], {}
    for activation, name in itertools.product(activations, models):
        planned[name, activation] = [
            _variant(config, name, activation, config.seed + i) for i in range(seeds)
        ]
    for variant in itertools.chain.from_iterable(planned.values()):
        check(variant)  # all of them, before the first is trained
    by_user = {}
    for (name, activation), configs in planned.items():
        runs = []
        for variant in configs:
            folder = workdir / f"{name}-{activation}-{variant.seed}"
            runs.append(tested(variant, folder))
        by_user[name, activation] = [user_auc(r.users, r.labels, r.probabilities) for r in runs]
        lines.append(
            {"model": name, "activation": activation, "seeds": seeds}
            | {metric: [run.metrics[metric] for run in runs] for metric in METRICS}
        )
    differences = []
    for activation, name in itertools.product(activations, models[1:]):
        ours, theirs = by_user[name, activation], by_user[models[0], activation]
        gains = [
            o.weighted("impressions") - t.weighted("impressions")
            for o, t in zip(ours, theirs, strict=True)
        ]
        paired = paired_difference(mean_over_seeds(ours), mean_over_seeds(theirs))
        base = float(np.mean([t.weighted("impressions") for t in theirs]))
        differences.append(
            {
                "model": name,
                "minus": models[0],
                "activation": activation,
                "by_seed": gains,
                **paired._asdict(),
                "rela_impr": rela_impr(base + paired.mean, base),
            }
        )
    return {"lines": lines, "differences": differences}


def _variant(config: ConfigDict, name: str, activation: str, seed: int) -> ConfigDict:
    variant = config.copy_and_resolve_references()
    variant.model.name, variant.model.activation, variant.seed = name, activation, seed
    return variant
