"""Compares models and activations over several seeds."""

from __future__ import annotations

import copy
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
    """Trains each model with each activation and seed, and compares their scores on test.

    Complete runs are not trained again, and a run that was stopped is continued. The difference
    between two models is paired over users, with each user's AUC averaged over seeds.

    Args:
      config: the config of every run, except model, activation and seed.
      models, activations: what to compare; the other models are compared with the first.
      seeds: the number of seeds, starting at `config.seed`.
      workdir: the folder of the runs.

    Raises:
      DinError: a model or an activation is unknown or named twice.

    Returns:
      {"lines": one dict per model and activation, "differences": one dict per pair}.
    """
    if len(set(models)) < len(models) or len(set(activations)) < len(activations):
        raise DinError("compare: a model or an activation is named twice")
    lines, all_configs = [], {}
    for activation, name in itertools.product(activations, models):
        all_configs[name, activation] = [
            _variant(config, name, activation, config.seed + i) for i in range(seeds)
        ]
    for variant in itertools.chain.from_iterable(all_configs.values()):
        check(variant)  # all configs, before training starts
    by_user = {}
    for (name, activation), configs in all_configs.items():
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
        aucs, base_aucs = by_user[name, activation], by_user[models[0], activation]
        gains = [
            auc.weighted("impressions") - base_auc.weighted("impressions")
            for auc, base_auc in zip(aucs, base_aucs, strict=True)
        ]
        paired = paired_difference(mean_over_seeds(aucs), mean_over_seeds(base_aucs))
        base = float(np.mean([base_auc.weighted("impressions") for base_auc in base_aucs]))
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
    variant = copy.deepcopy(config)  # other keys go on to follow `model.preset`
    variant.model.name, variant.model.activation, variant.seed = name, activation, seed
    return variant
