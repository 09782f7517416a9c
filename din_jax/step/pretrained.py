"""Writes pretrained vectors into the tables of a train state, on one device or many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from din_jax.distributed.devices import Placement, one_device
from din_jax.distributed.mapping import PER_DEVICE, REPLICATED, over_devices
from din_jax.step.state import TrainState

_ROWS_AT_ONCE = 1 << 16  # rows of the chunks in which vectors are written
_NO_ROW = np.iinfo(np.int32).max


def write_pretrained(
    state: TrainState,
    pretrained: Mapping[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]],
    placement: Placement | None = None,
) -> TrainState:
    """Replaces rows of a state's tables by pretrained vectors. Donates these tables.

    Where the state has a mask of the table's fixed rows, these rows become fixed.

    Args:
      state: a state before its first step.
      pretrained: {table: (int32[n] rows, float32[n, D] their vectors)}.
      placement: the devices, by default the first.
    """
    placement = placement or one_device()
    tables, fixed = dict(state.tables), dict(state.fixed)
    for name, (rows, vectors) in pretrained.items():
        sharded = name in placement.sharded
        tables[name] = _written(tables[name], rows, vectors, placement, sharded=sharded)
        if name in fixed:
            true = np.ones(len(rows), bool)
            fixed[name] = _written(fixed[name], rows, true, placement, sharded=sharded)
    return state.replace(tables=tables, fixed=fixed)


def _written(
    values: jax.Array,
    rows: npt.NDArray[np.int32],
    new: npt.NDArray[Any],
    placement: Placement,
    *,
    sharded: bool,
) -> jax.Array:
    """`values` [K, …], or its blocks, with `new` [n, …] in the rows int32[n]; donates `values`."""

    def local(values: jax.Array, rows: jax.Array, new: jax.Array, block: jax.Array) -> jax.Array:
        if sharded:
            rows = rows - block * len(values)
        inside = (rows >= 0) & (rows < len(values))
        return values.at[jnp.where(inside, rows, len(values))].set(new, mode="drop")

    axes = PER_DEVICE if sharded else REPLICATED
    write = over_devices(
        local, placement, (axes, REPLICATED, REPLICATED, PER_DEVICE), axes, donate=(0,)
    )
    # `jax.pmap` needs an argument with a device axis, also for a replicated table.
    blocks: Any = 0 if placement.axis is None else np.array(placement.local, np.int32)
    size = min(len(rows), _ROWS_AT_ONCE)
    for begin in range(0, len(rows), size):  # of equal shapes: it compiles once
        part = slice(begin, begin + size)
        padding = size - len(rows[part])
        values = write(
            values,
            np.pad(rows[part], (0, padding), constant_values=_NO_ROW),
            np.pad(new[part], [(0, padding), *[(0, 0)] * (new.ndim - 1)]),
            blocks,
        )
    return jax.block_until_ready(values)
