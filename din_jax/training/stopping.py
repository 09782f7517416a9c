"""Stopping at a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stop:
    """Whether a signal asked to stop: in the same step for all processes."""

    signum = 0

    def wished(self, step: int) -> bool:
        """Whether to stop after this step."""
        if jax.process_count() == 1:
            return self.signum != 0
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.signum = self.signum or signal.SIGTERM
        return True


@contextlib.contextmanager
def stop_signal() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into a wish to stop; a second one ends at once.

    Of several processes one is enough: JAX takes the SIGTERM and tells the others.
    """
    stop = Stop()
    before: dict[int, Any] = {}
    alone = jax.process_count() == 1

    def ask(signum: int, _: Any) -> None:
        stop.signum = signum
        for known, handler in before.items():
            signal.signal(known, handler)
        if not alone:
            signal.raise_signal(signal.SIGTERM)

    try:
        for wanted in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            before[wanted] = signal.signal(wanted, ask)
    except ValueError:  # not the main thread: whoever runs us handles signals
        pass
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
