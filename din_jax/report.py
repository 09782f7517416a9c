"""Compares trained models over seeds.

    python -m din_jax.report compare --config … --workdir …   models and activations
    python -m din_jax.report lines --config … --workdir …     the lines that a config file defines

Config keys are flags as they are of train.py.
"""

from __future__ import annotations

import itertools
import json
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from din_jax import cli, training
from din_jax.checkpoint import Checkpoints
from din_jax.config import check
from din_jax.errors import DinError
from din_jax.metrics import UserAUC, paired_difference, rela_impr, user_auc

_METRICS = ("user_weighted_auc", "auc", "log_loss")
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
            runs.append(_tested(variant, folder))
        by_user[name, activation] = [user_auc(r.users, r.labels, r.probabilities) for r in runs]
        lines.append(
            {"model": name, "activation": activation, "seeds": seeds}
            | {metric: [run.metrics[metric] for run in runs] for metric in _METRICS}
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
        + " | ".join(_mean_std(line[m]) for m in _METRICS)
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


def compare_lines(
    config: ConfigDict, lines: Mapping[str, Mapping[str, Any]], seeds: int, workdir: Path
) -> dict[str, Any]:
    """Trains the lines of an experiment on each seed, each with what its search found best.

    A line is config keys and their values. A list of values is searched: each is tried with the
    first seed, the best on validation is taken, and the trials leave the test split alone. Runs
    that are complete are not trained again.

    Args:
      config: of every run, but for the seed and what a line sets.
      lines: {name: {config key: value, or list of values to search}}. The first is compared with.
      seeds: how many, from `config.seed` on.
      workdir: folder of the runs.

    Returns:
      {"lines": for each its name, the values chosen, its trials' validation, test metrics by seed,
      RelaImpr of the mean against the first line, the difference to it paired over users, and with
      `eval.curves` the metrics an evaluation}.
    """
    planned = {name: _settings(name, keys) for name, keys in lines.items()}
    if config.data.fit != "train" and any(len(settings) > 1 for settings in planned.values()):
        raise DinError(
            f"config.data.fit={config.data.fit!r}: a line is searched on validation, which must "
            "not be trained on; use data.fit='train'"
        )
    names = [_folder_name(n, s, lines[n]) for n, settings in planned.items() for s in settings]
    for shared in names:
        if names.count(shared) > 1:
            raise DinError(f"two lines, or values of a line, would share the folder {shared!r}")
    for settings in planned.values():
        for setting in settings:
            check(_with(config, setting))  # all of them, before the first is trained
    found: list[dict[str, Any]] = []
    first: list[UserAUC] = []
    for name, settings in planned.items():
        trials = []
        for setting in settings if len(settings) > 1 else []:
            folder = workdir / "trials" / _folder_name(name, setting, lines[name])
            print(f"--- {folder}", flush=True)
            training.train(_with(config, setting | {"eval.curves": False}), folder, test=False)
            trials.append(Checkpoints(folder).meta("last")["best"])
        best = max if config.train.select != "log_loss" else min
        chosen = settings[trials.index(best(trials))] if trials else settings[0]
        runs, curves = [], []
        for seed in range(config.seed, config.seed + seeds):
            folder = workdir / f"{_folder_name(name, chosen, lines[name])}-{seed}"
            print(f"--- {folder}", flush=True)
            runs.append(_tested(_with(config, chosen | {"seed": seed}), folder))
            curves.append(_curves(folder))
        ours = [user_auc(r.users, r.labels, r.probabilities) for r in runs]
        first = first or ours
        base, mine = (
            float(np.mean([u.weighted("impressions") for u in us])) for us in (first, ours)
        )
        found.append(
            {
                "line": name,
                "chosen": {key: chosen[key] for key in _searched(lines[name])},
                "trials": [
                    {key: setting[key] for key in _searched(lines[name])} | {"validation": value}
                    for setting, value in zip(settings, trials, strict=bool(trials))
                ]
                if trials
                else [],
                **{m: [run.metrics[m] for run in runs] for m in _METRICS},
                "rela_impr": rela_impr(mine, base),
                "difference": paired_difference(
                    _mean_over_seeds(ours), _mean_over_seeds(first)
                )._asdict(),
                "curves": [
                    {key: float(np.mean([c[key] for c in same])) for key in same[0]}
                    for same in zip(*curves, strict=True)
                ],
            }
        )
    return {"seeds": seeds, "lines": found}


def lines_as_markdown(result: dict[str, Any]) -> str:
    """The lines as Markdown tables: the scores, the searches, and the curves if there are any."""
    rows = [
        "| line | user_weighted_auc | RelaImpr | minus the first line, paired (95 %) | auc "
        "| log_loss | chosen |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in result["lines"]:
        d = line["difference"]
        rows.append(
            f"| {line['line']} | {_mean_std(line['user_weighted_auc'])} "
            f"| {line['rela_impr']:+.2f} % "
            f"| {d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f}) "
            f"| {_mean_std(line['auc'])} | {_mean_std(line['log_loss'])} "
            f"| {_shown(line['chosen'])} |"
        )
    if any(line["trials"] for line in result["lines"]):
        rows += ["", "| line | validation of each trial |", "| --- | --- |"]
    for line in result["lines"]:
        trials = [
            f"{_shown({k: v for k, v in t.items() if k != 'validation'})}: {t['validation']:.4f}"
            for t in line["trials"]
        ]
        if trials:
            rows.append(f"| {line['line']} | {'; '.join(trials)} |")
    if any(line["curves"] for line in result["lines"]):
        rows += [
            "",
            "| line | epoch | train loss | test loss | train auc | test auc "
            "| test user_weighted_auc |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
    rows += [
        f"| {line['line']} | {c['epoch']:.2f} | {c['train_log_loss']:.4f} "
        f"| {c['test_log_loss']:.4f} | {c['train_auc']:.4f} | {c['test_auc']:.4f} "
        f"| {c['test_user_weighted_auc']:.4f} |"
        for line in result["lines"]
        for c in line["curves"]
    ]
    return "\n".join(rows)


def _searched(keys: Mapping[str, Any]) -> list[str]:
    return [key for key, value in keys.items() if isinstance(value, list)]


def _settings(name: str, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of a line's values."""
    for key in _searched(keys):
        if not keys[key]:
            raise DinError(f"line {name!r}: the list of values of {key} is empty")
    values = [value if isinstance(value, list) else [value] for value in keys.values()]
    return [dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values)]


def _shown(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {_value(v)}" for key, v in setting.items())


def _value(value: Any) -> str:
    """The shortest text of a value."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def _folder_name(name: str, setting: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    parts = [name, *(_value(setting[key]) for key in _searched(keys))]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _with(config: ConfigDict, setting: Mapping[str, Any]) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict(dict(setting))
    except (KeyError, TypeError) as error:
        raise DinError(f"a line sets {dict(setting)}: {error.args[0]}") from error
    return changed


def _tested(config: ConfigDict, folder: Path) -> training.Tested:
    tested = training.train(config, folder)
    assert tested is not None
    return tested


def _curves(folder: Path) -> list[dict[str, float]]:
    """The metrics of train and test at each evaluation of a run, from its log."""
    points: dict[int, dict[str, float]] = {}
    epoch = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if line["split"] == "train":
            epoch[line["step"]] = line["epoch"]
        split, _, kind = line["split"].partition("_")
        if kind == "curve":
            point = points.setdefault(line["step"], {"epoch": epoch[line["step"]]})
            point |= {f"{split}_{metric}": line[metric] for metric in _METRICS}
    return [points[step] for step in sorted(points)]


def _lines_of(path: str) -> dict[str, dict[str, Any]]:
    """The `LINES` of a config file."""
    lines = runpy.run_path(path).get("LINES")
    if not lines:
        raise DinError(
            f"{path} defines no LINES: expected {{name: {{config key: value, or list of values to "
            "search}}, as configs/regularizers.py has them"
        )
    return lines


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
    workdir = Path(_WORKDIR.value)
    if name == "compare":
        result = compare(_CONFIG.value, _MODELS.value, _ACTIVATIONS.value, _SEEDS.value, workdir)
        text = as_markdown(result)
    elif name == "lines":
        lines = _lines_of(config_flags.get_config_filename(flags.FLAGS["config"]))
        result = compare_lines(_CONFIG.value, lines, _SEEDS.value, workdir)
        text = lines_as_markdown(result)
    else:
        found = f"no report {name!r}" if name else "which report?"
        raise DinError(
            f"{found}: expected `python -m din_jax.report compare --config=…` or `lines`"
        )
    (workdir / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (workdir / f"{name}.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
