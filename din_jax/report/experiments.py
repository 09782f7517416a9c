"""The lines of an experiment: searched on validation, trained on each seed, scored on test.

A line is config keys and their values, `{"model.name": "din", "optimizer.learning_rate": [0.001,
0.002]}`. A list is searched: each of its values is tried with the first seed, and the best on
validation is taken. Runs that are complete are not trained again, one that was stopped goes on.
"""

from __future__ import annotations

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
from din_jax.metrics import UserAUC, paired_difference, rela_impr, user_auc
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
    """Trains the lines of an experiment on each seed, each with what its search found best.

    Trials leave the test split alone; a run scores it once.

    Args:
      config: of every run, but for the seed and what a line sets.
      lines: the experiment's.
      seeds: how many, from `config.seed` on.
      workdir: folder of the runs.
      against: the line that the others are compared with, by default the first.
      refit: choose by trials the number of epochs too, then train on train and validation for as
        many, and score the last weights. Otherwise a run scores those that were best on validation.

    Returns:
      {"seeds", "against", "lines": for each its name, the values chosen, the epochs of a refit, how
      many seeds diverged, its trials' validation (None: diverged), test metrics by seed that did
      not, RelaImpr of the mean and the difference paired over users, both against that line over
      the seeds that neither lost, and with `eval.curves` the metrics an evaluation}.

    Raises:
      DinError: lines can't be told apart, or a value can't be used; before anything is trained.
    """
    planned = {name: _settings(name, keys) for name, keys in lines.items()}
    _check_lines(config, lines, planned, against, refit)
    found: list[dict[str, Any]] = []
    by_user: dict[str, dict[int, UserAUC]] = {}
    for name, settings in planned.items():
        trials, epochs = [], []
        for setting in settings if len(settings) > 1 or refit else []:
            folder = workdir / "trials" / _folder_name(name, setting, lines[name])
            value, epoch = _tried(_with(config, setting | {"eval.curves": False}), folder)
            trials.append(value)
            epochs.append(epoch)
        best = max if config.train.select != "log_loss" else min
        finished = [value for value in trials if value is not None]
        at = trials.index(best(finished)) if finished else 0
        chosen = settings[at]
        final = {"data.fit": "train+validation", "train.epochs": epochs[at]} if refit else {}
        runs, curves = {}, []
        for seed in range(config.seed, config.seed + seeds):
            if trials and not finished:
                break  # with every setting it diverged
            run = _folder_name(name, chosen, lines[name])
            is_trial = trials and not (refit or config.eval.curves) and seed == config.seed
            folder = workdir / "trials" / run if is_trial else workdir / f"{run}-{seed}"
            try:
                runs[seed] = tested(_with(config, chosen | final | {"seed": seed}), folder)
            except Diverged as error:
                print(error, flush=True)
                continue
            curves.append(_curves(folder))
        by_user[name] = {
            seed: user_auc(r.users, r.labels, r.probabilities) for seed, r in runs.items()
        }
        found.append(
            {
                "line": name,
                "chosen": {key: chosen[key] for key in _searched(lines[name])},
                **({"epochs": epochs[at]} if refit else {}),
                "diverged": seeds - len(runs),
                "trials": [
                    {key: setting[key] for key in _searched(lines[name])} | {"validation": value}
                    for setting, value in zip(settings, trials, strict=False)  # or there are none
                ],
                **{m: [run.metrics[m] for run in runs.values()] for m in METRICS},
                "curves": [
                    {key: float(np.mean([c[key] for c in same])) for key in same[0]}
                    for same in zip(*curves, strict=True)
                ],
            }
        )
    against = against or next(iter(lines))
    for line in found:
        # Of the seeds that both have.
        both = sorted(by_user[line["line"]].keys() & by_user[against].keys())
        if not both:
            line["rela_impr"] = line["difference"] = None
            continue
        ours, theirs = ([by_user[name][s] for s in both] for name in (line["line"], against))
        base, mine = (
            float(np.mean([u.weighted("impressions") for u in us])) for us in (theirs, ours)
        )
        line["rela_impr"] = rela_impr(mine, base) if base > 0.5 else None
        line["difference"] = paired_difference(
            mean_over_seeds(ours), mean_over_seeds(theirs)
        )._asdict()
    return {"seeds": seeds, "against": against, "lines": found}


def _check_lines(
    config: ConfigDict,
    lines: Lines,
    planned: Mapping[str, list[dict[str, Any]]],
    against: str,
    refit: bool,
) -> None:
    searches = refit or any(len(settings) > 1 for settings in planned.values())
    if config.data.fit != "train" and searches:
        raise DinError(
            f"config.data.fit={config.data.fit!r}: a line is searched on validation, which must "
            "not be trained on; use data.fit='train'"
        )
    if refit and config.train.evaluations_per_epoch > 1:
        raise DinError(
            f"config.train.evaluations_per_epoch={config.train.evaluations_per_epoch}: a line is "
            "trained anew for the number of epochs that validation chose; evaluate once an epoch"
        )
    if against and against not in lines:
        raise DinError(f"no line {against!r} to compare with; the lines are: {', '.join(lines)}")
    names = [_folder_name(n, s, lines[n]) for n, settings in planned.items() for s in settings]
    for shared in names:
        if names.count(shared) > 1:
            raise DinError(f"two lines, or values of a line, would share the folder {shared!r}")
    for settings in planned.values():
        for setting in settings:
            check(_with(config, setting))
        open_run(_with(config, settings[0]))  # what the data and the devices allow


def _tried(config: ConfigDict, folder: Path) -> tuple[float | None, int]:
    """A trial's best value on validation, and after how many epochs; None if it diverged."""
    print(f"--- {folder}", flush=True)
    try:
        train(config, folder, test=False)
    except Diverged as error:
        print(error, flush=True)
        return None, config.train.epochs
    checkpoints = Checkpoints(folder)
    return checkpoints.meta("last")["best"], _epochs(config, checkpoints.latest("best"))


def _epochs(config: ConfigDict, step: int | None) -> int:
    """After how many epochs a step of a run was taken."""
    assert step is not None  # a run that was evaluated has a best step
    samples = len(Store(config.data.store).split(config.data.fit))
    return round(step / -(-samples // config.train.batch_size))


def _searched(keys: Mapping[str, Any]) -> list[str]:
    return [key for key, value in keys.items() if isinstance(value, list)]


def _settings(name: str, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All combinations of a line's values."""
    for key in _searched(keys):
        if not keys[key]:
            raise DinError(f"line {name!r}: the list of values of {key} is empty")
    values = [value if isinstance(value, list) else [value] for value in keys.values()]
    return [dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values)]


def shown(setting: Mapping[str, Any]) -> str:
    """The values of a setting as a reader needs them: "learning_rate 0.001, dropout 0.3"."""
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


def tested(config: ConfigDict, folder: Path) -> Scores:
    """Trains a run, if it isn't complete, and scores test."""
    print(f"--- {folder}", flush=True)
    tested = train(config, folder)
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
            point |= {f"{split}_{metric}": line[metric] for metric in METRICS}
    return [points[step] for step in sorted(points)]


def mean_over_seeds(runs: list[UserAUC]) -> UserAUC:
    """Each user's AUC, the mean of several runs'."""
    return runs[0]._replace(auc=np.mean([r.auc for r in runs], axis=0))
