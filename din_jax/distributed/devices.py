"""The devices that train together, and how arrays lie on them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def choose(
    wanted: Any, placement: str, tables: Iterable[str], *, flag: str = "config.devices"
) -> Placement:
    """The devices and the placement of tables that a config asks for.

    Args:
      wanted: `config.devices`: how many, or "all".
      placement: `config.placement`.
      tables: names of the model's tables.
      flag: what a message calls `wanted`.

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
            f"{flag}={wanted!r}: there {'is' if here * processes == 1 else 'are'} "
            f"{here * processes} {what}{among}; ask for that many at most, or for 'all'{hint}"
        )
    if number % processes:
        raise DinError(
            f"{flag}={wanted!r}: {processes} processes train together, and each takes part "
            f"with as many devices; use 'all' or a multiple of {processes}"
        )
    devices = tuple(d for mine in by_process for d in mine[: number // processes])
    sharded = _sharded_tables(placement, tuple(tables))  # read with one device too: it may be wrong
    return Placement(devices, sharded if number > 1 else frozenset())


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


def simulated(placement: Placement) -> bool:
    """Whether the devices are parts of a host's CPU, and share its memory."""
    return bool(placement.devices[0].platform == "cpu")


def psum(values: Any, axis: str | None) -> Any:
    """Sums over the devices; with no axis, the values."""
    return values if axis is None else jax.lax.psum(values, axis)
