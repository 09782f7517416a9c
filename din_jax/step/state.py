"""The train state: all that training changes, its initial value and its layout on the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from din_jax.data.packing import Batch
from din_jax.distributed.devices import Placement, one_device
from din_jax.distributed.mapping import PER_DEVICE, REPLICATED, over_devices
from din_jax.models.registry import Model
from din_jax.nn.embedding import init_tables
from din_jax.nn.present_rows import updates_sparsely
from din_jax.optim.row_sparse import row_leaves


class TrainState(struct.PyTreeNode):
    """All that training changes. A sharded table and its rows' optimizer state have a device axis.

    Attributes:
      step: int32 [], steps taken.
      params, batch_stats: of the network.
      tables: {name: [rows, D]}.
      opt_state: the optimizer's, over {"params": …, "tables": …}.
      scratch: {table: int32[K]} of the sparsely updated tables, see `present_rows`. Not saved.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    tables: dict[str, jax.Array]
    opt_state: Any
    scratch: dict[str, jax.Array]


def init_state(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: Batch,
    seed: int,
    *,
    lazy: bool = True,
    placement: Placement | None = None,
) -> TrainState:
    """The state before the first step. It is the same on any devices, but for rounding.

    Args:
      model, optimizer: what is to be trained, and how.
      batch: an example; only its shapes matter.
      seed: of the initial values.
      lazy: whether the optimizer is `row_sparse`: then tables that are large beside what a batch
        looks up in them are updated sparsely. Otherwise all updates are dense.
      placement: the devices, by default the first alone.
    """
    placement = placement or one_device()
    init = functools.partial(_local_init, model, optimizer, lazy, placement)
    axes = None
    if placement.axis is not None:
        owners = row_owners(_local_shapes(init, batch, placement), optimizer)
        axes = jax.tree.map(
            lambda table: PER_DEVICE if table in placement.sharded else REPLICATED, owners
        )
    # Compiled as a whole: much faster than op by op.
    mapped = over_devices(init, placement, (REPLICATED, PER_DEVICE, PER_DEVICE), axes)
    blocks: Any = 0 if placement.axis is None else np.array(placement.local, np.int32)
    return mapped(seed, batch, blocks)


def _local_init(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    lazy: bool,
    placement: Placement,
    seed: jax.Array,
    batch: Batch,
    block: jax.Array,
) -> TrainState:
    """One device's part of the state before the first step."""
    params_key, tables_key = jax.random.split(jax.random.key(seed))
    lookups = model.lookups(batch)
    # The network's weights depend on the tables' widths only.
    narrow = {name: jnp.zeros((1, spec.dim)) for name, spec in model.tables.items()}
    variables = model.module.init(params_key, narrow, lookups, batch, train=False)
    rows = {name: placement.block(model.tables[name].rows) for name in placement.sharded}
    tables = init_tables(model.tables, tables_key, blocks=rows, block=block)
    params = variables["params"]
    ids = {name: sum(len(at.ids) for at in lookups.get(name, {}).values()) for name in tables}
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        tables=tables,
        opt_state=optimizer.init({"params": params, "tables": tables}),
        scratch={
            name: jnp.zeros(len(table), jnp.int32)
            for name, table in tables.items()
            if lazy and updates_sparsely(model.tables[name].rows, placement.count * ids[name])
        },
    )

    def without_padding(leaf: jax.Array, table: str) -> jax.Array:
        """Zeros past a sharded table's end, also where an optimizer begins at another value."""
        if table not in rows:
            return leaf
        real = block * rows[table] + jnp.arange(len(leaf)) < model.tables[table].rows
        return jnp.where(real.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)

    return jax.tree.map(without_padding, state, row_owners(state, optimizer))


def _local_shapes(init: Callable[..., Any], batch: Batch, placement: Placement) -> TrainState:
    if placement.axis is not None:
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
    return jax.eval_shape(init, 0, batch, 0)


def state_shapes(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: Batch,
    *,
    lazy: bool = True,
    placement: Placement | None = None,
) -> TrainState:
    """The shape, type and sharding of a state's arrays, without making one.

    The shape of a sharded array is the unsharded one, [K, …].

    Args: as for `init_state`.
    """
    placement = placement or one_device()
    init = functools.partial(_local_init, model, optimizer, lazy, placement)
    shapes = _local_shapes(init, batch, placement)

    def whole(leaf: Any, table: str) -> jax.ShapeDtypeStruct:
        sharded = table in placement.sharded
        shape = (model.tables[table].rows, *leaf.shape[1:]) if sharded else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=placement.sharding(sharded=sharded))

    return jax.tree.map(whole, shapes, row_owners(shapes, optimizer))


def row_owners(state: TrainState, optimizer: optax.GradientTransformation) -> Any:
    """For each array of a state, the name of the table whose rows it has, or ""."""
    owners = row_leaves(optimizer, {"params": state.params, "tables": state.tables})
    none: Any = jax.tree.map(lambda _: "", state)
    return none.replace(
        tables={name: name for name in state.tables},
        opt_state=jax.tree.unflatten(
            jax.tree.structure(state.opt_state), [owner or "" for owner in owners]
        ),
        scratch={name: name for name in state.scratch},
    )
