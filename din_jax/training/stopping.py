"""Stops training at a signal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


class Stop:
    """Tells whether a signal has asked to stop; all processes stop at the same step."""

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
    """Records the first SIGINT or SIGTERM in a `Stop`; a second one ends the process at once.

    With several processes a signal to one is enough: JAX handles its SIGTERM and notifies the
    others.
    """
    stop = Stop()
    old_handlers: dict[int, Any] = {}
    single_process = jax.process_count() == 1

    def record(signum: int, _: Any) -> None:
        stop.signum = signum
        for old_signum, handler in old_handlers.items():
            signal.signal(old_signum, handler)
        if not single_process:
            signal.raise_signal(signal.SIGTERM)

    try:
        for signum in (signal.SIGINT, signal.SIGTERM) if single_process else (signal.SIGINT,):
            old_handlers[signum] = signal.signal(signum, record)
    except ValueError:  # not the main thread: the caller handles signals
        pass
    try:
        yield stop
    finally:
        for old_signum, handler in old_handlers.items():
            signal.signal(old_signum, handler)
