"""Row-wise Adagrad: one accumulator per row."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class RowwiseAdagradState(NamedTuple):
    """State of `scale_by_rowwise_rss`: for each table [K, D] the sums [K] of its rows."""

    sum_of_squares: Any


def scale_by_rowwise_rss(
    initial_accumulator_value: float = 0.0, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Scales a row's gradient by the root of the sum, over steps, of its mean square.

        s_j ← s_j + mean(g_j²),   u_j = g_j / (√s_j + ε)

    It has one accumulator per row instead of D, for tables whose optimizer state would not fit in
    memory. This is FBGEMM's EXACT_ROWWISE_ADAGRAD, which TorchRec uses.

    Args:
      initial_accumulator_value: the initial value of s_j.
      eps: ε.
    """

    def init(params: Any) -> RowwiseAdagradState:
        return RowwiseAdagradState(
            jax.tree.map(
                lambda w: jnp.full(w.shape[:1], initial_accumulator_value, w.dtype), params
            )
        )

    def update(
        updates: Any, state: RowwiseAdagradState, params: Any = None
    ) -> tuple[Any, RowwiseAdagradState]:
        del params
        sums = jax.tree.map(
            lambda g, s: s + jnp.mean(jnp.square(g), axis=range(1, g.ndim)),
            updates,
            state.sum_of_squares,
        )
        updates = jax.tree.map(
            lambda g, s: g / (jnp.sqrt(s) + eps).reshape(-1, *[1] * (g.ndim - 1)), updates, sums
        )
        return updates, RowwiseAdagradState(sums)

    return optax.GradientTransformation(init, update)


def rowwise_adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Row-wise Adagrad; see `scale_by_rowwise_rss`.

    Args:
      learning_rate: a constant or a schedule.
      initial_accumulator_value, eps: see `scale_by_rowwise_rss`.
    """
    return optax.chain(
        scale_by_rowwise_rss(initial_accumulator_value, eps),
        optax.scale_by_learning_rate(learning_rate),
    )
