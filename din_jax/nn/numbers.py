"""Numeric inputs: a number, or that it is missing. The paper has none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


def number_inputs(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The two inputs of a number x, float32[N, 2]: (x, 0), or (0, 1) if it is missing.

    Args:
      values: float32[N], NaN where the number is missing.
      mask: bool[N], False for padding, whose inputs are (0, 0).
    """
    missing = jnp.isnan(values)
    inputs = jnp.stack([jnp.where(missing, 0, values), jnp.where(missing, 1.0, 0.0)], axis=1)
    return jnp.where(mask[:, None], inputs, 0)


class NumberVectors(nn.Module):
    """The vectors of numeric fields: x · v_f of a number x of field f, and u_f of a missing one.

    v_f and u_f are learned. A behaviour's number has those of the ad field that it is compared
    with, as both have one embedding table if they are ids.

    Attributes:
      dim: D, the width of a vector.
      stddev: the standard deviation of the initial v_f and u_f, which are normal.
    """

    dim: int
    stddev: float

    @nn.compact
    def __call__(self, field: str, inputs: jax.Array) -> jax.Array:
        """The vectors [N, D] of a field's `number_inputs` [N, 2]."""
        initializer = nn.initializers.normal(self.stddev)
        vectors = self.param(f"of_{field}", initializer, (2, self.dim))
        return inputs @ vectors
