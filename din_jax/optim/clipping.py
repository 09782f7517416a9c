"""Clipping by global norm, on one device or many."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from din_jax.distributed.devices import psum


def clip_by_global_norm(
    max_norm: float, axis: str | None = None, sharded: Collection[str] = ()
) -> optax.GradientTransformation:
    """Scales all gradients by min(1, max_norm / ‖g‖), as `optax.clip_by_global_norm` does.

    On several devices ‖g‖ is that of the whole gradient: every device holds all of a replicated
    parameter's, and only its block's part of a sharded table's. The squares of the first are
    averaged over devices, those of the second summed. The average is of what should be equal: where
    devices differ in the last bits, having summed in another order, all scale alike nevertheless.

    Args:
      max_norm: the largest norm that is left as it is.
      axis: mapped axis of the devices, or None for one.
      sharded: names of the tables of which each device has a block.

    Returns:
      A transformation of trees {"params": …, "tables": {name: [rows, D]}}.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        tables = updates["tables"]
        apart = {name: grad for name, grad in tables.items() if name in sharded}
        common = {**updates, "tables": {n: grad for n, grad in tables.items() if n not in apart}}
        squares = optax.tree.norm(common, squared=True) / psum(1, axis)
        if apart:
            squares += optax.tree.norm(apart, squared=True)
        norm = jnp.sqrt(psum(squares, axis))
        return jax.tree.map(
            lambda g: jnp.where(norm < max_norm, g, g / norm.astype(g.dtype) * max_norm), updates
        ), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
