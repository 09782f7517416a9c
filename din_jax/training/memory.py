"""Checks that a run's tables fit in the devices' memory."""

from __future__ import annotations

import bisect
import math

import jax
import optax

from din_jax.distributed import devices
from din_jax.distributed.devices import Placement
from din_jax.errors import DinError
from din_jax.models.registry import Model
from din_jax.optim.regularizer import Regularizer
from din_jax.step.state import Average, TrainState, row_owners


def check_memory(
    shapes: TrainState,
    model: Model,
    optimizer: optax.GradientTransformation,
    regularizer: Regularizer,
    placement: Placement,
) -> None:
    """Raises DinError if the tables, with their rows' state and averages, don't fit in a device.

    Args:
      shapes: the state's shapes, see `din_jax.step.state.state_shapes`.
      model, optimizer, regularizer, placement: those of the run.
    """
    owners = row_owners(shapes, optimizer)
    rows = {name: spec.rows for name, spec in model.tables.items()}
    row_bytes = dict.fromkeys(rows, 0)
    for leaf, name in zip(jax.tree.leaves(shapes), jax.tree.leaves(owners), strict=True):
        if name:
            row_bytes[name] += math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    for name, n in regularizer.counts.items():
        row_bytes[name] += n.itemsize
    frequent: int = sum(ids.nbytes for ids in regularizer.frequent.values())  # replicated

    def block_bytes(name: str, count: int) -> int:
        return row_bytes[name] * -(-rows[name] // count)

    def fits(count: int) -> bool:
        """Whether the tables, all of them sharded, fit on `count` devices."""
        return sum(block_bytes(name, count) for name in rows) + frequent <= memory

    memory, count = devices.memory_bytes(placement), placement.count
    table_bytes = {
        name: block_bytes(name, count if name in placement.sharded else 1) for name in rows
    }
    needed = sum(table_bytes.values()) + frequent
    if needed <= memory:
        return
    counts = range(1, max(rows.values()) + 1)
    sufficient = 1 + bisect.bisect_left(counts, True, key=fits)
    smaller = "use config.optimizer.name='rowwise_adagrad' or 'sgd', whose state is smaller"
    if isinstance(shapes.average, Average):
        smaller += ", or config.train.ema_epochs=0, without averages of the tables"
    if fits(count):
        remedy = "config.placement='sharded' fits"
    elif devices.simulated(placement):
        remedy = f"this host has too little memory; use one with more, or {smaller}"
    elif sufficient in counts:
        remedy = f"use at least {sufficient} devices, with config.placement='sharded', or {smaller}"
    else:
        remedy = smaller
    largest = max(table_bytes, key=lambda name: table_bytes[name])
    raise DinError(
        f"the tables with their optimizer state take {_gigabytes(needed)} on each device, which "
        f"has {_gigabytes(memory)}; the table {largest!r} of {rows[largest]:,} rows takes "
        f"{_gigabytes(table_bytes[largest])} of it: {remedy}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
