"""The train step and the score step: pure functions of a state and a batch, on one device or many.

Each is written for one device's share of a batch, and names the axis of the devices where something
is summed over them; `over_devices` is the one place that maps them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from din_jax import cpu
from din_jax.devices import AXIS, Placement, is_sharded, one_device, psum
from din_jax.embedding import (
    apply_row_updates,
    fetch_sharded,
    gather_rows,
    goes_by_rows,
    init_tables,
    row_gradients,
    rows_of_batch,
)
from din_jax.losses import click_logit, negative_log_likelihood, weighted_mean
from din_jax.models import Model
from din_jax.optim import row_leaves
from din_jax.pipeline import Batch
from din_jax.regularizers import Regularizer

_SHORT = 1280  # places of a packed axis: such batches are scored several as one
_SCORED_AS_ONE = 16_384  # places of a packed axis, as many as a batch of 1024 may have
_MAPPED, _COMMON = 0, None  # what has the devices' axis, and what all devices have alike


class TrainState(struct.PyTreeNode):
    """All that training changes. A sharded table, and what is kept of its rows, has a device axis.

    Attributes:
      step: int32 [], steps taken.
      params, batch_stats: of the network.
      tables: {name: [rows, D]}.
      opt_state: the optimizer's, over {"params": …, "tables": …}.
      scratch: {table: int32[K]} of the tables that go by rows. It holds nothing worth saving.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    tables: dict[str, jax.Array]
    opt_state: Any
    scratch: dict[str, jax.Array]


def over_devices(
    share: Callable[..., Any],
    placement: Placement,
    in_axes: Any,
    out_axes: Any,
    *,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Compiles a function of one device's share for all devices of a placement.

    One device needs no axis: that is `jax.jit`. Several are `jax.pmap`.

    Args:
      share: the function; its collectives name the placement's axis.
      placement: the devices.
      in_axes: 0 for what has the devices' axis, None for what all have alike.
      out_axes: the same for each array that `share` returns. What it returns for None must be the
        same on all devices: `jax.pmap` does not look.
      donate: positions of the arguments whose memory the results take.
    """
    if placement.axis is None:
        on_cpu = placement.devices[0].platform == "cpu"
        return (_JittedForCPU if on_cpu else jax.jit)(share, donate_argnums=donate)
    # Results go out flat: with several processes `jax.pmap` (JAX 0.10) can't return a dict.
    flat_axes, structure = jax.tree.flatten(out_axes, is_leaf=lambda axis: axis is None)
    mapped = jax.pmap(
        lambda *arguments: tuple(jax.tree.leaves(share(*arguments))),
        AXIS,
        in_axes=in_axes,
        out_axes=tuple(flat_axes),
        devices=placement.devices,
        donate_argnums=donate,
    )
    return _Mapped(mapped, structure)


class _JittedForCPU:
    """A `jax.jit` with options for XLA. Inside another one, which has none, it has none.

    It compiles in a thread of its own, where what that leaves in the heap is in no step's way. What
    JAX sets for a thread, as `with jax.debug_nans(True)` does, does not hold in a first call.
    """

    def __init__(self, function: Callable[..., Any], *, donate_argnums: tuple[int, ...]):
        self._plain = jax.jit(function, donate_argnums=donate_argnums)
        options = cpu.compiler_options()
        self._tuned = jax.jit(function, donate_argnums=donate_argnums, compiler_options=options)
        self._compiled = set[Any]()
        self.lower = self._tuned.lower

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._plain(*arguments, **named)
        arguments = jax.tree.unflatten(structure, cpu.ready(leaves))
        shapes = tuple(np.shape(leaf) for leaf in leaves)
        if shapes in self._compiled:
            return self._tuned(*arguments, **named)
        self._compiled.add(shapes)
        return cpu.in_own_thread(functools.partial(self._tuned, *arguments, **named))


class _Mapped:
    """A `jax.pmap` with results of a structure. `lower` is as in `jax.jit`."""

    def __init__(self, mapped: Any, structure: Any):
        self._mapped, self._structure = mapped, structure
        self.lower = mapped.lower

    def __call__(self, *arguments: Any) -> Any:
        return jax.tree.unflatten(self._structure, self._mapped(*arguments))


def init_state(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: Batch,
    seed: int,
    *,
    lazy: bool = True,
    placement: Placement | None = None,
) -> TrainState:
    """A state before the first step: but for rounding the same, however it lies on the devices.

    Args:
      model, optimizer: what is to be trained, and how.
      batch: one like those to come: only its shapes matter.
      seed: of the initial values.
      lazy: whether the optimizer is `row_sparse`: then tables that are large beside what a batch
        looks up in them go by rows. Otherwise all are updated as a whole.
      placement: the devices, by default the first alone.
    """
    placement = placement or one_device()
    share = functools.partial(_init_share, model, optimizer, lazy, placement)
    axes = None
    if placement.axis is not None:
        owners = row_owners(_shapes_of_share(share, batch, placement), optimizer)
        axes = jax.tree.map(
            lambda table: _MAPPED if table in placement.sharded else _COMMON, owners
        )
    # Compiled as a whole: much faster than op by op.
    mapped = over_devices(share, placement, (_COMMON, _MAPPED, _MAPPED), axes)
    blocks: Any = 0 if placement.axis is None else np.array(placement.local, np.int32)
    return mapped(seed, batch, blocks)


def _init_share(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    lazy: bool,
    placement: Placement,
    seed: jax.Array,
    batch: Batch,
    block: jax.Array,
) -> TrainState:
    """What lies on one device of a state before the first step."""
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
            if lazy and goes_by_rows(model.tables[name].rows, placement.count * ids[name])
        },
    )

    def without_padding(leaf: jax.Array, table: str) -> jax.Array:
        """Zeros past a sharded table's end, also where an optimizer begins at another value."""
        if table not in rows:
            return leaf
        real = block * rows[table] + jnp.arange(len(leaf)) < model.tables[table].rows
        return jnp.where(real.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)

    return jax.tree.map(without_padding, state, row_owners(state, optimizer))


def _shapes_of_share(share: Callable[..., Any], batch: Batch, placement: Placement) -> TrainState:
    if placement.axis is not None:
        batch = jax.tree.map(lambda leaf: leaf[0], batch)
    return jax.eval_shape(share, 0, batch, 0)


def state_shapes(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: Batch,
    *,
    lazy: bool = True,
    placement: Placement | None = None,
) -> TrainState:
    """Shape, type and sharding of a state's arrays, none of which is made.

    A sharded array's shape is here that of the whole, [K, …], as in a checkpoint.

    Args: as for `init_state`.
    """
    placement = placement or one_device()
    share = functools.partial(_init_share, model, optimizer, lazy, placement)
    shapes = _shapes_of_share(share, batch, placement)

    def whole(leaf: Any, table: str) -> jax.ShapeDtypeStruct:
        sharded = table in placement.sharded
        shape = (model.tables[table].rows, *leaf.shape[1:]) if sharded else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=placement.sharding(sharded=sharded))

    return jax.tree.map(whole, shapes, row_owners(shapes, optimizer))


def row_owners(state: TrainState, optimizer: optax.GradientTransformation) -> Any:
    """For each array of a state the name of the table whose rows it has, or ""."""
    owners = row_leaves(optimizer, {"params": state.params, "tables": state.tables})
    none: Any = jax.tree.map(lambda _: "", state)
    return none.replace(
        tables={name: name for name in state.tables},
        opt_state=jax.tree.unflatten(
            jax.tree.structure(state.opt_state), [owner or "" for owner in owners]
        ),
        scratch={name: name for name in state.scratch},
    )


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]
TrainSteps = Callable[[TrainState, Sequence[Batch]], tuple[TrainState, jax.Array]]


def train_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    regularizer: Regularizer | None = None,
    placement: Placement | None = None,
) -> TrainStep:
    """(state, batch) → (next state, loss): one step on Eq. 2. The given state is donated.

    M devices with B / M samples each give what one device gives with B.

    Args:
      model, optimizer: what is trained, and how; built for the placement's axis. The optimizer is
        given `rows` {table: `Rows`} and `counts`, n_j of those rows.
      regularizer: what is done to ids, and n_j.
      placement: the devices, by default the first alone.
    """
    placement = placement or one_device()
    share = _train_share(model, optimizer, placement)
    return _of_state(share, placement, regularizer, trains=True)


def train_steps(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    regularizer: Regularizer | None = None,
    placement: Placement | None = None,
    *,
    at_once: int,
) -> TrainSteps:
    """(state, batches) → (next state, losses [batches]): a step on each batch, in one call.

    With small batches the call itself is a good part of a step (docs/performance.md). Batches of
    one call have the same shapes.

    Args:
      model, optimizer, regularizer, placement: as for `train_step`.
      at_once: the most batches of a call. It is compiled for that many; fewer may be given. On
        several devices 1.
    """
    placement = placement or one_device()
    share = _train_share(model, optimizer, placement)

    def one_step(
        state: TrainState, batch: Batch, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        state, loss = share(state, batch, regularizer)
        return state, loss[None]

    def steps(
        state: TrainState, batches: _Several, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        def take(i: jax.Array, before: tuple[TrainState, jax.Array]) -> Any:
            state, loss = share(before[0], batches.batch(i), regularizer)
            return state, before[1].at[i].set(loss)

        return jax.lax.fori_loop(0, batches.count, take, (state, jnp.zeros(at_once)))

    if at_once == 1:
        one = _of_state(one_step, placement, regularizer, trains=True)
        return lambda state, batches: one(state, *batches)
    mapped = _of_state(steps, placement, regularizer, trains=True)

    def call(state: TrainState, batches: Sequence[Batch]) -> tuple[TrainState, jax.Array]:
        state, losses = mapped(state, _Several.of(batches, at_once))
        return state, losses if len(batches) == at_once else losses[: len(batches)]

    return call


class _Several(struct.PyTreeNode):
    """Batches of the same shapes, stacked; `count` says how many of them are meant."""

    stacked: Batch
    count: Any

    @classmethod
    def of(cls, batches: Sequence[Batch], room: int) -> _Several:
        filled = [*batches, *[batches[-1]] * (room - len(batches))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)
        return cls(stacked, np.int32(len(batches)))

    def batch(self, i: jax.Array) -> Batch:
        return jax.tree.map(lambda leaf: leaf[i], self.stacked)


def _train_share(
    model: Model, optimizer: optax.GradientTransformationExtraArgs, placement: Placement
) -> Callable[[TrainState, Batch, Regularizer], tuple[TrainState, jax.Array]]:
    """A train step on one device's share of a batch."""
    axis = placement.axis

    def share(
        state: TrainState, batch: Batch, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        lookups = regularizer.training(model.lookups(batch), state.step, axis)
        found = rows_of_batch(state.tables, lookups, state.scratch, axis, placement.sharded)

        def loss_of(trained: dict[str, Any]) -> tuple[jax.Array, Any]:
            (logits, _), updated = model.module.apply(
                {"params": trained["params"], "batch_stats": state.batch_stats},
                trained["tables"],
                found.lookups,
                batch,
                train=True,
                mutable=["batch_stats"],
            )
            losses = negative_log_likelihood(logits, batch.label)
            return weighted_mean(losses, batch.weight, axis), updated.get("batch_stats", {})

        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
            {"params": state.params, "tables": found.tables}
        )
        loss, param_grads = psum((loss, grads["params"]), axis)
        counts = {name: gather_rows(n, found.rows[name]) for name, n in regularizer.counts.items()}
        updates, opt_state = optimizer.update(
            {"params": param_grads, "tables": row_gradients(grads["tables"], found, axis)},
            state.opt_state,
            {"params": state.params, "tables": found.weights},
            rows=found.rows,
            counts=counts,
        )
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates["params"]),
            batch_stats=batch_stats,
            tables={
                name: apply_row_updates(table, found.rows[name], updates["tables"][name])
                for name, table in state.tables.items()
            },
            opt_state=opt_state,
            scratch=found.scratch,
        )
        return state, loss

    return share


ScoreStep = Callable[[TrainState, Batch], jax.Array]
ScoreSteps = Callable[[TrainState, Sequence[Batch]], jax.Array]


def score_step(
    model: Model, regularizer: Regularizer | None = None, placement: Placement | None = None
) -> ScoreStep:
    """(state, batch) → logits [B] of the click probabilities, with Dice's moving averages.

    Args: as for `train_step`.
    """
    placement = placement or one_device()
    return _of_state(_score_share(model, placement), placement, regularizer, trains=False)


def score_steps(
    model: Model,
    regularizer: Regularizer | None = None,
    placement: Placement | None = None,
    *,
    at_once: int,
) -> ScoreSteps:
    """(state, batches) → logits [batches · B]: all are scored in one call; see `train_steps`.

    Small batches, of which several take little memory, are scored side by side.
    """
    placement = placement or one_device()
    share = _score_share(model, placement)
    if at_once == 1:
        one = _of_state(share, placement, regularizer, trains=False)
        return lambda state, batches: one(state, *batches)

    def steps(state: TrainState, batches: _Several, regularizer: Regularizer) -> jax.Array:
        longest = max(leaf.shape[1] for leaf in jax.tree.leaves(batches.stacked))
        z = jax.lax.map(
            lambda batch: share(state, batch, regularizer),
            batches.stacked,
            batch_size=_side_by_side(at_once, longest),
        )
        return z.reshape(-1)

    mapped = _of_state(steps, placement, regularizer, trains=False)

    def call(state: TrainState, batches: Sequence[Batch]) -> jax.Array:
        z = mapped(state, _Several.of(batches, at_once))
        return z if len(batches) == at_once else z[: len(batches) * len(batches[0].label)]

    return call


def _side_by_side(batches: int, longest: int) -> int | None:
    """How many batches are scored as one; None: each by itself, as it is best if it is not short.

    Args:
      batches: of a call; a power of two, or they are not shared out evenly and XLA compiles twice.
      longest: of their axes.
    """
    if longest > _SHORT:
        return None
    return min(batches, 1 << (_SCORED_AS_ONE // longest).bit_length() - 1)


def _score_share(
    model: Model, placement: Placement
) -> Callable[[TrainState, Batch, Regularizer], jax.Array]:
    """A score step on one device's share of a batch."""
    axis = placement.axis

    def share(state: TrainState, batch: Batch, regularizer: Regularizer) -> jax.Array:
        tables, lookups = fetch_sharded(
            state.tables, regularizer.scoring(model.lookups(batch)), axis, placement.sharded
        )
        logits, _ = model.module.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            tables,
            lookups,
            batch,
            train=False,
        )
        z = click_logit(logits)
        return z if axis is None else jax.lax.all_gather(z, axis, tiled=True)

    return share


def _of_state(
    share: Callable[..., Any],
    placement: Placement,
    regularizer: Regularizer | None,
    *,
    trains: bool,
) -> Callable[[TrainState, Any], Any]:
    """Maps a step; how its state lies is seen when it is first called."""
    # The regulariser is an argument, not a constant: n_j is as long as the tables.
    given = _laid_out(regularizer or Regularizer(), placement)
    if placement.axis is None:
        donate = (0,) if trains else ()
        return functools.partial(
            over_devices(share, placement, None, None, donate=donate), regularizer=given
        )
    return _OfState(share, placement, given, trains=trains)


class _OfState:
    """A step on several devices, mapped for the state that it is first given.

    `lower` is as in `jax.jit`.
    """

    def __init__(
        self, share: Callable[..., Any], placement: Placement, given: Regularizer, *, trains: bool
    ):
        self._share, self._placement, self._given = share, placement, given
        self._trains = trains
        self._mapped: Any = None

    def _of(self, state: TrainState) -> Any:
        if self._mapped is None:
            axes, given_axes = _axes((state, self._given))
            self._mapped = over_devices(
                self._share,
                self._placement,
                (axes, _MAPPED, given_axes),
                (axes, _COMMON) if self._trains else _COMMON,
                donate=(0,) if self._trains else (),
            )
        return self._mapped

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        return self._of(state)(state, batch, self._given)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        return self._of(state).lower(state, batch, self._given)


def _axes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: _MAPPED if is_sharded(leaf) else _COMMON, tree)


def _laid_out(regularizer: Regularizer, placement: Placement) -> Regularizer:
    """The regulariser on the devices; n_j lies with its rows."""
    return regularizer.replace(
        counts={
            name: placement.put(n, sharded=name in placement.sharded)
            for name, n in regularizer.counts.items()
        },
        # Of all rows: ids are filtered before it is known on which device their rows lie.
        kept={name: placement.put(kept) for name, kept in regularizer.kept.items()},
    )
