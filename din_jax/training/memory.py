"""Whether a run fits the memory of its devices."""

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
from din_jax.step.state import TrainState, row_owners


def check_memory(
    shapes: TrainState,
    model: Model,
    optimizer: optax.GradientTransformation,
    regularizer: Regularizer,
    placement: Placement,
) -> None:
    """Raises DinError if the tables, with the optimizer's state of their rows, don't fit a device.

    Args:
      shapes: of the state, see `din_jax.step.state.state_shapes`.
      model, optimizer, regularizer, placement: what the state is of.
    """
    owners = row_owners(shapes, optimizer)
    rows = {name: spec.rows for name, spec in model.tables.items()}
    row_bytes = dict.fromkeys(rows, 0)
    for leaf, name in zip(jax.tree.leaves(shapes), jax.tree.leaves(owners), strict=True):
        if name:
            row_bytes[name] += math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    for name, n in regularizer.counts.items():
        row_bytes[name] += n.itemsize
    frequent = sum(ids.nbytes for ids in regularizer.frequent.values())  # whole on every device

    def block(name: str, count: int) -> int:
        return row_bytes[name] * -(-rows[name] // count)

    def fits(count: int) -> bool:
        """Whether `count` devices are enough for tables that are all sharded."""
        return sum(block(name, count) for name in rows) + frequent <= memory

    memory, count = devices.memory_bytes(placement), placement.count
    on_each = {name: block(name, count if name in placement.sharded else 1) for name in rows}
    needed = sum(on_each.values()) + frequent
    if needed <= memory:
        return
    numbers = range(1, max(rows.values()) + 1)
    enough = 1 + bisect.bisect_left(numbers, True, key=fits)
    less = "use config.optimizer.name='rowwise_adagrad' or 'sgd', which keep less"
    if fits(count):
        mend = "config.placement='sharded' fits"
    elif devices.simulated(placement):
        mend = f"this host has too little memory; take one with more, or {less}"
    elif enough in numbers:
        mend = f"use at least {enough} devices, with config.placement='sharded', or {less}"
    else:
        mend = less
    largest = max(on_each, key=lambda name: on_each[name])
    raise DinError(
        f"the tables with their optimizer state take {_gigabytes(needed)} on each device, which "
        f"has {_gigabytes(memory)}; the table {largest!r} of {rows[largest]:,} rows takes "
        f"{_gigabytes(on_each[largest])} of it: {mend}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
