"""Measures and logs training metrics."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.distributed import processes


class Meter:
    """Measures the loss, the speed, and the fraction of time spent waiting for input."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Resets all measurements and starts the clock."""
        self.all_losses: list[float] = []
        self._restart()

    def _restart(self) -> None:
        self.waited = 0.0
        self.samples = 0
        self.losses: list[float] = []
        self.begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the last `read`."""
        return time.perf_counter() - self.begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of its `with` block as waiting for input."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of its `with` block, such as compiling a step."""
        begin = time.perf_counter()
        yield
        self.begin += time.perf_counter() - begin

    def add(self, losses: npt.NDArray[Any], samples: int) -> None:
        """Adds the losses and the number of samples of a call's steps."""
        self.losses += losses.tolist()
        self.samples += samples

    def loss_since_start(self) -> float:
        """The mean loss of all steps since `start`."""
        return float(np.mean(self.all_losses))

    def read(self) -> dict[str, float]:
        """Returns loss, samples_per_s and input_wait since the last `read`, and resets them."""
        seconds = self.seconds
        figures = {
            "loss": float(np.mean(self.losses)),
            "samples_per_s": self.samples / seconds,
            "input_wait": self.waited / seconds,
        }
        self.all_losses += self.losses
        self._restart()
        return figures


class Log:
    """Writes metrics as JSON lines to WORKDIR/metrics.jsonl (NaN as null) and to TensorBoard.

    Existing lines of steps after `from_step`, and of the test split, are removed: the continued run
    takes those steps, and scores that split, again. With several processes only process 0 writes.
    """

    def __init__(self, workdir: Path, from_step: int):
        self._writes = processes.is_first()
        if not self._writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            partial = workdir / "metrics.jsonl.partial"
            partial.write_text("".join(line for line in lines if self._is_valid(line, from_step)))
            partial.replace(self._path)
        self._file = self._path.open("a")
        import tensorboardX  # here, so that `import din_jax.training.loop` does not load it

        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=from_step + 1
        )

    @staticmethod
    def _is_valid(line: str, from_step: int) -> bool:
        try:
            metrics = json.loads(line)
            return bool(metrics["step"] <= from_step and from_step and metrics["split"] != "test")
        except (ValueError, KeyError, TypeError):  # truncated when the run was killed
            return False

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writes:
            return
        self._file.close()
        self._events.close()

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes the metrics of one split at one step."""
        if not self._writes:
            return
        finite = {name: value if np.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        self._file.flush()
        for name, value in finite.items():
            if value is not None:
                self._events.add_scalar(f"{split}/{name}", value, step)
