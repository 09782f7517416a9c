"""The train state, its initial value and its sharding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
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


class Average(struct.PyTreeNode):
    """Averages of a state's weights over the steps, see `din_jax.step.average.average`.

    Attributes:
      count: int32 [], the number of states averaged.
      params, batch_stats, tables: the averages, of the shapes and placement of the state's.
    """

    count: jax.Array
    params: Any
    batch_stats: Any
    tables: dict[str, jax.Array]


class TrainState(struct.PyTreeNode):
    """The arrays that training updates, and which of a table's rows it does not update.

    A sharded table, its scratch and its rows' optimizer state have a leading device axis.

    Attributes:
      step: int32 [], the number of steps taken.
      params, batch_stats: the network's Flax collections.
      tables: {name: [K, D]}.
      opt_state: the optimizer's state for {"params": …, "tables": …}.
      scratch: {table: int32[K]} of the tables that are updated sparsely, see `present_rows`. It is
        not saved.
      average: the averages of the weights, () if the run averages none.
      fixed: {table: bool[K]} of the tables with rows that keep their values, True for these rows.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    tables: dict[str, jax.Array]
    opt_state: Any
    scratch: dict[str, jax.Array]
    average: Average | tuple[()] = ()  # not None, which has a leaf in the axes of `jax.pmap`
    fixed: dict[str, jax.Array] = struct.field(default_factory=dict)

    def scored(self) -> TrainState:
        """The state whose weights are scored: the averages, if any have been taken."""
        if not isinstance(self.average, Average) or not int(self.average.count):
            return self.replace(average=())
        return self.replace(
            params=self.average.params,
            batch_stats=self.average.batch_stats,
            tables=self.average.tables,
            average=(),
        )


StateToState = Callable[[TrainState], TrainState]


def init_state(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: Batch,
    seed: int,
    *,
    lazy: bool = True,
    averages: bool = False,
    fixed: Collection[str] = (),
    placement: Placement | None = None,
) -> TrainState:
    """Makes the initial state. Up to rounding it does not depend on the placement.

    Args:
      model, optimizer: the model and its optimizer.
      batch: an example batch; only its shapes matter.
      seed: the seed of the initial values.
      lazy: whether the optimizer is `row_sparse`. Then tables with many rows, compared with a
        batch's ids, are updated sparsely (`updates_sparsely`). Otherwise all updates are dense.
      averages: whether the state has averages of the weights.
      fixed: tables of which rows may be fixed; none is yet (`din_jax.step.pretrained`).
      placement: the devices, by default the first.
    """
    placement = placement or one_device()
    init = functools.partial(_local_init, model, optimizer, lazy, averages, fixed, placement)
    axes = None
    if placement.axis is not None:
        owners = row_owners(_local_shapes(init, batch, placement), optimizer)
        axes = jax.tree.map(
            lambda table: PER_DEVICE if table in placement.sharded else REPLICATED, owners
        )
    # One compiled program: much faster than op by op.
    mapped = over_devices(init, placement, (REPLICATED, PER_DEVICE, PER_DEVICE), axes)
    blocks: Any = 0 if placement.axis is None else np.array(placement.local, np.int32)
    return mapped(seed, batch, blocks)


def _local_init(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    lazy: bool,
    averages: bool,
    fixed: Collection[str],
    placement: Placement,
    seed: jax.Array,
    batch: Batch,
    block: jax.Array,
) -> TrainState:
    """One device's shard of the initial state; `block` is its index."""
    params_key, tables_key = jax.random.split(jax.random.key(seed))
    lookups = model.lookups(batch)
    # The network's weights depend only on the tables' widths.
    narrow = {name: jnp.zeros((1, spec.dim)) for name, spec in model.tables.items()}
    variables = model.module.init(params_key, narrow, lookups, batch, train=False)
    rows = {name: placement.block(model.tables[name].rows) for name in placement.sharded}
    tables = init_tables(model.tables, tables_key, blocks=rows, block=block)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    ids = {
        name: sum(len(lookup.ids) for lookup in lookups.get(name, {}).values()) for name in tables
    }
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        tables=tables,
        opt_state=optimizer.init({"params": params, "tables": tables}),
        scratch={
            name: jnp.zeros(len(table), jnp.int32)
            for name, table in tables.items()
            if lazy and updates_sparsely(model.tables[name].rows, placement.count * ids[name])
        },
        average=_no_average(params, batch_stats, tables) if averages else (),
        fixed={name: jnp.zeros(len(tables[name]), bool) for name in fixed},
    )

    def zero_padding(leaf: jax.Array, table: str) -> jax.Array:
        """Zeros a sharded table's padding, where optimizer state may have another initial value."""
        if table not in rows:
            return leaf
        real = block * rows[table] + jnp.arange(len(leaf)) < model.tables[table].rows
        return jnp.where(real.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)

    return jax.tree.map(zero_padding, state, row_owners(state, optimizer))


def _no_average(params: Any, batch_stats: Any, tables: dict[str, jax.Array]) -> Average:
    zeros = jax.tree.map(jnp.zeros_like, (params, batch_stats, tables))
    return Average(jnp.zeros((), jnp.int32), *zeros)


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
    averages: bool = False,
    fixed: Collection[str] = (),
    placement: Placement | None = None,
) -> TrainState:
    """The shapes, dtypes and shardings of a state's arrays, without making them.

    The shape of a sharded array is its unsharded shape, [K, …].

    Args: see `init_state`.
    """
    placement = placement or one_device()
    init = functools.partial(_local_init, model, optimizer, lazy, averages, fixed, placement)
    shapes = _local_shapes(init, batch, placement)

    def unsharded(leaf: Any, table: str) -> jax.ShapeDtypeStruct:
        sharded = table in placement.sharded
        shape = (model.tables[table].rows, *leaf.shape[1:]) if sharded else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=placement.sharding(sharded=sharded))

    return jax.tree.map(unsharded, shapes, row_owners(shapes, optimizer))


def row_owners(state: TrainState, optimizer: optax.GradientTransformation) -> Any:
    """For each array of a state, the name of the table whose K rows it has, or ""."""
    owners = row_leaves(optimizer, {"params": state.params, "tables": state.tables})
    none: Any = jax.tree.map(lambda _: "", state)
    tables = {name: name for name in state.tables}
    return none.replace(
        tables=tables,
        opt_state=jax.tree.unflatten(
            jax.tree.structure(state.opt_state), [owner or "" for owner in owners]
        ),
        scratch={name: name for name in state.scratch},
        average=none.average and none.average.replace(tables=tables),
        fixed={name: name for name in state.fixed},
    )
