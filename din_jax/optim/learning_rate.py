"""The paper's learning rate schedule, after an optional warm-up; learning rates of tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from din_jax.errors import DinError


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


def table_rates(text: str, tables: Collection[str]) -> dict[str, float]:
    """The factors of tables' learning rates, {table: factor}; empty if `text` is.

    Args:
      text: `config.optimizer.table_rates`: factors of single tables, "user=0.1", and one of the
        others, "0.5", separated by commas.
      tables: the model's tables.

    Raises:
      DinError: it can't be parsed, or names a table that is not in `tables`.
    """
    others: dict[str, float] = {}
    single: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.rpartition("="))
        try:
            rate = float(value)
        except ValueError:
            rate = -1.0
        if not 0 <= rate < float("inf") or (equals and name not in tables):
            raise DinError(
                f"config.optimizer.table_rates has {part!r}: expected FACTOR or TABLE=FACTOR, of 0 "
                f"or more; the model's tables are: {', '.join(sorted(tables))}"
            )
        if equals:
            single[name] = rate
        else:
            others = dict.fromkeys(tables, rate)
    return others | single


def scale_tables(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Scales the updates of tables, after the optimizer: factors of their learning rates.

    Args:
      rates: {table: factor}; a table that is not in it is not scaled.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        scaled = {
            name: update if rates.get(name, 1.0) == 1.0 else rates[name] * update
            for name, update in updates["tables"].items()
        }
        return {**updates, "tables": scaled}, state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
