"""The train step and the score step: pure functions of a state and a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from din_jax.embedding import init_tables, present_mask
from din_jax.losses import click_logit, negative_log_likelihood, weighted_mean
from din_jax.models import Model
from din_jax.pipeline import Batch


class TrainState(struct.PyTreeNode):
    """All that training changes.

    Attributes:
      step: int32 [], steps taken.
      params, batch_stats: of the network.
      tables: {name: [rows, D]}.
      opt_state: the optimizer's, over {"params": …, "tables": …}.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    tables: dict[str, jax.Array]
    opt_state: Any


def init_state(
    model: Model, optimizer: optax.GradientTransformationExtraArgs, batch: Batch, seed: int
) -> TrainState:
    """A state before the first step; only the shapes of `batch` matter."""
    params_key, tables_key = jax.random.split(jax.random.key(seed))
    tables = init_tables(model.tables, tables_key)
    init = jax.jit(model.module.init, static_argnames="train")  # much faster than op by op
    variables = init(params_key, tables, model.lookups(batch), batch, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        tables=tables,
        opt_state=optimizer.init({"params": params, "tables": tables}),
    )


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]


def train_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    counts: Mapping[str, Any] | None = None,
) -> TrainStep:
    """(state, batch) → (next state, loss): one step on Eq. 2. The given state is donated.

    Args:
      model, optimizer: what is trained, and how. The optimizer is given `present`
        {table: bool[rows]} and `counts`, for the tables in `counts`.
      counts: n_j of the tables that are decayed, {table: [rows]}.
    """
    counts = jax.tree.map(jnp.asarray, dict(counts or {}))

    def step(
        state: TrainState, batch: Batch, counts: dict[str, jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        lookups = model.lookups(batch)

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

        trained = {"params": state.params, "tables": state.tables}
        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        present = {name: present_mask(lookups[name], len(n)) for name, n in counts.items()}
        updates, opt_state = optimizer.update(
            grads, state.opt_state, trained, present=present, counts=counts
        )
        trained = optax.apply_updates(trained, updates)
        state = TrainState(
            step=state.step + 1,
            params=trained["params"],
            batch_stats=batch_stats,
            tables=trained["tables"],
            opt_state=opt_state,
        )
        return state, loss

    # The counts are an argument, not a constant: they are as long as the tables.
    return functools.partial(jax.jit(step, donate_argnums=0), counts=counts)


ScoreStep = Callable[[TrainState, Batch], jax.Array]


def score_step(model: Model) -> ScoreStep:
    """(state, batch) → logits [B] of the click probabilities, with Dice's moving averages."""

    def score(state: TrainState, batch: Batch) -> jax.Array:
        logits, _ = model.module.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            state.tables,
            model.lookups(batch),
            batch,
            train=False,
        )
        return click_logit(logits)

    return jax.jit(score)
