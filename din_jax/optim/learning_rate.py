"""The learning rate of the paper: exponential decay."""

from __future__ import annotations

from typing import Any

import optax


def decayed_learning_rate(config: Any, batch_size: int) -> optax.Schedule:
    """lr₀ · rate^(samples / decay_samples): the paper's exponential decay (section 6.1).

    The paper gives lr₀ and the rate (SGD: 1.0, 0.1; Adam: 0.001, 0.9) and no period, so that the
    period is the config's, in samples: it means the same at any batch size. A step counts as a
    whole batch, also the last one of an epoch.

    Args:
      config: `config.optimizer`.
      batch_size: B, over all devices.

    Returns:
      A schedule: the learning rate of step 0, 1, …
    """
    return optax.exponential_decay(
        init_value=config.learning_rate,
        transition_steps=config.decay_samples / batch_size,
        decay_rate=config.decay_rate,
        staircase=config.staircase,
        end_value=config.end_value or None,
    )
