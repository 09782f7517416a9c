"""The paper's learning rate schedule, exponential decay, after an optional warm-up."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax


def decayed_learning_rate(config: Any, batch_size: int) -> optax.Schedule:
    """Exponential decay (section 6.1): lr₀ · rate^(samples / decay_samples).

    The paper gives lr₀ and the rate (SGD: 1.0, 0.1; Adam: 0.001, 0.9), but no period. The config
    gives the period in samples, so that it does not depend on the batch size. Every step counts B
    samples, also the last one of an epoch.

    With `warmup_samples` W > 0 (not in the paper) the rate of the first W samples is multiplied by
    a factor that rises linearly to 1; the first step already has a rate above 0.

    Args:
      config: `config.optimizer`.
      batch_size: B, over all devices.

    Returns:
      A schedule, from the step 0, 1, … to the learning rate.
    """
    decay = optax.exponential_decay(
        init_value=config.learning_rate,
        transition_steps=config.decay_samples / batch_size,
        decay_rate=config.decay_rate,
        staircase=config.staircase,
        end_value=config.end_value or None,
    )
    if not config.warmup_samples:
        return decay
    steps = config.warmup_samples / batch_size
    return lambda step: decay(step) * jnp.minimum(1.0, (step + 1) / steps)
