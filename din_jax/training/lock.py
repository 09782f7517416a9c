"""Keeps two trainings out of one folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from din_jax.distributed import processes
from din_jax.errors import DinError

_NAME = ".lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the lock of a run's folder, which is created if needed.

    The operating system holds it for the process, so that it ends with the process, however that
    ends. With several processes the first one holds it. On a file system without locks there is
    none.

    Raises:
      DinError: another process holds it.
    """
    if not processes.is_first():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / _NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise DinError(
                f"{workdir} is in use: {file.read().strip() or 'another process'} trains there; "
                "wait until it ends, or give another --workdir"
            ) from error
        except OSError:  # this file system has no locks
            yield
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
