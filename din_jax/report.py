"""Comparisons of models over seeds, from runs: `python -m din_jax.report compare …`."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from din_jax import cli, training
from din_jax.checkpoint import Checkpoints
from din_jax.errors import DinError
from din_jax.metrics import UserAUC, all_metrics, paired_difference, rela_impr, user_auc


def compare(
    config: ConfigDict, models: list[str], activations: list[str], seeds: int, workdir: Path
) -> dict[str, Any]:
    """Trains each model with each activation on each seed, and compares them on test.

    Runs that are complete are not trained again, one that was stopped goes on. A difference
    between two lines is paired over users: the AUC of a user is the mean over seeds.

    Args:
      config: of every run, but for model, activation and seed.
      models, activations: what to compare; the first model is the one compared with.
      seeds: how many, from `config.seed` on.
      workdir: folder of the runs.

    Returns:
      {"lines": one dict a model and activation, "differences": one dict a pair}.
    """
    lines, by_user = [], {}
    for activation, name in itertools.product(activations, models):
        runs = []
        for seed in range(config.seed, config.seed + seeds):
            run_config = config.copy_and_resolve_references()
            run_config.model.name, run_config.model.activation = name, activation
            run_config.seed = seed
            folder = workdir / f"{name}-{activation}-{seed}"
            print(f"--- {folder}", flush=True)
            training.train(run_config, folder)
            runs.append(_scored(run_config, folder))
        users, labels = runs[0][:2]
        metrics = [all_metrics(users, labels, scores) for _, _, scores in runs]
        of_runs = [user_auc(users, labels, scores) for _, _, scores in runs]
        by_user[name, activation] = of_runs
        lines.append(
            {"model": name, "activation": activation, "seeds": seeds}
            | {
                metric: [m[metric] for m in metrics]
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


def _scored(config: ConfigDict, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    run = training.open_run(config)
    state, _ = Checkpoints(folder).restore(training.final_kind(run, folder), run.state)
    evaluator = run.evaluator("test")
    return evaluator.users, evaluator.labels, evaluator.probabilities(state)


def _mean_over_seeds(runs: list[UserAUC]) -> UserAUC:
    return runs[0]._replace(auc=np.mean([r.auc for r in runs], axis=0))


def _mean_std(values: list[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _config_of(path: str, assignments: list[str]) -> ConfigDict:
    """The config of a file, with KEY=VALUE assignments made."""
    spec = importlib.util.spec_from_file_location("_config", path)
    if spec is None or spec.loader is None or not Path(path).exists():
        raise DinError(f"{path}: no such config file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise DinError(f"--set {assignment!r}: expected KEY=VALUE")
        try:
            value: Any = json.loads(text)
        except ValueError:
            value = text
        try:
            config.update_from_flattened_dict({key: value})
        except (AttributeError, KeyError, TypeError) as error:
            raise DinError(f"--set {assignment}: {error}") from error
    return config


def main() -> None:
    """Parses the command line and runs the report that it names."""
    parser = argparse.ArgumentParser(prog="python -m din_jax.report", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    command = commands.add_parser("compare", help="train models over seeds and compare them")
    command.add_argument("--config", required=True, help="a file of configs/")
    command.add_argument("--models", default="base,din", help="the first is compared with")
    command.add_argument("--activations", default="dice")
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--workdir", required=True, help="folder of the runs and of the report")
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="sets a config key"
    )
    arguments = parser.parse_args()

    def run() -> None:
        workdir = Path(arguments.workdir)
        result = compare(
            _config_of(arguments.config, arguments.set),
            arguments.models.split(","),
            arguments.activations.split(","),
            arguments.seeds,
            workdir,
        )
        (workdir / "compare.json").write_text(json.dumps(result, indent=2) + "\n")
        text = as_markdown(result)
        (workdir / "compare.md").write_text(text + "\n")
        print("\n" + text)

    sys.exit(cli.guarded(run, traceback=arguments.traceback))


if __name__ == "__main__":
    main()
