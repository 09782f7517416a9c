"""The train step and the score step: pure functions of a state and a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from din_jax.embedding import (
    apply_row_updates,
    gather_rows,
    goes_by_rows,
    init_tables,
    rows_of_batch,
)
from din_jax.losses import click_logit, negative_log_likelihood, weighted_mean
from din_jax.models import Model
from din_jax.pipeline import Batch
from din_jax.regularizers import Regularizer


class TrainState(struct.PyTreeNode):
    """All that training changes.

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


def init_state(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    batch: Batch,
    seed: int,
    *,
    lazy: bool = True,
) -> TrainState:
    """A state before the first step.

    Args:
      model, optimizer: what is to be trained, and how.
      batch: one like those to come: only its shapes matter.
      seed: of the initial values.
      lazy: whether the optimizer is `row_sparse`: then tables that are large beside what a batch
        looks up in them go by rows. Otherwise all are updated as a whole.
    """
    params_key, tables_key = jax.random.split(jax.random.key(seed))
    tables = init_tables(model.tables, tables_key)
    init = jax.jit(model.module.init, static_argnames="train")  # much faster than op by op
    lookups = model.lookups(batch)
    variables = init(params_key, tables, lookups, batch, train=False)
    params = variables["params"]
    ids = {name: sum(len(at.ids) for at in lookups[name].values()) for name in tables}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        tables=tables,
        opt_state=optimizer.init({"params": params, "tables": tables}),
        scratch={
            name: jnp.zeros(len(table), jnp.int32)
            for name, table in tables.items()
            if lazy and goes_by_rows(len(table), ids[name])
        },
    )


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]


def train_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    regularizer: Regularizer | None = None,
) -> TrainStep:
    """(state, batch) → (next state, loss): one step on Eq. 2. The given state is donated.

    Args:
      model, optimizer: what is trained, and how. The optimizer is given `rows` {table: `Rows`} and
        `counts`, n_j of those rows.
      regularizer: what is done to ids, and n_j.
    """

    def step(
        state: TrainState, batch: Batch, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        lookups = regularizer.training(model.lookups(batch), state.step)
        tables, lookups, rows, scratch = rows_of_batch(state.tables, lookups, state.scratch)

        def loss_of(trained: dict[str, Any]) -> tuple[jax.Array, Any]:
            (logits, _), updated = model.module.apply(
                {"params": trained["params"], "batch_stats": state.batch_stats},
                trained["tables"],
                lookups,
                batch,
                train=True,
                mutable=["batch_stats"],
            )
            loss = weighted_mean(negative_log_likelihood(logits, batch.label), batch.weight)
            return loss, updated.get("batch_stats", {})

        trained = {"params": state.params, "tables": tables}
        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        counts = {name: gather_rows(n, rows[name]) for name, n in regularizer.counts.items()}
        updates, opt_state = optimizer.update(
            grads, state.opt_state, trained, rows=rows, counts=counts
        )
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates["params"]),
            batch_stats=batch_stats,
            tables={
                name: apply_row_updates(table, rows[name], updates["tables"][name])
                for name, table in state.tables.items()
            },
            opt_state=opt_state,
            scratch=scratch,
        )
        return state, loss

    # The regulariser is an argument, not a constant: n_j is as long as the tables.
    return functools.partial(
        jax.jit(step, donate_argnums=0), regularizer=_on_device(regularizer or Regularizer())
    )


ScoreStep = Callable[[TrainState, Batch], jax.Array]


def score_step(model: Model, regularizer: Regularizer | None = None) -> ScoreStep:
    """(state, batch) → logits [B] of the click probabilities, with Dice's moving averages."""

    def score(state: TrainState, batch: Batch, regularizer: Regularizer) -> jax.Array:
        logits, _ = model.module.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            state.tables,
            regularizer.scoring(model.lookups(batch)),
            batch,
            train=False,
        )
        return click_logit(logits)

    return functools.partial(jax.jit(score), regularizer=_on_device(regularizer or Regularizer()))


def _on_device(regularizer: Regularizer) -> Regularizer:
    return jax.tree.map(jnp.asarray, regularizer)
