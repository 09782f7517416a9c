"""Takes the step at which training diverged again, and looks at its numbers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.arrays import first_not_finite
from din_jax.config import default_config
from din_jax.data.packing import Batch
from din_jax.errors import DinError
from din_jax.step.score import score_step
from din_jax.step.state import TrainState
from din_jax.training.divergence import record_of
from din_jax.training.log import Log
from din_jax.training.loop import Trainer
from din_jax.training.restoring import restored
from din_jax.training.run import Run, open_run
from din_jax.training.stopping import stop_signal

_LARGEST = 5  # arrays that are named


class Replayed(NamedTuple):
    """A step that was taken again.

    Attributes:
      step: the number of steps, with this one.
      loss: of its batch.
      samples: int64 [n], the store's samples in the batch.
      not_finite: those of them whose logit before the step is not finite.
      infinite_inputs: the first array of the batch with an infinite value, None if there is none.
      before, after: the first array of the state before and after the step that has NaN or an
        infinite value, None if all are finite.
      largest: {array: greatest absolute value} of the state before the step, the greatest first.
    """

    step: int
    loss: float
    samples: npt.NDArray[np.int64]
    not_finite: list[int]
    infinite_inputs: str | None
    before: str | None
    after: str | None
    largest: dict[str, float]


def replay(workdir: str | Path) -> Replayed:
    """Takes the step at which a run diverged again, from the checkpoint before it.

    The steps until there are those of the training, bit by bit.

    Args:
      workdir: the run's folder.

    Raises:
      DinError: no run there has diverged, or its store or checkpoint can't be read.
    """
    workdir = Path(workdir)
    record = record_of(workdir)
    config = compatibility.completed(ConfigDict(record["config"]), workdir)
    config.processes = default_config().processes
    run = open_run(config)
    index = record["step"] - 1
    pretrained = run.pretrained()
    checksums = {table: vectors.checksum() for table, vectors in pretrained.items()}
    state, best, _ = restored(run, workdir, run.checkpoints(workdir), checksums)
    state = run.init(pretrained) if state is None else state
    if int(state.step) > index:
        raise DinError(f"{workdir}: the run has gone on after step {record['step']:,}")
    with (
        tempfile.TemporaryDirectory() as folder,
        Log(Path(folder), from_step=0) as log,
        stop_signal() as stop,
    ):
        trainer = Trainer(run, Path(folder), best, None, {})
        try:
            trainer.fit(state, log, stop, _until(run, index))
        except _Reached as reached:
            return _taken(run, index, reached.state, reached.batch)
    raise DinError(f"{workdir}: the run stopped before step {record['step']:,}")


class _Reached(Exception):
    """The step's batch and the state before it."""

    def __init__(self, state: TrainState, batch: Batch):
        super().__init__()
        self.state, self.batch = state, batch


def _until(run: Run, index: int) -> Any:
    """Train steps that raise `_Reached` at batch `index`."""
    take_steps = run.steps()

    def steps(state: TrainState, batches: Sequence[Batch]) -> tuple[TrainState, jax.Array]:
        before = index - int(state.step)
        if before >= len(batches):
            return take_steps(state, batches)
        if before:
            state, _ = jax.block_until_ready(take_steps(state, batches[:before]))
        raise _Reached(state, batches[before])

    return steps


def _taken(run: Run, index: int, state: TrainState, batch: Batch) -> Replayed:
    before = first_not_finite(state)
    samples = run.source.samples_of(index)
    logits = np.ravel(score_step(run.model, run.regularizer, run.placement)(state, batch))
    wrong = samples[~np.isfinite(logits[: len(samples)])].tolist()
    greatest = {
        jax.tree_util.keystr(path): float(np.abs(np.asarray(leaf)).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if np.issubdtype(leaf.dtype, np.floating) and leaf.size
    }
    ordered = sorted(greatest.items(), key=lambda item: np.nan_to_num(-item[1], nan=-np.inf))
    state, losses = run.steps()(state, [batch])
    return Replayed(
        step=index + 1,
        loss=float(np.ravel(losses)[0]),
        samples=samples,
        not_finite=wrong,
        infinite_inputs=_infinite(batch),
        before=before,
        after=first_not_finite(state),
        largest=dict(ordered[:_LARGEST]),
    )


def _infinite(batch: Batch) -> str | None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if np.issubdtype(leaf.dtype, np.floating) and np.isinf(leaf).any():
            return jax.tree_util.keystr(path)
    return None
