"""Assembles a server: loads the model, and starts what scores and what looks for new versions."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from din_jax.serve.app import Limits, Server
from din_jax.serve.batching import Batcher
from din_jax.serve.monitoring import Monitor
from din_jax.serve.options import Options
from din_jax.serve.scorer import Scorer
from din_jax.serve.versions import Versions

_SWITCH_SECONDS = 0.0005  # Python's default is ten times as long


def open_server(
    model: str | os.PathLike[str],
    options: Options,
    *,
    token: str | None = None,
    rollback: bool = True,
) -> Server:
    """Makes a server; its `app` is the ASGI application.

    Sets the process's switch interval: a request waits for the interpreter several times, each time
    up to this while a version loads.

    Args:
      model: the folder of an exported model, or of several.
      options: see `Options`.
      token, rollback: see `Server`.

    Raises:
      DinError: the model can't be loaded.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    name = options.name or Path(model).resolve().name
    monitor = Monitor(name)

    def load(folder: Path, current: Scorer | None) -> Scorer:
        return Scorer(
            folder,
            max_candidates=options.candidates_per_call,
            max_users=options.max_batch,
            like=current,
        )

    versions = Versions(model, load, monitor.event)
    batcher = Batcher(
        max_batch=options.max_batch,
        max_wait_ms=options.max_wait_ms,
        max_queue=options.max_queue,
        on_batch=monitor.batch.observe,
    )
    limits = Limits(
        timeout_ms=options.timeout_ms,
        body_bytes=options.max_body_bytes,
        candidates=options.max_candidates_per_request,
        history=options.max_history_per_request,
    )
    if options.reload_seconds:
        versions.watch(options.reload_seconds)
    return Server(name, versions, batcher, monitor, limits, token=token, rollback=rollback)
