"""The paper's loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from din_jax.distributed.devices import psum


def negative_log_likelihood(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Eq. 2 before its mean: −(y·log p + (1 − y)·log(1 − p)), p the softmax's second output.

    Args:
      logits: [B, 2], of "no click" and "click".
      label: [B], 0 or 1.

    Returns:
      [B], in nats.
    """
    log_p = jax.nn.log_softmax(logits)
    return -(label * log_p[:, 1] + (1 - label) * log_p[:, 0])


def click_logit(logits: jax.Array) -> jax.Array:
    """z [B] of logits [B, 2], with sigmoid(z) the softmax's second output.

    Scores leave the device as logits: float32's sigmoid is 1 from z = 17 on.
    """
    return logits[:, 1] - logits[:, 0]


def weighted_mean(values: jax.Array, weight: jax.Array, axis: str | None = None) -> jax.Array:
    """Σ weight·values / Σ weight; 0 where the weights are all 0.

    On several devices it is this device's part of the mean: the second sum is over all of them, and
    the parts add up to the mean. They are not added here, since the gradient of what every
    device has in common would count M times.
    """
    return jnp.sum(weight * values) / jnp.maximum(psum(jnp.sum(weight), axis), 1)
