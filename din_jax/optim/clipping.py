"""Gradient clipping by global norm, on one device or several."""

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

    On several devices ‖g‖ is the norm of the global gradient. The squares of replicated gradients,
    of which every device has a copy, are averaged over devices; those of a sharded table's blocks
    are summed. The copies may differ in the last bits if devices sum in another order: the average
    makes all devices scale by the same factor nevertheless.

    Args:
      max_norm: the greatest norm that is not clipped.
      axis: the devices' mapped axis, or None for one device.
      sharded: names of the sharded tables.

    Returns:
      A transformation of trees {"params": …, "tables": {name: [rows, D]}}.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        tables = updates["tables"]
        blocks = {name: grad for name, grad in tables.items() if name in sharded}
        replicated = {
            **updates,
            "tables": {name: grad for name, grad in tables.items() if name not in blocks},
        }
        squares = optax.tree.norm(replicated, squared=True) / psum(1, axis)
        if blocks:
            squares += optax.tree.norm(blocks, squared=True)
        norm = jnp.sqrt(psum(squares, axis))
        return jax.tree.map(
            lambda g: jnp.where(norm < max_norm, g, g / norm.astype(g.dtype) * max_norm), updates
        ), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
