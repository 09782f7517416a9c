"""Experiments: lines that are searched on validation, trained with several seeds, scored on test.

A line is a dict of config keys and values, `{"model.name": "din", "optimizer.learning_rate":
[0.001, 0.002]}`. A list is a search: a trial with the first seed is run for each of its values, and
the best value on validation is chosen. Complete runs are not trained again, and a run that was
stopped is continued.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.config import check
from din_jax.data.store import Store
from din_jax.errors import DinError, Diverged
from din_jax.metrics import UserAUC, lower_is_better, paired_difference, rela_impr, user_auc
from din_jax.training.evaluation import Scores
from din_jax.training.loop import train
from din_jax.training.run import open_run

METRICS = ("user_weighted_auc", "auc", "log_loss")
Lines = Mapping[str, Mapping[str, Any]]  # {line: {config key: value, or list of values to search}}


def compare_lines(
    config: ConfigDict,
    lines: Lines,
    seeds: int,
    workdir: Path,
    *,
    against: str = "",
    refit: bool = False,
) -> dict[str, Any]:
    """Searches each line, trains it with each seed and the chosen values, and compares the lines.

    Trials do not score the test split; each run scores it once.

    Args:
      config: the config of every run, except the seed and the keys that a line sets.
      lines: the experiment's lines.
      seeds: the number of seeds, starting at `config.seed`.
      workdir: the folder of the runs.
      against: the line that the others are compared with, by default the first.
      refit: whether the trials also choose the number of epochs, and a run trains for that number
        on train and validation and scores its last weights. Otherwise a run scores the weights that
        are best on validation.

    Returns:
      {"seeds", "against", "lines"}. Each line has its name, the chosen values, the epochs if
      `refit`, the number of seeds that diverged, the trials' values on validation (None: diverged),
      the test metrics of the other seeds, and with `eval.curves` the metrics at each evaluation. It
      also has the RelaImpr of its mean, and its difference paired over users, both against the line
      `against` and over the seeds with which neither of the two diverged.

    Raises:
      DinError: two lines have the same folder name, or a value can't be used. It is raised before
        training starts.
    """
    all_settings = {name: _settings(name, keys) for name, keys in lines.items()}
    _check_lines(config, lines, all_settings, against, refit)
    results: list[dict[str, Any]] = []
    by_user: dict[str, dict[int, UserAUC]] = {}
    for name, settings in all_settings.items():
        trials, epochs = [], []
        for setting in settings if len(settings) > 1 or refit else []:
            folder = workdir / "trials" / _folder_name(name, setting, lines[name])
            value, epoch = _run_trial(updated(config, setting | {"eval.curves": False}), folder)
            trials.append(value)
            epochs.append(epoch)
        best = min if lower_is_better(config.train.select) else max
        finite = [value for value in trials if value is not None]
        best_trial = trials.index(best(finite)) if finite else 0
        chosen = settings[best_trial]
        refit_keys = (
            {"data.fit": "train+validation", "train.epochs": epochs[best_trial]} if refit else {}
        )
        runs, curves = {}, []
        for seed in range(config.seed, config.seed + seeds):
            if trials and not finite:
                break  # all trials diverged
            run = _folder_name(name, chosen, lines[name])
            is_trial = trials and not (refit or config.eval.curves) and seed == config.seed
            folder = workdir / "trials" / run if is_trial else workdir / f"{run}-{seed}"
            try:
                runs[seed] = tested(updated(config, chosen | refit_keys | {"seed": seed}), folder)
            except Diverged as error:
                print(error, flush=True)
                continue
            curves.append(_curves(folder))
        by_user[name] = {
            seed: user_auc(r.users, r.labels, r.probabilities) for seed, r in runs.items()
        }
        results.append(
            {
                "line": name,
                "chosen": {key: chosen[key] for key in _searched(lines[name])},
                **({"epochs": epochs[best_trial]} if refit else {}),
                "diverged": seeds - len(runs),
                "trials": [
                    {key: setting[key] for key in _searched(lines[name])} | {"validation": value}
                    # `trials` is empty if nothing was searched.
                    for setting, value in zip(settings, trials, strict=False)
                ],
                **{m: [run.metrics[m] for run in runs.values()] for m in METRICS},
                "curves": [
                    {key: float(np.mean([p[key] for p in points])) for key in points[0]}
                    for points in zip(*curves, strict=True)
                ],
            }
        )
    against = against or next(iter(lines))
    for result in results:
        common_seeds = sorted(by_user[result["line"]].keys() & by_user[against].keys())
        if not common_seeds:
            result["rela_impr"] = result["difference"] = None
            continue
        aucs, base_aucs = (
            [by_user[name][seed] for seed in common_seeds] for name in (result["line"], against)
        )
        measured, base = (
            float(np.mean([auc.weighted("impressions") for auc in seed_aucs]))
            for seed_aucs in (aucs, base_aucs)
        )
        result["rela_impr"] = rela_impr(measured, base) if base > 0.5 else None
        result["difference"] = paired_difference(
            mean_over_seeds(aucs), mean_over_seeds(base_aucs)
        )._asdict()
    return {"seeds": seeds, "against": against, "lines": results}


def _check_lines(
    config: ConfigDict,
    lines: Lines,
    all_settings: Mapping[str, list[dict[str, Any]]],
    against: str,
    refit: bool,
) -> None:
    """Raises DinError if the lines can't be run."""
    searches = refit or any(len(settings) > 1 for settings in all_settings.values())
    if config.data.fit != "train" and searches:
        raise DinError(
            f"config.data.fit={config.data.fit!r}: a line is searched on validation, which must "
            "not be trained on; use data.fit='train'"
        )
    if refit and config.train.evaluations_per_epoch > 1:
        raise DinError(
            f"config.train.evaluations_per_epoch={config.train.evaluations_per_epoch}: a line is "
            "trained again for the number of epochs that is best on validation; evaluate once an "
            "epoch"
        )
    if against and against not in lines:
        raise DinError(f"no line {against!r} to compare with; the lines are: {', '.join(lines)}")
    names = [
        _folder_name(name, setting, lines[name])
        for name, settings in all_settings.items()
        for setting in settings
    ]
    for name in names:
        if names.count(name) > 1:
            raise DinError(f"two lines, or values of a line, would share the folder {name!r}")
    for settings in all_settings.values():
        for setting in settings:
            check(updated(config, setting))
        open_run(updated(config, settings[0]))  # also checks the data and the devices


def _run_trial(config: ConfigDict, folder: Path) -> tuple[float | None, int]:
    """Runs a trial; returns its best value on validation, and the number of epochs to it.

    The value is None if the trial diverged.
    """
    print(f"--- {folder}", flush=True)
    try:
        train(config, folder, test=False)
    except Diverged as error:
        print(error, flush=True)
        return None, config.train.epochs
    checkpoints = Checkpoints(folder)
    return checkpoints.meta("last")["best"], _epochs(config, checkpoints.latest("best"))


def _epochs(config: ConfigDict, step: int | None) -> int:
    """The number of epochs after which a run has taken `step` steps."""
    assert step is not None  # a run that was evaluated has a best step
    samples = len(Store(config.data.store).split(config.data.fit))
    batches_per_epoch: int = -(-samples // config.train.batch_size)
    return round(step / batches_per_epoch)


def _searched(keys: Mapping[str, Any]) -> list[str]:
    """The keys of a line that are searched."""
    return [key for key, value in keys.items() if isinstance(value, list)]


def _settings(name: str, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the values of a line: {config key: value}."""
    for key in _searched(keys):
        if not keys[key]:
            raise DinError(f"line {name!r}: the list of values of {key} is empty")
    values = [value if isinstance(value, list) else [value] for value in keys.values()]
    return [dict(zip(keys, setting, strict=True)) for setting in itertools.product(*values)]


def shown(setting: Mapping[str, Any]) -> str:
    """Formats a setting: "learning_rate 0.001, dropout 0.3"."""
    return ", ".join(f"{key.rpartition('.')[2]} {_value(v)}" for key, v in setting.items())


def _value(value: Any) -> str:
    """Formats a value as shortly as is exact."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)


def _folder_name(name: str, setting: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """The folder name of a line with a setting: the line's name and the searched values."""
    words = [name, *(_value(setting[key]) for key in _searched(keys))]
    return re.sub(r"[^\w.-]+", "_", "-".join(words))


def updated(config: ConfigDict, setting: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with the keys of a setting."""
    updated = copy.deepcopy(config)  # other keys go on to follow `model.preset`
    try:
        updated.update_from_flattened_dict(dict(setting))
    except (KeyError, TypeError) as error:
        raise DinError(f"can't set {dict(setting)}: {error.args[0]}") from error
    return updated


def tested(config: ConfigDict, folder: Path) -> Scores:
    """Trains a run, if it is not complete, and scores test."""
    print(f"--- {folder}", flush=True)
    scores = train(config, folder)
    assert scores is not None
    return scores


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
            point |= {f"{split}_{metric}": line[metric] for metric in METRICS}
    return [points[step] for step in sorted(points)]


def mean_over_seeds(runs: list[UserAUC]) -> UserAUC:
    """Averages each user's AUC over several runs."""
    return runs[0]._replace(auc=np.mean([r.auc for r in runs], axis=0))
