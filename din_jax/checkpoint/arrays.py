"""The arrays of a checkpoint: read in parts, and their checksums."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore

from din_jax.distributed.devices import Placement, is_sharded
from din_jax.distributed.processes import summed_over_processes
from din_jax.step.state import TrainState

PART_BYTES = 1 << 22  # of a large array, written and read together


def read_array(folder: Path, placement: Placement, path: tuple[Any, ...], like: Any) -> jax.Array:
    """An array that Orbax wrote, read into its place on this process' devices."""
    stored = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": folder.as_uri(),
                "path": jax.tree_util.keystr(path, simple=True, separator=".") + "/",
            },
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        },
        open=True,
        read=True,
    ).result()
    blocks = len(stored.shape) - len(like.shape)  # 1: it was sharded, and has a device axis
    expected = tuple(like.shape)
    if blocks:
        expected = (stored.shape[0], -(-expected[0] // stored.shape[0]), *expected[1:])
    if tuple(stored.shape) != expected:
        raise ValueError(
            f"{jax.tree_util.keystr(path)} has the shape {tuple(stored.shape)}, expected {expected}"
        )

    def rows(begin: int, end: int) -> np.ndarray:
        if not blocks:
            return stored[begin:end].read().result()
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
            lambda m: _filled(
                rows, m * size, size, like, placement.devices[m], with_device_axis=True
            ),
            sharded=True,
        )
    device = placement.devices[placement.local[0]]
    first = _filled(rows, 0, like.shape[0], like, device)
    if placement.axis is None:
        return first
    return placement.assemble(like.shape, lambda _: first, sharded=False)


def _filled(
    read: Callable[[int, int], np.ndarray],
    begin: int,
    count: int,
    like: Any,
    device: Any,
    *,
    with_device_axis: bool = False,
) -> jax.Array:
    """`count` rows from `begin` on, on a device, read a part at a time; zeros past the last row."""
    end = min(begin + count, like.shape[0])
    row_bytes = math.prod(like.shape[1:]) * like.dtype.itemsize
    some = max(1, PART_BYTES // max(row_bytes, 1))
    lead = (1,) * with_device_axis
    if count == end - begin <= some:
        part = read(begin, end)
        return jax.device_put(part.reshape(lead + part.shape), device)
    values = jnp.zeros((*lead, count, *like.shape[1:]), like.dtype, device=device)
    for at in range(begin, end, some):
        part = read(at, min(at + some, end))
        part = part.reshape(lead + part.shape)
        values = jax.block_until_ready(_write(values, part, at - begin, len(lead)))
    return values


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write(values: jax.Array, part: jax.Array, at: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(values, part, at, axis)


def checksums(state: TrainState) -> dict[str, str]:
    """Of each array, the same however it lies: Σ (2i + 1)·b_i modulo 2⁶⁴.

    b_i are the bits of its i-th element, [K, …] in C order. Zeros, the padding of a sharded table,
    add nothing, and no single bit can change without changing the sum.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    sums = np.array([_checksum(leaf) for _, leaf in leaves], np.uint64)
    apart = np.array([is_sharded(leaf) for _, leaf in leaves])
    if apart.any():
        sums[apart] = summed_over_processes(sums[apart])
    return {name: f"{total:016x}" for name, total in zip(names, sums.tolist(), strict=True)}


def _checksum(leaf: jax.Array) -> int:
    """The part of a checksum that lies on this process' devices."""
    shards = leaf.addressable_shards
    if not is_sharded(leaf):
        return _weighted_bits(np.asarray(shards[0].data), 0)
    size = math.prod(leaf.shape[1:])
    parts = (_weighted_bits(np.asarray(s.data), s.index[0].start * size) for s in shards)
    return sum(parts) % 2**64


def _weighted_bits(values: np.ndarray, begin: int) -> int:
    bits = values.reshape(-1).view(f"u{values.dtype.itemsize}")  # a view: no copy of a table
    total = 0
    for at in range(0, len(bits), 1 << 20):
        part = bits[at : at + (1 << 20)].astype(np.uint64)
        weights = np.arange(begin + at, begin + at + len(part), dtype=np.uint64) * 2 + 1
        total += int(np.dot(part, weights))
    return total % 2**64
