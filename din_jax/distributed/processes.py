"""The processes of one run, on one host or several: joining, agreeing, and failing together."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from din_jax.errors import DinError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def connect(processes: Any) -> None:
    """Joins the processes that train together, if `config.processes` or the environment says so.

    The environment's JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID stand in for
    keys that are not set. Does nothing where the process is alone or has joined already.

    JAX itself ends a process, by SIGABRT (status 134) and with a dump of its stack, where the
    coordination of the processes fails: "Terminating process because the JAX distributed service
    detected fatal errors". With RegisterTask in it, not all processes came in time. Later, another
    one died, or was not heard of for `heartbeat_timeout_s`. The process that prints it is sound.

    Raises:
      DinError: the keys can't be used, or process 0 is not reached.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = processes.coordinator or os.environ.get(_ADDRESS, "")
    if not coordinator:
        _check_alone(processes)
        return
    auto = processes.coordinator == "auto"
    found = {} if auto else _given(processes, coordinator)
    if found:
        print(
            f"process {found['process_id']} of {found['num_processes']}: waiting for the others at "
            f"{coordinator}, for up to {processes.join_timeout_s} s. If JAX ends this process with "
            "'Terminating process …' and a dump of its stack, another one did not come, or died "
            "later: look there for why",
            file=sys.stderr,
            flush=True,
        )
        if found["process_id"]:
            _reach(coordinator, processes.join_timeout_s)
    try:
        jax.distributed.initialize(
            **found,
            initialization_timeout=processes.join_timeout_s,
            heartbeat_timeout_seconds=processes.heartbeat_timeout_s,
            shutdown_timeout_seconds=processes.heartbeat_timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        if auto and isinstance(error, ValueError):  # how JAX says that it found nothing
            raise DinError(
                "config.processes.coordinator='auto': JAX found no Slurm, Open MPI or TPU pod "
                "here; give HOST:PORT of process 0, with config.processes.count and index"
            ) from error
        raise DinError(
            f"config.processes.coordinator={coordinator!r}: the processes did not come together "
            f"({' '.join(str(error).split())[:200]}); start all of them with the same coordinator "
            "(HOST:PORT of process 0) and count, and an index each"
        ) from error


def _check_alone(processes: Any) -> None:
    """Raises DinError if a count or an index is given: without a coordinator nobody would join."""
    given = {
        "config.processes.count": processes.count,
        "config.processes.index": processes.index,
        _COUNT: os.environ.get(_COUNT),
        _INDEX: os.environ.get(_INDEX),
    }
    for name, value in given.items():
        if value not in (None, ""):
            raise DinError(
                f"{name}={value}, but no config.processes.coordinator: give HOST:PORT of process 0 "
                f"there or in {_ADDRESS}, else each process would train alone; unset {name} for "
                "one process"
            )


def _given(processes: Any, coordinator: str) -> dict[str, Any]:
    """What `jax.distributed.initialize` is to be told; DinError if it can't be used."""
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 1 <= int(port) <= 65535):
        where = "config.processes.coordinator" if processes.coordinator else _ADDRESS
        raise DinError(
            f"{where}={coordinator!r}: expected HOST:PORT of process 0, with a port from 1 to "
            "65535" + (", or 'auto'" if processes.coordinator else "")
        )
    numbers = []
    for key, value, variable in (
        ("count", processes.count, _COUNT),
        ("index", processes.index, _INDEX),
    ):
        text = str(value) if value is not None else os.environ.get(variable, "")
        if not text.isdecimal():
            raise DinError(
                f"config.processes.{key}={text!r}: expected a whole number, in the config or "
                f"in {variable}, since {coordinator} coordinates several processes"
            )
        numbers.append(int(text))
    count, index = numbers
    if count < 1:
        raise DinError(f"config.processes.count={count}: expected at least 1")
    if not index < count:
        raise DinError(
            f"config.processes.index={index}: expected 0 to {count - 1}, one below "
            "config.processes.count"
        )
    return {"coordinator_address": coordinator, "num_processes": count, "process_id": index}


def _reach(coordinator: str, seconds: float) -> None:
    """Waits until process 0 listens; JAX would abort where it does not."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise DinError(
                    f"config.processes.coordinator={coordinator!r}: process 0 was not reached in "
                    f"{seconds} s ({error}); start it there, with config.processes.index=0"
                ) from error
            time.sleep(0.2)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns the failure of another process into an error that says so.

    Raises:
      DinError: what the block did together with other processes failed.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # both come out of collectives
        text = " ".join(str(error).split())
        lost = "Gloo" in text or isinstance(error, jax.errors.JaxRuntimeError)
        if jax.process_count() == 1 or not lost or "RESOURCE_EXHAUSTED" in text:
            raise
        raise DinError(
            "another process of this run failed or was killed (its own output says why, unless it "
            f"was killed; here: {text[:150]}). Start all processes again with the same flags: the "
            "run goes on from its last checkpoint"
        ) from error


def one_of_several() -> bool:
    """Whether this process has joined others."""
    return jax.distributed.is_initialized()


def leave(status: int) -> None:
    """Ends this process at once if it is one of several.

    Else it would wait for the others, which may be gone, until JAX aborts it.
    """
    if one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_first() -> bool:
    """Whether this process writes logs, and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_equal(texts: Mapping[str, str]) -> None:
    """Raises DinError unless all processes give the same {name: text}: they would go apart."""
    if jax.process_count() == 1:
        return
    sums = np.array([zlib.crc32(text.encode()) for text in texts.values()], np.uint32)
    of_all = np.asarray(multihost_utils.process_allgather(sums))
    for name, column, text in zip(texts, of_all.T, texts.values(), strict=True):
        if (column != column[0]).any():
            raise DinError(
                f"the processes differ in {name}: this one has {text}; start all with the same "
                "flags, and let all see the same store and the same --workdir"
            )


def check_shared(folder: Path, flag: str) -> None:
    """Raises DinError on all processes unless all see the same folder; it is made, if need be.

    Process 0 writes a file of a new name there, which the others look for, and removes it.

    Args:
      folder: as this process calls it.
      flag: the flag that says where it is.
    """
    if jax.process_count() == 1:
        return
    drawn = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(16), np.uint8))
    token = np.asarray(drawn, np.uint8).tobytes().hex()
    file = folder / f".seen-by-all-{token}"
    made, problem = False, ""
    try:
        if is_first():
            try:
                made = not folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
                file.write_text(token)
            except OSError as error:
                problem = f" ({error.strerror})"
        wait_for_all(token)
        seen = np.ravel(multihost_utils.process_allgather(np.array(_holds(file, token))))
    finally:
        with contextlib.suppress(OSError):
            if is_first():
                file.unlink()
    if seen.all():
        return
    if made:
        folder.rmdir()
    if seen[0]:
        others = ", ".join(str(i) for i in np.flatnonzero(~seen))
        problem = f"what process 0 writes there is not seen by process {others}"
    else:
        problem = f"process 0 can't write there{problem}"
    raise DinError(
        f"{flag}={folder}: {problem}; give all the same folder, on a file system that they share"
    )


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def summed_over_processes(values: np.ndarray) -> np.ndarray:
    """uint64 [N], summed modulo 2⁶⁴ over the processes."""
    if jax.process_count() == 1:
        return values
    halves = multihost_utils.process_allgather(values.view(np.uint32))  # JAX has no 64 bits
    return np.ascontiguousarray(halves).view(np.uint64).sum(axis=0, dtype=np.uint64)
