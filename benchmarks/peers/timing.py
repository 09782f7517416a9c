"""Measures the speed of a library's DIN in steady state, in the library's own loops.

A `Peer` trains and predicts through the library's public calls, and calls `Clock.tick` in each
step. `main` parses the flags, measures, and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from din_jax.errors import DinError

UNITS = (80, 40)  # widths of the hidden layers of the activation unit, and of the MLP
LEARNING_RATES = {"adam": 0.001, "sgd": 0.01}
READY_SAMPLES = 20_000  # samples in the batches in memory, of which there are at least two
WARM_STEPS = 2  # steps for compilation and initialization
LEAST_STEPS = 3  # minimum number of measured steps


class Enough(Exception):
    """The clock has measured enough: leave the loop."""


class Clock:
    """Measures the rate of a loop that calls `tick` once per step, at the same point of each step.

    Args:
      seconds: the minimum time to measure, over at least `LEAST_STEPS` steps. Before that, a third
        of this time, and at least `WARM_STEPS` steps, are warm-up.
      now: returns the time in seconds.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.perf_counter):
        self._seconds = seconds
        self._now = now
        self._ticks = 0
        self._started = self._begin = self._end = 0.0
        self._begun = False
        self.steps = 0

    def tick(self) -> None:
        """Records the start of a step.

        Raises:
          Enough: the measurement is complete.
        """
        now = self._now()
        self._started = self._started if self._ticks else now
        if self._begun:
            self.steps, self._end = self.steps + 1, now
            if self.steps >= LEAST_STEPS and now - self._begin >= self._seconds:
                raise Enough
        elif self._ticks >= WARM_STEPS and now - self._started >= self._seconds / 3:
            self._begun, self._begin = True, now
        self._ticks += 1

    def rate(self, samples: int) -> float:
        """Samples per second, with `samples` per step."""
        return round(samples * self.steps / (self._end - self._begin), 1)


class Peer(Protocol):
    """A library's DIN and its training samples. Loops run until `tick` raises an exception."""

    def fit(self, tick: Callable[[], None]) -> None:
        """Trains through the library's public calls, including its input pipeline."""

    def step(self) -> Callable[[], None]:
        """Makes a function that takes a train step on the next of some batches in memory."""

    def predict(self, tick: Callable[[], None]) -> None:
        """Predicts through the library's public calls, including its input pipeline."""


def main(
    flags: argparse.ArgumentParser,
    libraries: tuple[str, ...],
    make: Callable[[argparse.Namespace], Peer],
) -> None:
    """Parses the flags, measures, and prints one line of JSON.

    Args:
      flags: the result of `parser`, with additional flags of the script.
      libraries: the libraries whose versions are printed.
      make: makes the peer from the flags.
    """
    arguments = flags.parse_args()
    for name in ("dim", "batch", "seconds"):
        if getattr(arguments, name) <= 0:
            sys.exit(f"error: --{name} {getattr(arguments, name)}: expected more than 0")
    try:
        figures = measured(make(arguments), arguments)
    except DinError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(figures | {"versions": {name: version(name) for name in libraries}}))


def parser(doc: str) -> argparse.ArgumentParser:
    """Makes the flags that all peers share."""
    flags = argparse.ArgumentParser(description=doc.partition("\n")[0])
    flags.add_argument("--samples", required=True, type=Path, help="file of export_samples.py")
    flags.add_argument("--dim", type=int, default=64, help="embedding width (default: 64)")
    flags.add_argument("--batch", type=int, default=1024)
    flags.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    flags.add_argument("--activation", choices=("dice", "sigmoid"), default="dice")
    flags.add_argument("--what", nargs="+", choices=("train", "infer"), default=["train", "infer"])
    flags.add_argument("--seconds", type=float, default=8, help="per measurement (default: 8)")
    flags.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all CPUs"
    )
    return flags


def measured(peer: Peer, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures a peer: the figures of its JSON line."""
    figures: dict[str, Any] = {}

    def rate(loop: Callable[[Callable[[], None]], None]) -> float:
        clock = Clock(arguments.seconds)
        try:
            loop(clock.tick)
        except Enough:
            return clock.rate(arguments.batch)
        raise AssertionError("the peer's loop ended before the clock had measured enough")

    if "train" in arguments.what:
        figures["samples_per_s"] = rate(peer.fit)
        figures["peak_mb"] = peak_mb()
        step = peer.step()

        def steps(tick: Callable[[], None]) -> None:
            while True:
                tick()
                step()

        figures["step_samples_per_s"] = rate(steps)
    if "infer" in arguments.what:
        figures["infer_samples_per_s"] = rate(peer.predict)
        figures.setdefault("peak_mb", peak_mb())
    flags = ("dim", "batch", "optimizer", "activation", "threads", "seconds")
    return figures | {"flags": {name: getattr(arguments, name) for name in flags}}


def peak_mb() -> int:
    """The process's peak memory, without child processes, in 10⁶ bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def ready(batch: int) -> int:
    """The number of batches to hold in memory."""
    return max(2, READY_SAMPLES // batch)
