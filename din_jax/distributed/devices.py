"""The devices that train together, and the placement of arrays on them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from din_jax.errors import DinError

AXIS = "devices"  # name of the mapped axis, of size M


@dataclasses.dataclass(frozen=True)
class Placement:
    """M devices, and the tables that are sharded over them.

    The K rows of a sharded table are split into M blocks of ⌈K/M⌉ rows; block m is on device m. In
    memory the table has a leading device axis, [M, ⌈K/M⌉, D]. Rows past the K-th are padding, and
    zero. All other arrays of a state are replicated: every device has a full copy. With one device
    there is no device axis.

    Attributes:
      devices: the devices, ordered by process.
      sharded: names of the sharded tables.
    """

    devices: tuple[Any, ...]
    sharded: frozenset[str] = frozenset()

    @property
    def count(self) -> int:
        """M, the number of devices."""
        return len(self.devices)

    @property
    def axis(self) -> str | None:
        """Name of the mapped axis, or None for one device."""
        return AXIS if self.count > 1 else None

    @property
    def local(self) -> range:
        """Indices in `devices` of this process's devices."""
        mine = [i for i, d in enumerate(self.devices) if d.process_index == jax.process_index()]
        return range(mine[0], mine[-1] + 1)

    def sharding(self, *, sharded: bool = False) -> jax.sharding.Sharding:
        """The sharding of a replicated array, or of one with a leading device axis if `sharded`."""
        if self.axis is None:
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        mesh = Mesh(np.array(self.devices), (AXIS,))
        return NamedSharding(mesh, PartitionSpec(AXIS) if sharded else PartitionSpec())

    def block(self, rows: int) -> int:
        """⌈K/M⌉, the rows on each device of a sharded table with K rows."""
        return -(-rows // self.count)

    def put(self, values: Any, *, sharded: bool = False) -> jax.Array:
        """Places an array, which every process passes in full, on the devices.

        Args:
          values: [K, …].
          sharded: whether to split it into blocks, [M, ⌈K/M⌉, …]; otherwise it is replicated.
        """
        if self.axis is None:
            return jnp.asarray(values)  # not committed to the device: a step would compile twice
        values = np.asarray(values)
        if not sharded:
            return self.assemble(values.shape, lambda _: values, sharded=False)
        rows = self.block(len(values))

        def block(m: int) -> npt.NDArray[Any]:
            padded = np.zeros((1, rows, *values.shape[1:]), values.dtype)
            part = values[m * rows : (m + 1) * rows]
            padded[0, : len(part)] = part
            return padded

        return self.assemble((self.count, rows, *values.shape[1:]), block, sharded=True)

    def zeros(self, rows: int, dtype: Any, *, sharded: bool) -> jax.Array:
        """Zeros [rows], or sharded [M, ⌈rows/M⌉], allocated on the devices."""
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
        """Makes a global array from the parts on this process's devices.

        Args:
          shape: the global shape.
          part: returns the part on device m: a block [1, ⌈K/M⌉, …] if sharded, else a full copy.
          sharded: whether the first axis is the device axis.
        """
        return jax.make_array_from_single_device_arrays(
            shape,
            self.sharding(sharded=sharded),
            [jax.device_put(part(m), self.devices[m]) for m in self.local],
        )

    def of_all_processes(self, tree: Any) -> Any:
        """Converts arrays of this process, which `jax.pmap` returns, to global arrays."""

        def to_global(leaf: jax.Array) -> jax.Array:
            if jax.process_count() == 1 or not leaf.is_fully_addressable:
                return leaf
            sharded = is_sharded(leaf)
            shape = (self.count, *leaf.shape[1:]) if sharded else leaf.shape
            parts = {shard.device: shard.data for shard in leaf.addressable_shards}
            return self.assemble(shape, lambda m: parts[self.devices[m]], sharded=sharded)

        return jax.tree.map(to_global, tree)


def one_device() -> Placement:
    """A placement on the first local device."""
    return Placement((jax.local_devices()[0],))


def is_sharded(array: Any) -> bool:
    """Whether an array, or a `jax.ShapeDtypeStruct`, is sharded over the device axis."""
    spec = getattr(array.sharding, "spec", ())
    return tuple(spec)[:1] == (AXIS,)


def choose(
    wanted: Any, placement: str, tables: Iterable[str], *, flag: str = "config.devices"
) -> Placement:
    """Chooses the devices and the placement of tables that a config asks for.

    Args:
      wanted: `config.devices`: the number of devices, or "all".
      placement: `config.placement`.
      tables: names of the model's tables.
      flag: the name of `wanted` in error messages.

    Raises:
      DinError: there are fewer devices, they can't be split evenly among the processes, or
        `placement` can't be parsed or names an unknown table.
    """
    processes = jax.process_count()
    by_process = [jax.local_devices(process_index=i) for i in range(processes)]
    per_process = min(len(devices) for devices in by_process)
    available = per_process * processes
    noun = f"{jax.default_backend()} device" + "s" * (available != 1)
    among = f" ({per_process} in each of {processes} processes)" if processes > 1 else ""
    number = available if wanted == "all" else int(wanted)
    if number > available:
        hint = (
            f"; on CPU set JAX_NUM_CPU_DEVICES={-(-number // processes)} in the environment"
            if jax.default_backend() == "cpu"
            else ""
        )
        raise DinError(
            f"{flag}={wanted!r}: there {'is' if available == 1 else 'are'} "
            f"{available} {noun}{among}; use at most {available}, or 'all'{hint}"
        )
    if number % processes:
        raise DinError(
            f"{flag}={wanted!r}: {processes} processes train together with equal numbers of "
            f"devices; use 'all' or a multiple of {processes}"
        )
    devices = tuple(d for local in by_process for d in local[: number // processes])
    sharded = _sharded_tables(placement, tuple(tables))  # checked with one device too
    return Placement(devices, sharded if number > 1 else frozenset())


def _sharded_tables(placement: str, tables: tuple[str, ...]) -> frozenset[str]:
    """Parses `config.placement` and returns the names of the sharded tables.

    It is "sharded", "replicated", "TABLE=sharded,…", or "sharded,TABLE=replicated,…".
    """
    placements = dict.fromkeys(tables, "replicated")
    for part in filter(None, (p.strip() for p in placement.split(","))):
        name, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            name, value = "", name
        if value not in ("replicated", "sharded") or (equals and name not in placements):
            raise DinError(
                f"config.placement has {part!r}: expected 'replicated' or 'sharded' for all "
                f"tables, or TABLE=sharded for one table; the model's tables are: "
                + ", ".join(tables)
            )
        placements |= dict.fromkeys([name] if equals else tables, value)
    return frozenset(name for name, value in placements.items() if value == "sharded")


def memory_bytes(placement: Placement) -> int:
    """Memory of one device, in bytes. Simulated devices divide the host's memory."""
    device = placement.devices[placement.local[0]]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host // len(placement.local)


def simulated(placement: Placement) -> bool:
    """Whether the devices are simulated on a host's CPU, and share its memory."""
    return bool(placement.devices[0].platform == "cpu")


def psum(values: Any, axis: str | None) -> Any:
    """Sums over the devices; returns `values` unchanged if `axis` is None."""
    return values if axis is None else jax.lax.psum(values, axis)
