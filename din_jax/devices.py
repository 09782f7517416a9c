"""The devices that train together, the processes that own them, and how arrays lie on them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from din_jax.errors import DinError

AXIS = "devices"  # the mapped axis, of M devices


@dataclasses.dataclass(frozen=True)
class Placement:
    """M devices, and which tables are sharded over them.

    A sharded table's rows lie in M blocks of ⌈K/M⌉ rows, the m-th on device m; what is past the
    end of the last block is padding, and zero. In memory it has a device axis, [M, ⌈K/M⌉, D]. All
    other arrays of a state are replicated: every device has them whole. One device has no axis.

    Attributes:
      devices: in the order of the processes, each one's devices side by side.
      sharded: names of tables.
    """

    devices: tuple[Any, ...]
    sharded: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """M."""
        return len(self.devices)

    @property
    def axis(self) -> str | None:
        """Name of the mapped axis, or None for one device."""
        return AXIS if self.count > 1 else None

    @property
    def local(self) -> range:
        """Positions of this process' devices."""
        mine = [i for i, d in enumerate(self.devices) if d.process_index == jax.process_index()]
        return range(mine[0], mine[-1] + 1)

    def sharding(self, *, sharded: bool = False) -> jax.sharding.Sharding:
        """Of an array that is replicated, or has the device axis first."""
        if self.axis is None:
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        mesh = Mesh(np.array(self.devices), (AXIS,))
        return NamedSharding(mesh, PartitionSpec(AXIS) if sharded else PartitionSpec())

    def block(self, rows: int) -> int:
        """⌈K/M⌉: the rows of a table of K that lie on one device, if it is sharded."""
        return -(-rows // self.count)

    def put(self, values: Any, *, sharded: bool = False) -> jax.Array:
        """Lays an array that every process has out on the devices.

        Args:
          values: [K, …].
          sharded: lay it out in blocks, [M, ⌈K/M⌉, …].
        """
        if self.axis is None:
            return jnp.asarray(values)  # not bound to the device: that would compile a step twice
        values = np.asarray(values)
        if not sharded:
            return self.assemble(values.shape, lambda _: values, sharded=False)
        rows = self.block(len(values))

        def block(m: int) -> np.ndarray:
            found = np.zeros((1, rows, *values.shape[1:]), values.dtype)
            part = values[m * rows : (m + 1) * rows]
            found[0, : len(part)] = part
            return found

        return self.assemble((self.count, rows, *values.shape[1:]), block, sharded=True)

    def zeros(self, rows: int, dtype: Any, *, sharded: bool) -> jax.Array:
        """[rows], or sharded [M, ⌈rows/M⌉], made where it lies."""
        if self.axis is None:
            return jnp.zeros(rows, dtype)
        block = self.block(rows)
        return self.assemble(
            (self.count, block) if sharded else (rows,),
            lambda m: jnp.zeros((1, block) if sharded else rows, dtype, device=self.devices[m]),
            sharded=sharded,
        )

    def assemble(
        self, shape: tuple[int, ...], part: Callable[[int], Any], *, sharded: bool
    ) -> jax.Array:
        """An array of this shape from the parts of this process' devices.

        Args:
          shape: of the whole array.
          part: what lies on the m-th device: [1, ⌈K/M⌉, …] if sharded.
          sharded: whether the first axis is that of the devices.
        """
        return jax.make_array_from_single_device_arrays(
            shape,
            self.sharding(sharded=sharded),
            [jax.device_put(part(m), self.devices[m]) for m in self.local],
        )

    def of_all_processes(self, tree: Any) -> Any:
        """The same arrays as ones of all processes: `jax.pmap` returns those of this one."""

        def whole(leaf: jax.Array) -> jax.Array:
            if jax.process_count() == 1 or not leaf.is_fully_addressable:
                return leaf
            sharded = is_sharded(leaf)
            shape = (self.count, *leaf.shape[1:]) if sharded else leaf.shape
            parts = {shard.device: shard.data for shard in leaf.addressable_shards}
            return self.assemble(shape, lambda m: parts[self.devices[m]], sharded=sharded)

        return jax.tree.map(whole, tree)


def one_device() -> Placement:
    """The first device alone."""
    return Placement((jax.local_devices()[0],))


def is_sharded(array: Any) -> bool:
    """Whether an array, or a `jax.ShapeDtypeStruct`, lies in blocks on several devices."""
    spec = getattr(array.sharding, "spec", ())
    return tuple(spec)[:1] == (AXIS,)


def choose(wanted: Any, placement: str, tables: Iterable[str]) -> Placement:
    """The devices and the placement of tables that a config asks for.

    Args:
      wanted: `config.devices`: how many, or "all".
      placement: `config.placement`.
      tables: names of the model's tables.

    Raises:
      DinError: there are not as many, they can't be split evenly among the processes, or
        `placement` can't be read or names what is no table.
    """
    processes = jax.process_count()
    by_process = [jax.local_devices(process_index=i) for i in range(processes)]
    here = min(len(devices) for devices in by_process)
    what = f"{jax.default_backend()} device" + "s" * (here * processes != 1)
    among = f" ({here} in each of {processes} processes)" if processes > 1 else ""
    number = here * processes if wanted == "all" else int(wanted)
    if number > here * processes:
        hint = (
            f"; on CPU set JAX_NUM_CPU_DEVICES={-(-number // processes)} in the environment"
            if jax.default_backend() == "cpu"
            else ""
        )
        raise DinError(
            f"config.devices={wanted!r}: there {'is' if here * processes == 1 else 'are'} "
            f"{here * processes} {what}{among}; ask for that many at most, or for 'all'{hint}"
        )
    if number % processes:
        raise DinError(
            f"config.devices={wanted!r}: {processes} processes train together, and each takes part "
            f"with as many devices; use 'all' or a multiple of {processes}"
        )
    devices = tuple(d for mine in by_process for d in mine[: number // processes])
    return Placement(
        devices, _sharded_tables(placement, tuple(tables)) if number > 1 else frozenset()
    )


def _sharded_tables(placement: str, tables: tuple[str, ...]) -> frozenset[str]:
    """ "sharded", or "replicated", or "TABLE=sharded,…", or "sharded,TABLE=replicated,…"."""
    found = dict.fromkeys(tables, "replicated")
    for part in filter(None, (p.strip() for p in placement.split(","))):
        name, equals, where = (text.strip() for text in part.partition("="))
        if not equals:
            name, where = "", name
        if where not in ("replicated", "sharded") or (equals and name not in found):
            raise DinError(
                f"config.placement has {part!r}: expected 'replicated' or 'sharded' for all "
                f"tables, or TABLE=sharded for single ones, with a table of the model: "
                + ", ".join(tables)
            )
        found |= dict.fromkeys([name] if equals else tables, where)
    return frozenset(name for name, where in found.items() if where == "sharded")


def memory_bytes(placement: Placement) -> int:
    """Memory of one device, in bytes. Simulated devices of a host share the host's."""
    device = placement.devices[placement.local[0]]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host // len(placement.local)


def connect(processes: Any) -> None:
    """Joins the processes that train together, if `config.processes` or the environment says so.

    The environment's JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID stand in for
    keys that are not set. Does nothing where the process is alone or has joined already.

    Raises:
      DinError: the keys can't be used, or the others are not reached.
    """
    coordinator = processes.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if not coordinator or jax.distributed.is_initialized():
        return
    found: dict[str, Any] = {}
    if coordinator != "auto":
        if not re.fullmatch(r".+:\d+", coordinator):
            raise DinError(
                f"config.processes.coordinator={coordinator!r}: expected HOST:PORT of process 0, "
                "or 'auto'"
            )
        found["coordinator_address"] = coordinator
        for name, key, value, variable in (
            ("num_processes", "count", processes.count, "JAX_NUM_PROCESSES"),
            ("process_id", "index", processes.index, "JAX_PROCESS_ID"),
        ):
            text = str(value) if value is not None else os.environ.get(variable, "")
            if not text.isdecimal():
                raise DinError(
                    f"config.processes.{key}={text!r}: expected a whole number, in the config or "
                    f"in {variable}, since {coordinator} coordinates several processes"
                )
            found[name] = int(text)
        if not found["process_id"] < found["num_processes"]:
            raise DinError(
                f"config.processes.index={found['process_id']}: expected 0 to "
                f"{found['num_processes'] - 1}, one below config.processes.count"
            )
    if "num_processes" in found:
        print(
            f"process {found['process_id']} of {found['num_processes']}: waiting for the others at "
            f"{coordinator}, for up to {processes.join_timeout_s} s",
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
        raise DinError(
            f"config.processes.coordinator={coordinator!r}: the processes did not come together "
            f"({' '.join(str(error).split())[:200]}); start all of them with the same coordinator "
            "(HOST:PORT of process 0) and count, and an index each"
        ) from error


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


def check_alike(texts: Mapping[str, str]) -> None:
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


def summed_over_processes(values: np.ndarray) -> np.ndarray:
    """uint64 [N], summed modulo 2⁶⁴ over the processes."""
    if jax.process_count() == 1:
        return values
    halves = multihost_utils.process_allgather(values.view(np.uint32))  # JAX has no 64 bits
    return np.ascontiguousarray(halves).view(np.uint64).sum(axis=0, dtype=np.uint64)


def psum(values: Any, axis: str | None) -> Any:
    """Sums over the devices; with no axis, the values."""
    return values if axis is None else jax.lax.psum(values, axis)
