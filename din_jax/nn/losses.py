"""The paper's loss (Eq. 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from din_jax.distributed.devices import psum


def negative_log_likelihood(logits: jax.Array, label: jax.Array) -> jax.Array:
    """The terms of Eq. 2, −(y·log p + (1 − y)·log(1 − p)), with p the softmax's second output.

    Args:
      logits: [B, 2], for "no click" and "click".
      label: [B], 0 or 1.

    Returns:
      [B], in nats.
    """
    log_p = jax.nn.log_softmax(logits)
    return -(label * log_p[:, 1] + (1 - label) * log_p[:, 0])


def click_logit(logits: jax.Array) -> jax.Array:
    """Converts logits [B, 2] to z [B], with sigmoid(z) the softmax's second output.

    Score steps return logits instead of probabilities, because float32's sigmoid rounds to 1 from
    z = 17 on.
    """
    return logits[:, 1] - logits[:, 0]


def weighted_mean(values: jax.Array, weight: jax.Array, axis: str | None = None) -> jax.Array:
    """Σ weight·values / Σ weight, or 0 if all weights are 0.

    With `axis` it is this device's term of the global mean: Σ weight is over all devices, and the
    mean is the sum of the devices' terms. The terms are not summed here: gradients are taken per
    device and then summed, and a sum here would count the gradient of replicated parameters M
    times.
    """
    total = psum(jnp.sum(weight), axis)
    return jnp.sum(weight * values) / jnp.where(total > 0, total, 1)
