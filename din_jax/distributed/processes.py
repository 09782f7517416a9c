"""The processes of one run, on one host or several: start-up, consistency checks and failures."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils

from din_jax.errors import DinError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_MEET_EVERY_S = 5.0


def connect(processes: Any) -> None:
    """Initializes JAX's distributed system if `config.processes` or the environment asks for it.

    The environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are the
    defaults of keys that are not set. Does nothing if there is no coordinator, or if JAX is
    initialized already.

    If the coordination fails, JAX aborts the process by SIGABRT (status 134) with a stack trace and
    "Terminating process because the JAX distributed service detected fatal errors". If the message
    names RegisterTask, some process did not start in time. Otherwise another process died, or sent
    no heartbeat for `heartbeat_timeout_s`. The process that prints the message is not at fault.

    Raises:
      DinError: the keys can't be used, or process 0 can't be reached.
    """
    if jax.distributed.is_initialized():
        return
    coordinator = processes.coordinator or os.environ.get(_ADDRESS, "")
    if not coordinator:
        _check_alone(processes)
        return
    auto = processes.coordinator == "auto"
    cluster = {} if auto else _cluster(processes, coordinator)
    if cluster:
        print(
            f"process {cluster['process_id']} of {cluster['num_processes']}: waiting up to "
            f"{processes.join_timeout_s} s for the other processes at {coordinator}. If JAX aborts "
            "this process with 'Terminating process …' and a stack trace, another process did not "
            "start in time, or died later: look for the cause in its output",
            file=sys.stderr,
            flush=True,
        )
        if cluster["process_id"]:
            _wait_for_coordinator(coordinator, processes.join_timeout_s)
    try:
        jax.distributed.initialize(
            **cluster,
            initialization_timeout=processes.join_timeout_s,
            heartbeat_timeout_seconds=processes.heartbeat_timeout_s,
            shutdown_timeout_seconds=processes.heartbeat_timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        if auto and isinstance(error, ValueError):  # JAX detected no cluster
            raise DinError(
                "config.processes.coordinator='auto': JAX found no Slurm, Open MPI or TPU pod "
                "here; give HOST:PORT of process 0, with config.processes.count and index"
            ) from error
        raise DinError(
            f"config.processes.coordinator={coordinator!r}: the processes could not connect "
            f"({' '.join(str(error).split())[:200]}); start all of them with the same coordinator "
            "(HOST:PORT of process 0), the same count, and each with its own index"
        ) from error


def _check_alone(processes: Any) -> None:
    """Raises DinError if there is a count or an index, which need a coordinator."""
    settings = {
        "config.processes.count": processes.count,
        "config.processes.index": processes.index,
        _COUNT: os.environ.get(_COUNT),
        _INDEX: os.environ.get(_INDEX),
    }
    for name, value in settings.items():
        if value not in (None, ""):
            raise DinError(
                f"{name}={value}, but no config.processes.coordinator: give HOST:PORT of process 0 "
                f"there or in {_ADDRESS}, else each process would train alone; for a single "
                f"process unset {name}"
            )


def _cluster(processes: Any, coordinator: str) -> dict[str, Any]:
    """The arguments of `jax.distributed.initialize`; raises DinError if they can't be used."""
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 1 <= int(port) <= 65535):
        setting = "config.processes.coordinator" if processes.coordinator else _ADDRESS
        raise DinError(
            f"{setting}={coordinator!r}: expected HOST:PORT of process 0, with a port from 1 to "
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
                f"in {variable}, because there is a coordinator, {coordinator}"
            )
        numbers.append(int(text))
    count, index = numbers
    if count < 1:
        raise DinError(f"config.processes.count={count}: expected at least 1")
    if not index < count:
        raise DinError(
            f"config.processes.index={index}: expected 0 to {count - 1}, less than "
            f"config.processes.count={count}"
        )
    return {"coordinator_address": coordinator, "num_processes": count, "process_id": index}


def _wait_for_coordinator(coordinator: str, seconds: float) -> None:
    """Waits until process 0 listens; if it never does, JAX itself would abort this process."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise DinError(
                    f"config.processes.coordinator={coordinator!r}: process 0 was not reached in "
                    f"{seconds} s ({error}); start it there, with config.processes.index=0"
                ) from error
            time.sleep(0.2)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Converts the error of a collective to a DinError if another process failed.

    Raises:
      DinError: a collective in the block failed.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # collectives raise both
        text = " ".join(str(error).split())
        lost = "Gloo" in text or isinstance(error, jax.errors.JaxRuntimeError)
        if jax.process_count() == 1 or not lost or "RESOURCE_EXHAUSTED" in text:
            raise
        raise DinError(
            "another process of this run failed or was killed (if it failed, its own output says "
            f"why; in this process: {text[:150]}). Start all processes again with the same flags: "
            "the run continues from its last checkpoint"
        ) from error


def one_of_several() -> bool:
    """Whether this process is one of several that have connected."""
    return jax.distributed.is_initialized()


def leave(status: int) -> None:
    """Exits at once if this process is one of several.

    An ordinary exit would wait for the other processes, which may have died, until JAX aborts.
    """
    if one_of_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def is_first() -> bool:
    """Whether this is process 0, which writes the logs and prints."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process has called this function with this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def first_alone(work: Callable[[], None]) -> None:
    """Calls `work` in process 0 while the others wait, however long it takes.

    Processes that wait in one collective for longer than 30 s fail, and so do those that exit so
    much earlier than another: they meet every few seconds.

    Args:
      work: raises nothing.
    """
    if jax.process_count() == 1:
        work()
        return
    thread = threading.Thread(target=work if is_first() else lambda: None)
    thread.start()
    works = True
    while works:
        thread.join(_MEET_EVERY_S)
        works = bool(multihost_utils.process_allgather(np.array(thread.is_alive())).any())


def check_equal(texts: Mapping[str, str]) -> None:
    """Raises DinError unless all processes pass equal {name: text}.

    Processes with different settings would diverge, or wait for each other forever.
    """
    if jax.process_count() == 1:
        return
    checksums = np.array([zlib.crc32(text.encode()) for text in texts.values()], np.uint32)
    all_checksums = np.asarray(multihost_utils.process_allgather(checksums))
    for name, column, text in zip(texts, all_checksums.T, texts.values(), strict=True):
        if (column != column[0]).any():
            raise DinError(
                f"the processes differ in {name}: this one has {text}; start all with the same "
                "flags, and let all see the same store and the same --workdir"
            )


def check_shared(folder: Path, flag: str) -> None:
    """Raises DinError on all processes unless all see the same folder; creates it if needed.

    Process 0 writes a file with a random name there, which the others look for, then removes it.

    Args:
      folder: the folder's path in this process.
      flag: the flag that sets it.
    """
    if jax.process_count() == 1:
        return
    random = multihost_utils.broadcast_one_to_all(np.frombuffer(os.urandom(16), np.uint8))
    token = np.asarray(random, np.uint8).tobytes().hex()
    file = folder / f".seen-by-all-{token}"
    created, problem = False, ""
    try:
        if is_first():
            try:
                created = not folder.exists()
                folder.mkdir(parents=True, exist_ok=True)
                file.write_text(token)
            except OSError as error:
                problem = f" ({error.strerror})"
        wait_for_all(token)
        seen = np.ravel(multihost_utils.process_allgather(np.array(_contains(file, token))))
    finally:
        with contextlib.suppress(OSError):
            if is_first():
                file.unlink()
    if seen.all():
        return
    if created:
        folder.rmdir()
    if seen[0]:
        others = ", ".join(str(i) for i in np.flatnonzero(~seen))
        problem = f"what process 0 writes there is not seen by process {others}"
    else:
        problem = f"process 0 can't write there{problem}"
    raise DinError(
        f"{flag}={folder}: {problem}; give all processes the same folder, on a shared file system"
    )


def _contains(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False


def in_any(flag: bool) -> bool:
    """Whether `flag` is true in any process; all must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def summed_over_processes(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Sums uint64 [N] over the processes, modulo 2⁶⁴."""
    if jax.process_count() == 1:
        return values
    # As pairs of 32 bits: JAX has no 64-bit integers by default.
    halves = multihost_utils.process_allgather(values.view(np.uint32))
    summed: npt.NDArray[np.uint64] = (
        np.ascontiguousarray(halves).view(np.uint64).sum(axis=0, dtype=np.uint64)
    )
    return summed


def of_first(
    compute: Callable[[], Mapping[str, npt.NDArray[Any]]],
) -> Mapping[str, npt.NDArray[Any]]:
    """The arrays that `compute` returns on the first process, on all processes, bit for bit."""
    if jax.process_count() == 1:
        return compute()
    content = io.BytesIO()
    if is_first():
        np.savez(content, **compute())  # type: ignore[arg-type]
    sent = np.frombuffer(content.getvalue(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent))))
    received = np.asarray(
        multihost_utils.broadcast_one_to_all(sent if is_first() else np.zeros(length, np.uint8))
    )
    with np.load(io.BytesIO(received.tobytes())) as arrays:
        return dict(arrays)
