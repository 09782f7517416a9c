"""Loads and evaluates a trained run."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints, Kind
from din_jax.config import default_config
from din_jax.data.store import Store
from din_jax.data.verification import Verify
from din_jax.distributed import processes
from din_jax.errors import DinError
from din_jax.step.state import TrainState
from din_jax.training.evaluation import Scores
from din_jax.training.restoring import no_best
from din_jax.training.run import Run, open_run


def load_run(
    workdir: str | Path,
    *,
    store: str | Path = "",
    devices: int | str | None = None,
    checkpoint: Kind | None = None,
) -> tuple[Run, TrainState]:
    """Loads a trained run and its weights; works from any working directory.

    Args:
      workdir: the run's folder.
      store: the path of its store, if it has moved.
      devices: the number of devices to use, or "all"; by default the number it was trained on.
      checkpoint: "best" or "last"; by default the one that training scored on test.

    Raises:
      DinError: there is no such checkpoint, it can't be read, the store is not the one that it was
        trained on, or there are fewer devices.
    """
    run = reopen(workdir, store, devices=devices)
    kind = checkpoint or final_kind(run, workdir)
    return run, run.restore(workdir, kind)


def evaluate(
    workdir: str | Path,
    split: str = "test",
    *,
    store: str | Path = "",
    devices: int | str | None = None,
    checkpoint: Kind | None = None,
    verify: Verify | None = None,
) -> Scores:
    """Scores a split with a trained run's weights.

    Args:
      workdir, store, devices, checkpoint: see `load_run`.
      split: "train", "validation" or "test".
      verify: see `config.data.verify`; by default as the run was trained.

    Raises:
      DinError: see `load_run`; or the store has no such split.
      Diverged: a score is NaN or infinite.
    """
    run = reopen(workdir, store, devices=devices, verify=verify)
    kind = checkpoint or final_kind(run, workdir)
    processes.check_equal({"--split": split, "--checkpoint": kind})
    evaluator = run.evaluator(split)
    return evaluator.scores(run.restore(workdir, kind))


def reopen(
    workdir: str | Path,
    store: str | Path = "",
    *,
    devices: int | str | None = None,
    verify: Verify | None = None,
) -> Run:
    """Assembles the run that was trained in `workdir` from its checkpoint's config.

    Args: see `load_run` and `evaluate`.

    Raises:
      DinError: there is no checkpoint, the store is not the one that it was trained on, or there
        are fewer devices.
    """
    processes.connect(default_config().processes)
    meta = Checkpoints(workdir).any_meta()
    config = compatibility.completed(ConfigDict(meta["config"]), workdir)
    processes.check_equal(
        {
            "--devices": str(devices),
            **compatibility.as_texts(config),
            "the run's folder": f"a last checkpoint of step {meta['step']}",
        }
    )
    config.processes = default_config().processes
    if devices is not None:
        if devices != "all" and (not isinstance(devices, int) or devices < 1):
            raise DinError(f"--devices={devices}: expected a whole number from 1 on, or 'all'")
        with config.ignore_type():
            config.devices = devices
    compatibility.find_paths(config, meta)
    if store:
        config.data.store = str(store)
    config.data.prepare = ""
    if not Path(config.data.store).exists():
        raise DinError(
            f"the run's store {config.data.store} is not there (relative to {Path.cwd()}); give "
            "its path with --store"
        )
    config.data.verify = verify or config.data.verify
    opened = Store(config.data.store, verify="none")  # `open_run` verifies it
    compatibility.check_same_data(meta, opened, workdir)
    if opened.like and config.regularizer.name == "filter":
        raise DinError(
            f"{workdir}: config.regularizer.name='filter' leaves out ids that are rare in the "
            "store it was "
            f"trained on, and {opened.path} has other counts; score that store, or train with "
            "another "
            "regularizer"
        )
    return open_run(config, trains=False)


def final_kind(run: Run, workdir: str | Path) -> Kind:
    """The checkpoint that training scores on test: the best on validation if there is one.

    Raises:
      DinError: there was one, and it is missing.
    """
    checkpoints = Checkpoints(workdir)
    if run.config.data.fit != "train":
        return "last"
    if checkpoints.latest("best") is not None:
        return "best"
    meta = checkpoints.meta("last")
    if meta["best"] is not None:
        raise no_best(workdir, "last", meta["step"])
    return "last"
