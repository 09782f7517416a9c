"""Searches config keys on validation with Optuna, as `python -m din_jax.report search` does.

Each trial trains a run in a folder of its own, and never scores test. Optuna's TPE sampler chooses
its values (Bergstra et al. 2011). A trial that is worse on validation than the median of the others
after as many epochs is stopped. Each trial has a random generator of its own, so that a search that
was stopped and continued has the same trials as one that was not.

Only `python -m din_jax.report search` imports this file: Optuna is an optional dependency.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from ml_collections import ConfigDict
from optuna.storages.journal import JournalFileBackend

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.config import check
from din_jax.distributed import processes
from din_jax.errors import DinError, Diverged
from din_jax.metrics import lower_is_better
from din_jax.report.experiments import updated
from din_jax.report.search_space import Space, read_space, value_of, written
from din_jax.training.loop import train
from din_jax.training.run import open_run

_TRIALS_BEFORE_PRUNING = 5


def search(
    config: ConfigDict, space: Mapping[str, Any], trials: int, workdir: Path
) -> dict[str, Any]:
    """Searches a space, or continues a search, until it has a number of trials.

    The first trial takes the config's own values, as far as they are in the space. Only the best
    trial's weights are kept.

    Args:
      config: the config of every trial, except the keys that are searched.
      space: see `din_jax.report.search_space`.
      trials: the number of trials in all, of this call and of those before it.
      workdir: the folder of the search: its study and its trials.

    Returns:
      {"select", "trials"}, the trials from the best to the worst. Each has the name of its folder,
      its state ("complete", "pruned", "diverged", or "refused" if its values can't be combined),
      its metric on validation (the best one of a complete trial, the last of a pruned one, None of
      the others), and its setting, {config key: value}.

    Raises:
      DinError: the space or the config can't be used, or `workdir` has another search.
      Interrupted: a signal asked to stop; the same call continues.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = updated(config, {"eval.curves": False})  # curves score test
    parameters = read_space(config, space)
    if config.data.fit != "train":
        raise DinError(
            f"config.data.fit={config.data.fit!r}: a search selects on validation, which must not "
            "be trained on; use data.fit='train'"
        )
    fingerprint = open_run(config).store.fingerprint  # also checks the data and the devices
    if processes.one_of_several():
        raise DinError("a search runs in one process; use config.devices for several devices")
    workdir.mkdir(parents=True, exist_ok=True)
    with _locked(workdir):
        study = _study(config, workdir)
        _check_same_search(study, config, parameters, fingerprint, workdir)
        _requeue(study, config, parameters)
        while len(finished := _finished(study)) < trials:
            study.sampler = _sampler(config.seed, len(finished))
            _run_trial(study, config, parameters, workdir)
            _delete_weights(study, workdir)
        return {
            "select": config.train.select,
            "trials": [
                {
                    "trial": _folder(trial, workdir).name,
                    "state": _state(trial),
                    "validation": trial.value if np.isfinite(trial.value or 0) else None,
                    "setting": {p.key: p.suggest(trial) for p in parameters},
                }
                for trial in _ranked(study)
            ],
        }


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the folder of a search; the lock ends with the process, however that ends."""
    with (workdir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DinError(
                f"{workdir}: another process is searching there; wait for it, or give another "
                "--workdir"
            ) from error
        yield


def _study(config: ConfigDict, workdir: Path) -> optuna.Study:
    """Opens the study of a folder, or makes one."""
    backend = JournalFileBackend(str(workdir / "study.jsonl"))
    return optuna.create_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(backend),
        direction="minimize" if lower_is_better(config.train.select) else "maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_TRIALS_BEFORE_PRUNING),
        load_if_exists=True,
    )


def _sampler(seed: int, trial: int) -> optuna.samplers.TPESampler:
    """The sampler of one trial. With one for all, a continued search would repeat its draws."""
    (own,) = np.random.SeedSequence([seed, trial]).generate_state(1)
    return optuna.samplers.TPESampler(seed=int(own))


def _check_same_search(
    study: optuna.Study,
    config: ConfigDict,
    parameters: Space,
    fingerprint: str,
    workdir: Path,
) -> None:
    """Raises DinError if the folder has a search of another config, space or store."""
    searched = {f"config.{parameter.key}" for parameter in parameters}
    now = {k: v for k, v in compatibility.as_texts(config).items() if k not in searched}
    now |= {"the store's content": fingerprint, "SEARCH": repr(parameters)}
    before = study.user_attrs.get("search")
    if before is None:
        study.set_user_attr("search", now)
        return
    changed = [
        f"{key}: {before.get(key)} then, {now.get(key)} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise DinError(
            f"{workdir} holds another search:\n  "
            + "\n  ".join(changed)
            + "\nuse the same config and flags to continue it, or another --workdir"
        )


def _requeue(study: optuna.Study, config: ConfigDict, parameters: Space) -> None:
    """Queues the trial that was stopped, or in a new study the config's own values."""
    states = optuna.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):
        study.tell(trial.number, state=states.FAIL)
        attributes = {"first": trial.number, **trial.user_attrs, "stopped": trial.number}
        study.enqueue_trial(trial.params, user_attrs=attributes)
    if not study.trials:
        values = {p: value_of(config, p.key) for p in parameters}
        study.enqueue_trial(
            {p.key: p.parameter(value) for p, value in values.items() if p.contains(value)}
        )


def _run_trial(study: optuna.Study, config: ConfigDict, parameters: Space, workdir: Path) -> None:
    """Runs one trial, and tells the study how it ended."""
    trial = study.ask()
    setting = {parameter.key: parameter.suggest(trial) for parameter in parameters}
    trial_config, folder = updated(config, setting), _folder(trial, workdir)
    worst = np.inf if _minimizes(study) else -np.inf
    try:
        check(trial_config)
    except DinError as error:  # values that can't be combined
        trial.set_user_attr("refused", str(error))
        study.tell(trial, worst)
        print(f"--- {folder}: {written(setting)}\nrefused: {error}", flush=True)
        return
    for same in _finished(study):
        if same.params == trial.params:
            pruned = same.state == optuna.trial.TrialState.PRUNED
            study.tell(trial, None if pruned else same.value, state=same.state)
            return
    select, per_epoch = config.train.select, config.train.evaluations_per_epoch
    if "stopped" in trial.user_attrs:
        stopped = study.trials[trial.user_attrs["stopped"]]
        for evaluation, value in stopped.intermediate_values.items():
            trial.report(value, evaluation)

    def report(epoch: float, metrics: Mapping[str, float]) -> None:
        trial.report(metrics[select], round(epoch * per_epoch))
        if epoch < trial_config.train.epochs and trial.should_prune():
            raise optuna.TrialPruned

    print(f"--- {folder}: {written(setting)}", flush=True)
    try:
        train(trial_config, folder, test=False, on_evaluation=report)
    except optuna.TrialPruned:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        print("pruned: it is worse than the median of the trials before", flush=True)
    except Diverged as error:
        study.tell(trial, worst)
        print(error, flush=True)
    else:
        study.tell(trial, Checkpoints(folder).meta("last")["best"])
        best = _ranked(study)[0]
        print(f"the best so far: {_folder(best, workdir)}, {select} {best.value:.4f}", flush=True)


def _delete_weights(study: optuna.Study, workdir: Path) -> None:
    """Deletes the checkpoints of all finished trials but the best."""
    for trial in _ranked(study)[1:]:
        shutil.rmtree(_folder(trial, workdir) / "checkpoints", ignore_errors=True)


def _folder(trial: optuna.Trial | optuna.trial.FrozenTrial, workdir: Path) -> Path:
    """The folder of a trial. One that continues another has the other's."""
    return workdir / "trials" / str(trial.user_attrs.get("first", trial.number))


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that were not stopped by a signal."""
    states = optuna.trial.TrialState
    return study.get_trials(states=(states.COMPLETE, states.PRUNED))


def _state(trial: optuna.trial.FrozenTrial) -> str:
    if trial.state == optuna.trial.TrialState.PRUNED:
        return "pruned"
    if "refused" in trial.user_attrs:
        return "refused"
    return "complete" if np.isfinite(trial.value or 0) else "diverged"


def _ranked(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The finished trials: the complete ones from the best on, then the pruned, then the others."""
    sign = 1 if _minimizes(study) else -1
    states = ("complete", "pruned", "diverged", "refused")
    return sorted(
        _finished(study), key=lambda t: (states.index(_state(t)), sign * (t.value or 0), t.number)
    )


def _minimizes(study: optuna.Study) -> bool:
    return study.direction == optuna.study.StudyDirection.MINIMIZE
