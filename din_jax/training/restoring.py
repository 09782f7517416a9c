"""Where a run goes on: its newest checkpoint that is whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import KINDS, Checkpoints, Kind
from din_jax.distributed import processes
from din_jax.errors import Damaged, DinError
from din_jax.step.settle import settle
from din_jax.step.state import TrainState
from din_jax.training.run import Run


class Best(NamedTuple):
    """The best validation metric of a run so far.

    Attributes:
      value: the metric, None before the first evaluation.
      since: the number of evaluations after the best one.
    """

    value: float | None = None
    since: int = 0

    def ends(self, patience: int) -> bool:
        """Whether training stops here (`config.train.patience`)."""
        return 0 < patience <= self.since


class Restored(NamedTuple):
    """What a run goes on from.

    Attributes:
      state: the last state, None if the run begins.
      best: the best validation metric so far.
      origin: of the weights that it began with, see `din_jax.training.run.Run.origin`.
    """

    state: TrainState | None = None
    best: Best = Best()
    origin: dict[str, Any] | None = None


def restored(
    run: Run, workdir: Path, checkpoints: Checkpoints, pretrained: Mapping[str, str]
) -> Restored:
    """Restores the newest whole state of a run, and the best validation metric so far.

    A last checkpoint that is damaged is set aside, with a warning, and the newest one before it is
    taken, or the best one: training from there on gives the same states. With several processes
    only the metadata decides.

    Raises:
      DinError: the folder has another run, or no checkpoint in it is whole.
    """
    steps = [(step, kind) for kind in KINDS for step in checkpoints.steps(kind)]
    if not any(kind == "last" for _, kind in steps) and steps:
        # The run ended after its first "best" and before its first "last": it begins again.
        _checked(run, workdir, checkpoints, pretrained, "best", None)
        return Restored()
    failed: list[tuple[Kind, int, Damaged]] = []
    for step, kind in sorted(steps, key=lambda s: (s[0], s[1] == "last"), reverse=True):
        try:
            saved = _checked(run, workdir, checkpoints, pretrained, kind, step)
            state, _ = checkpoints.restore(kind, run.state_shapes(), step)
        except Damaged as error:
            if processes.one_of_several():
                raise
            failed.append((kind, step, error))
            continue
        return _going_on(run, workdir, checkpoints, failed, kind, state, saved)
    if failed:
        raise failed[0][2]
    return Restored()


def _checked(
    run: Run,
    workdir: Path,
    checkpoints: Checkpoints,
    pretrained: Mapping[str, str],
    kind: Kind,
    step: int | None,
) -> dict[str, Any]:
    """The metadata of a checkpoint from which this run can go on; else raises DinError."""
    saved = checkpoints.meta(kind, step)
    compatibility.check_same_run(saved, run.config, run.store, workdir, pretrained)
    compatibility.check_same_batches(saved, run.source, workdir)
    return saved


def _going_on(
    run: Run,
    workdir: Path,
    checkpoints: Checkpoints,
    failed: list[tuple[Kind, int, Damaged]],
    kind: Kind,
    state: TrainState,
    saved: dict[str, Any],
) -> Restored:
    done, total = int(state.step), len(run.source)
    if done > total:
        raise DinError(
            f"{workdir} holds a run of {done:,} steps, and config.train.epochs="
            f"{run.config.train.epochs} asks for {total:,}; give another --workdir"
        )
    best = Best(saved["best"], saved.get("evaluations_since_best", 0))
    for damaged_kind, step, error in failed:
        to = checkpoints.set_aside(damaged_kind, step)
        if processes.is_first():
            print(
                f"warning: {error}\n  it is now in {to}; the run goes on from its {kind} "
                f"checkpoint of step {done:,}",
                file=sys.stderr,
            )
    found_again = any(of == "best" and step > done for of, step, _ in failed)
    if best.value is not None and not found_again:
        if not checkpoints.steps("best"):
            raise no_best(workdir, kind, done)
        checkpoints.meta("best")  # raises Damaged
    if processes.is_first():
        stopped = done < total and best.ends(run.config.train.patience)
        progress = "is complete" if done == total or stopped else "goes on"
        why = f": {best.since} evaluations without a better one" if stopped else ""
        print(f"{workdir}: the run {progress} at step {done:,} of {total:,}{why}")
    settled = settle(run.optimizer, run.placement, only_dense=True)(state)
    return Restored(settled, best, saved.get("origin"))


def no_best(workdir: str | Path, kind: str, step: int) -> DinError:
    """The error of a run whose best checkpoint has gone."""
    return DinError(
        f"{workdir}: the best checkpoint is missing, which there was when the {kind} one of step "
        f"{step:,} was saved; restore checkpoints/best from a copy, score --checkpoint={kind}, or "
        "train again in another --workdir"
    )
