"""Compares models over seeds: `python -m din_jax.report compare --config … --workdir …`.

Config keys are flags as they are of train.py.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from din_jax import cli, training
from din_jax.config import check
from din_jax.errors import DinError
from din_jax.metrics import UserAUC, paired_difference, rela_impr, user_auc

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/.", lock_config=True
)
_MODELS = flags.DEFINE_list("models", "base,din", "What to train; the first is compared with.")
_ACTIVATIONS = flags.DEFINE_list("activations", "dice", "Each model with each of these.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many seeds.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs and of the report.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


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
            print(f"--- {folder}", flush=True)
            runs.append(training.train(variant, folder))
        by_user[name, activation] = [user_auc(r.users, r.labels, r.probabilities) for r in runs]
        lines.append(
            {"model": name, "activation": activation, "seeds": seeds}
            | {
                metric: [run.metrics[metric] for run in runs]
                for metric in ("user_weighted_auc", "auc", "log_loss")
            }
        )
    differences = []
    for activation, name in itertools.product(activations, models[1:]):
        ours, theirs = by_user[name, activation], by_user[models[0], activation]
        gains = [
            o.weighted("impressions") - t.weighted("impressions")
            for o, t in zip(ours, theirs, strict=True)
        ]
        paired = paired_difference(_mean_over_seeds(ours), _mean_over_seeds(theirs))
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


def as_markdown(result: dict[str, Any]) -> str:
    """The comparison as two Markdown tables."""
    rows = [
        "| model | activation | user_weighted_auc | auc | log_loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {line['model']} | {line['activation']} | "
        + " | ".join(_mean_std(line[m]) for m in ("user_weighted_auc", "auc", "log_loss"))
        + " |"
        for line in result["lines"]
    ]
    if result["differences"]:
        rows += [
            "",
            "| difference | activation | user_weighted_auc, paired over users (95 %) | RelaImpr "
            "| by seed |",
            "| --- | --- | --- | --- | --- |",
        ]
    rows += [
        f"| {d['model']} − {d['minus']} | {d['activation']} | {d['mean']:+.4f} "
        f"({d['low']:+.4f} to {d['high']:+.4f}) | {d['rela_impr']:+.2f} % | "
        + ", ".join(f"{gain:+.4f}" for gain in d["by_seed"])
        + " |"
        for d in result["differences"]
    ]
    return "\n".join(rows)


def _variant(config: ConfigDict, name: str, activation: str, seed: int) -> ConfigDict:
    variant = config.copy_and_resolve_references()
    variant.model.name, variant.model.activation, variant.seed = name, activation, seed
    return variant


def _mean_over_seeds(runs: list[UserAUC]) -> UserAUC:
    return runs[0]._replace(auc=np.mean([r.auc for r in runs], axis=0))


def _mean_std(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def main() -> None:
    """Runs the report that the command line names."""
    (name,) = cli.parse_flags(sys.argv, required=("config", "workdir"), positional=1) or [""]
    if name != "compare":
        found = f"no report {name!r}" if name else "which report?"
        raise DinError(f"{found}: expected `python -m din_jax.report compare --config=…`")
    workdir = Path(_WORKDIR.value)
    result = compare(_CONFIG.value, _MODELS.value, _ACTIVATIONS.value, _SEEDS.value, workdir)
    (workdir / "compare.json").write_text(json.dumps(result, indent=2) + "\n")
    text = as_markdown(result)
    (workdir / "compare.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
