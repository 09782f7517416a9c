"""The record of a step whose loss is not finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.arrays import first_not_finite
from din_jax.data.files import replace_file
from din_jax.distributed import processes
from din_jax.errors import DinError, Diverged
from din_jax.step.state import TrainState
from din_jax.training.run import Run

_RECORD = "diverged.json"
_SHOWN = 8  # samples in a message


def diverged(run: Run, workdir: Path, step: int, loss: float, state: TrainState) -> Diverged:
    """The error of a loss that is not finite; what is needed to take that step again is written.

    Args:
      run, workdir: the run and its folder.
      step: the steps before the one with this loss.
      loss: NaN or infinite.
      state: a state after that step, up to two calls later.
    """
    samples = run.source.samples_of(step).tolist()
    array = first_not_finite(state)
    if processes.is_first():
        record = {
            "step": step + 1,
            "loss": str(loss),
            "samples": samples,
            "array": array,
            "config": compatibility.as_json(run.config),
        }
        workdir.mkdir(parents=True, exist_ok=True)
        replace_file(workdir / _RECORD, json.dumps(record, indent=1) + "\n")
    shown = ", ".join(map(str, samples[:_SHOWN])) + ", …" * (len(samples) > _SHOWN)
    return Diverged(
        f"the loss of step {step + 1:,} is {loss} (samples {shown} of the store; "
        + (f"then {array} is not finite" if array else "all weights are finite")
        + "): training has diverged; lower config.optimizer.learning_rate or set "
        "config.optimizer.clip_norm. The checkpoints are as they were before; "
        f"`python -m din_jax.replay --workdir {workdir}` takes the step again and shows more"
    )


def record_of(workdir: Path) -> dict[str, Any]:
    """What `diverged` wrote in a run's folder.

    Raises:
      DinError: training has not diverged there, or the record is damaged.
    """
    file = workdir / _RECORD
    if not file.exists():
        raise DinError(f"{workdir}: no run there has diverged (there is no {_RECORD})")
    try:
        record: dict[str, Any] = json.loads(file.read_text())
        if not (type(record["step"]) is int and record["step"] > 0 and record["config"]):
            raise KeyError("step")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DinError(f"{file}: missing or damaged ({error}); train again") from error
    return record
