"""How the speed of a library's DIN is measured: in the steady state, by the library's own loops.

A `Peer` trains and predicts through the calls that the library's users make; all that it adds is a
tick of a `Clock` at each step. `main` takes the flags, measures and prints one line of JSON.
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

UNITS = (80, 40)  # of the activation unit's hidden layers, and of the MLP's
LEARNING_RATES = {"adam": 0.001, "sgd": 0.01}
READY_SAMPLES = 20_000  # in ready batches, about; two batches at least
WARM_STEPS = 2  # compilation, and what a library does once
LEAST_STEPS = 3


class Enough(Exception):
    """The clock has seen what it needs: the loop is to be left."""


class Clock:
    """Measures the rate of a loop that calls `tick` once a step, at the same place of each.

    Args:
      seconds: how long to measure, over at least `LEAST_STEPS` steps. As much as a third of that,
        and `WARM_STEPS` steps at least, go before.
      now: the time.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.perf_counter):
        self._seconds = seconds
        self._now = now
        self._ticks = 0
        self._started = self._begin = self._end = 0.0
        self._begun = False
        self.steps = 0

    def tick(self) -> None:
        """Says that a step begins.

        Raises:
          Enough: there is nothing more to measure.
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
        """Samples a second, of `samples` in a step."""
        return round(samples * self.steps / (self._end - self._begin), 1)


class Peer(Protocol):
    """A library's DIN, with samples to train on. The loops run until `tick` raises."""

    def fit(self, tick: Callable[[], None]) -> None:
        """Trains as the library's users do, its own input pipeline included."""

    def step(self) -> Callable[[], None]:
        """What takes one step of training on the next of some ready batches."""

    def predict(self, tick: Callable[[], None]) -> None:
        """Predicts as the library's users do, its own input pipeline included."""


def main(
    flags: argparse.ArgumentParser,
    libraries: tuple[str, ...],
    make: Callable[[argparse.Namespace], Peer],
) -> None:
    """Parses the flags, measures what they ask for, and prints one line of JSON.

    Args:
      flags: of `parser`, with those of the script.
      libraries: whose versions the line gives.
      make: a peer of these flags.
    """
    arguments = flags.parse_args()
    for name in ("dim", "batch", "seconds"):
        if getattr(arguments, name) <= 0:
            sys.exit(f"error: --{name} {getattr(arguments, name)}: expected more than 0")
    try:
        found = measured(make(arguments), arguments)
    except DinError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(found | {"versions": {name: version(name) for name in libraries}}))


def parser(doc: str) -> argparse.ArgumentParser:
    """The flags of all peers."""
    flags = argparse.ArgumentParser(description=doc.partition("\n")[0])
    flags.add_argument("--samples", required=True, type=Path, help="file of export_samples.py")
    flags.add_argument("--dim", type=int, default=64, help="of every embedding (default: 64)")
    flags.add_argument("--batch", type=int, default=1024)
    flags.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    flags.add_argument("--activation", choices=("dice", "sigmoid"), default="dice")
    flags.add_argument("--what", nargs="+", choices=("train", "infer"), default=["train", "infer"])
    flags.add_argument("--seconds", type=float, default=8, help="a measurement takes (default: 8)")
    flags.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: the CPUs"
    )
    return flags


def measured(peer: Peer, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a peer."""
    found: dict[str, Any] = {}

    def rate(loop: Callable[[Callable[[], None]], None]) -> float:
        clock = Clock(arguments.seconds)
        try:
            loop(clock.tick)
        except Enough:
            return clock.rate(arguments.batch)
        raise AssertionError("a loop ended by itself")

    if "train" in arguments.what:
        found["samples_per_s"] = rate(peer.fit)
        found["peak_mb"] = peak_mb()
        step = peer.step()

        def steps(tick: Callable[[], None]) -> None:
            while True:
                tick()
                step()

        found["step_samples_per_s"] = rate(steps)
    if "infer" in arguments.what:
        found["infer_samples_per_s"] = rate(peer.predict)
        found.setdefault("peak_mb", peak_mb())
    flags = ("dim", "batch", "optimizer", "activation", "threads", "seconds")
    return found | {"flags": {name: getattr(arguments, name) for name in flags}}


def peak_mb() -> int:
    """The most memory that this process has held, without those it started, in 10⁶ bytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def ready(batch: int) -> int:
    """How many batches to make ready."""
    return max(2, READY_SAMPLES // batch)
