"""The train step: a pure function of a state and a batch, on one device or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from din_jax.data.packing import Batch
from din_jax.distributed.devices import Placement, one_device, psum
from din_jax.models.registry import Model
from din_jax.nn.losses import negative_log_likelihood, weighted_mean
from din_jax.nn.present_rows import apply_row_updates, gather_rows, without_fixed
from din_jax.optim.catch_up import catch_up_present
from din_jax.optim.regularizer import Regularizer
from din_jax.step.batch_rows import model_tables, row_gradients, rows_of_batch
from din_jax.step.binding import Stacked, bind
from din_jax.step.state import TrainState

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]
TrainSteps = Callable[[TrainState, Sequence[Batch]], tuple[TrainState, jax.Array]]


def train_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    regularizer: Regularizer | None = None,
    placement: Placement | None = None,
) -> TrainStep:
    """Makes a step (state, batch) → (next state, loss) on the loss of Eq. 2. Donates the state.

    M devices with B / M samples each give the result of one device with B samples.

    Args:
      model, optimizer: the model and its optimizer, built for the placement's axis. The optimizer's
        `update` is called with `rows` {table: `Rows`} and `counts` {table: n_j of these rows}.
      regularizer: the dropout or filter of ids, and n_j.
      placement: the devices, by default the first.
    """
    placement = placement or one_device()
    local_step = _local_train_step(model, optimizer, placement)
    return bind(local_step, placement, regularizer, trains=True)


def train_steps(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    regularizer: Regularizer | None = None,
    placement: Placement | None = None,
    *,
    steps_per_call: int,
) -> TrainSteps:
    """Makes (state, batches) → (next state, losses [batches]), which takes a step on each batch.

    With small batches the overhead of a call is a large part of a step's time
    (docs/performance.md). The batches of one call must have equal shapes.

    Args:
      model, optimizer, regularizer, placement: see `train_step`.
      steps_per_call: the maximum number of batches in a call, for which it is compiled. A call may
        have fewer. It must be 1 on several devices.
    """
    placement = placement or one_device()
    local_step = _local_train_step(model, optimizer, placement)

    def one_step(
        state: TrainState, batch: Batch, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        state, loss = local_step(state, batch, regularizer)
        return state, loss[None]

    def steps(
        state: TrainState, batches: Stacked, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        def body(i: jax.Array, carry: tuple[TrainState, jax.Array]) -> Any:
            state, losses = carry
            state, loss = local_step(state, batches.batch(i), regularizer)
            return state, losses.at[i].set(loss)

        return jax.lax.fori_loop(0, batches.count, body, (state, jnp.zeros(steps_per_call)))

    if steps_per_call == 1:
        one = bind(one_step, placement, regularizer, trains=True)
        return lambda state, batches: one(state, *batches)
    mapped = bind(steps, placement, regularizer, trains=True)

    def call(state: TrainState, batches: Sequence[Batch]) -> tuple[TrainState, jax.Array]:
        state, losses = mapped(state, Stacked.of(batches, steps_per_call))
        return state, losses if len(batches) == steps_per_call else losses[: len(batches)]

    return call


def _local_train_step(
    model: Model, optimizer: optax.GradientTransformationExtraArgs, placement: Placement
) -> Callable[[TrainState, Batch, Regularizer], tuple[TrainState, jax.Array]]:
    """The train step on one device's local batch."""
    axis = placement.axis

    def local_step(
        state: TrainState, batch: Batch, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        lookups = regularizer.training(model.lookups(batch), state.step, axis)
        batch_rows = rows_of_batch(state.tables, lookups, state.scratch, axis, placement.sharded)
        # The rows that are trained. The model sees the fixed ones too, among `weights`.
        rows = batch_rows.rows | {
            name: without_fixed(batch_rows.rows[name], fixed) for name, fixed in state.fixed.items()
        }
        weights, options = catch_up_present(optimizer, state.opt_state, batch_rows.weights, rows)
        tables = model_tables(batch_rows._replace(weights=weights), axis, placement.sharded)

        def loss_of(trained: dict[str, Any]) -> tuple[jax.Array, Any]:
            (logits, _), updated = model.module.apply(
                {"params": trained["params"], "batch_stats": state.batch_stats},
                trained["tables"],
                batch_rows.lookups,
                batch,
                train=True,
                mutable=["batch_stats"],
            )
            losses = negative_log_likelihood(logits, batch.label)
            return weighted_mean(losses, batch.weight, axis), updated.get("batch_stats", {})

        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
            {"params": state.params, "tables": tables}
        )
        loss, param_grads = psum((loss, grads["params"]), axis)
        row_grads = row_gradients(grads["tables"], batch_rows, axis)
        row_grads |= {
            name: jnp.where(rows[name].present[:, None], row_grads[name], 0) for name in state.fixed
        }
        counts = {name: gather_rows(n, rows[name]) for name, n in regularizer.counts.items()}
        updates, opt_state = optimizer.update(
            {"params": param_grads, "tables": row_grads},
            state.opt_state,
            {"params": state.params, "tables": weights},
            rows=rows,
            counts=counts,
            **options,
        )
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates["params"]),
            batch_stats=batch_stats,
            tables={
                name: apply_row_updates(table, rows[name], updates["tables"][name], weights[name])
                for name, table in state.tables.items()
            },
            opt_state=opt_state,
            scratch=batch_rows.scratch,
            average=state.average,
            fixed=state.fixed,
        )
        return state, loss

    return local_step
