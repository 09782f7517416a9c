"""Builds the optimizer that a config describes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import optax

from din_jax.optim.catch_up import CatchUp, catch_up
from din_jax.optim.clipping import clip_by_global_norm
from din_jax.optim.dense import dense_adam
from din_jax.optim.learning_rate import decayed_learning_rate, scale_tables
from din_jax.optim.mba import difacto_decay, mba_decay, on_tables
from din_jax.optim.row_sparse import row_sparse, whole_tables
from din_jax.optim.rowwise_adagrad import rowwise_adagrad


def build_optimizer(
    optimizer: Any,
    regularizer: Any,
    batch_size: int,
    tables: Collection[str],
    axis: str | None = None,
    sharded: Collection[str] = (),
    table_rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformationExtraArgs | CatchUp:
    """Chains gradient clipping and decay, if the config has them, and the optimizer itself.

    The `update` of the result requires the keyword arguments `rows` (see `row_sparse`), and with
    MBA `counts` (see `mba_decay`). With `lazy="catch_up"` Adam is a `CatchUp`. SGD and Adagrad have
    no momentum: their absent rows have nothing to catch up with.

    Args:
      optimizer: `config.optimizer`.
      regularizer: `config.regularizer`.
      batch_size: B, over all devices.
      tables: names of the tables that are decayed.
      axis: the devices' mapped axis, or None for one device.
      sharded: names of the sharded tables.
      table_rates: {table: factor of its learning rate}, by default 1.
    """
    transformations = []
    if optimizer.clip_norm:
        transformations.append(clip_by_global_norm(optimizer.clip_norm, axis, sharded))
    decays = {"mba": mba_decay, "difacto": difacto_decay}
    if regularizer.name in decays:
        transformations.append(on_tables(decays[regularizer.name](regularizer.rate), tables))
    learning_rate = decayed_learning_rate(optimizer, batch_size)
    if optimizer.lazy == "catch_up" and optimizer.name == "adam":
        return catch_up(dense_adam(learning_rate), transformations, table_rates)
    if optimizer.name == "rowwise_adagrad":
        transformations.append(
            optax.partition(
                {
                    "params": optax.adagrad(learning_rate),
                    "tables": rowwise_adagrad(learning_rate),
                },
                {"params": "params", "tables": "tables"},
            )
        )
    else:
        optimizers = {"adam": optax.adam, "sgd": optax.sgd, "adagrad": optax.adagrad}
        transformations.append(optimizers[optimizer.name](learning_rate))
    if table_rates:
        transformations.append(scale_tables(table_rates))
    inner = optax.with_extra_args_support(optax.chain(*transformations))
    return row_sparse(inner) if optimizer.lazy else whole_tables(inner)
