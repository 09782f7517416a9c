"""Reads the arrays of a checkpoint in chunks, and computes checksums."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import tensorstore

from din_jax.distributed.devices import Placement, is_sharded
from din_jax.distributed.processes import summed_over_processes
from din_jax.step.state import TrainState

_KEYS = re.compile(r"\.(\w+)|\['([^']*)'\]|\[(\d+)\]")  # the parts of a key path
PART_BYTES = 1 << 22  # size of the chunks in which a large array is written and read


def read_array(folder: Path, placement: Placement, path: tuple[Any, ...], like: Any) -> jax.Array:
    """Reads an array that Orbax wrote onto the devices.

    Args:
      folder: the checkpoint's folder.
      placement: the devices, which may differ from those that wrote it.
      path: the array's key path in the state.
      like: its unsharded shape, dtype and sharding.

    Raises:
      ValueError: the stored shape differs.
    """
    stored = _stored(folder, jax.tree_util.keystr(path, simple=True, separator="."))
    was_sharded = len(stored.shape) > len(like.shape)  # it has a leading device axis
    expected = tuple(like.shape)
    if was_sharded:
        expected = (stored.shape[0], -(-expected[0] // stored.shape[0]), *expected[1:])
    if tuple(stored.shape) != expected:
        raise ValueError(
            f"{jax.tree_util.keystr(path)} has the shape {tuple(stored.shape)}, expected {expected}"
        )

    def read_rows(begin: int, end: int) -> npt.NDArray[Any]:
        if not was_sharded:
            rows: npt.NDArray[Any] = stored[begin:end].read().result()
            return rows
        size = stored.shape[1]
        parts = [
            stored[m, max(begin - m * size, 0) : min(end - m * size, size)].read().result()
            for m in range(begin // size, -(-end // size))
        ]
        return np.concatenate(parts)

    if not like.shape:
        return placement.put(stored.read().result())
    if is_sharded(like):
        size = placement.block(like.shape[0])
        return placement.assemble(
            (placement.count, size, *like.shape[1:]),
            lambda m: _read_to_device(
                read_rows, m * size, size, like, placement.devices[m], with_device_axis=True
            ),
            sharded=True,
        )
    device = placement.devices[placement.local[0]]
    replica = _read_to_device(read_rows, 0, like.shape[0], like, device)
    if placement.axis is None:
        return replica
    return placement.assemble(like.shape, lambda _: replica, sharded=False)


def _stored(folder: Path, name: str) -> Any:
    """Opens an array that Orbax wrote, by its key path."""
    return tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": folder.as_uri(), "path": f"{name}/"},
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        },
        open=True,
        read=True,
    ).result()


def _read_to_device(
    read_rows: Callable[[int, int], npt.NDArray[Any]],
    begin: int,
    count: int,
    like: Any,
    device: Any,
    *,
    with_device_axis: bool = False,
) -> jax.Array:
    """Reads `count` rows from row `begin` onto a device, in chunks; zeros past the last row."""
    end = min(begin + count, like.shape[0])
    row_bytes = math.prod(like.shape[1:]) * like.dtype.itemsize
    chunk_rows = max(1, PART_BYTES // max(row_bytes, 1))
    lead = (1,) * with_device_axis
    if count == end - begin <= chunk_rows:
        chunk = read_rows(begin, end)
        return jax.device_put(chunk.reshape(lead + chunk.shape), device)
    values = jnp.zeros((*lead, count, *like.shape[1:]), like.dtype, device=device)
    for start in range(begin, end, chunk_rows):
        chunk = read_rows(start, min(start + chunk_rows, end))
        chunk = chunk.reshape(lead + chunk.shape)
        values = jax.block_until_ready(_write(values, chunk, start - begin, len(lead)))
    return values


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write(values: jax.Array, chunk: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(values, chunk, start, axis)


def checksums(state: TrainState) -> dict[str, str]:
    """The checksum of each array, independent of its sharding: Σ (2i + 1)·b_i modulo 2⁶⁴.

    b_i are the bits of the i-th element of [K, …] in C order. Zeros, the padding of a sharded
    table, do not change the sum; flipping any single bit does.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    sums = np.array([_checksum(leaf) for _, leaf in leaves], np.uint64)
    sharded = np.array([is_sharded(leaf) for _, leaf in leaves])
    if sharded.any():
        sums[sharded] = summed_over_processes(sums[sharded])
    return {name: f"{total:016x}" for name, total in zip(names, sums.tolist(), strict=True)}


def stored_checksum(folder: Path, name: str) -> str:
    """The checksum of an array on disk, by its name in `checksums`; read in parts.

    Raises:
      Exception: of one of several libraries, if it can't be read.
    """
    parts = (part for match in _KEYS.finditer(name) for part in match.groups() if part)
    stored = _stored(folder, ".".join(parts))
    if not stored.shape:
        return f"{_weighted_bits(np.asarray(stored.read().result()), 0):016x}"
    total, row = 0, math.prod(stored.shape[1:])
    rows = max(1, PART_BYTES // max(row * stored.dtype.numpy_dtype.itemsize, 1))
    for begin in range(0, stored.shape[0], rows):
        part = stored[begin : min(begin + rows, stored.shape[0])].read().result()
        total += _weighted_bits(np.ascontiguousarray(part), begin * row)
    return f"{total % 2**64:016x}"


def first_not_finite(state: TrainState) -> str | None:
    """The first array of a state with NaN or an infinite value, by its name in `checksums`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not all(
            _all_finite(shard.data) for shard in leaf.addressable_shards
        ):
            return jax.tree_util.keystr(path)
    return None


@jax.jit
def _all_finite(values: jax.Array) -> jax.Array:
    return jnp.isfinite(values).all()


def _checksum(leaf: jax.Array) -> int:
    """The checksum of an array, or the sum over this process's blocks if it is sharded."""
    shards = leaf.addressable_shards
    if not is_sharded(leaf):
        return _weighted_bits(np.asarray(shards[0].data), 0)
    size = math.prod(leaf.shape[1:])
    sums = (_weighted_bits(np.asarray(s.data), s.index[0].start * size) for s in shards)
    return sum(sums) % 2**64


def _weighted_bits(values: npt.NDArray[Any], begin: int) -> int:
    """Σ (2i + 1)·b_i modulo 2⁶⁴, where the first element has the index i = `begin`."""
    bits = values.reshape(-1).view(f"u{values.dtype.itemsize}")  # a view: no copy of a table
    total = 0
    for start in range(0, len(bits), 1 << 20):
        chunk = bits[start : start + (1 << 20)].astype(np.uint64)
        weights = np.arange(begin + start, begin + start + len(chunk), dtype=np.uint64) * 2 + 1
        total += int(np.dot(chunk, weights))
    return total % 2**64
