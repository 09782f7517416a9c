"""The optimizers and regularisers of the paper's experiments, as Optax transformations.

The order of a chain is: gradient, clipping by global norm, decay, optimizer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

_NO_PARAMS = "a decay needs the params: call update(updates, state, params, …)"


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


def mba_decay(rate: float) -> optax.GradientTransformationExtraArgs:
    """Mini-batch aware regularisation (Eqs. 4 to 7): decay of the rows present in the batch.

    To the gradient of row j of a table it adds

        λ · α_j / n_j · w_j

    where α_j is 1 if the batch looks the row up, however often, and n_j is the number of training
    samples that hold id j (`din_jax.counts`). A row that is absent gets nothing, nor does one with
    n_j = 0. This is the gradient of Eq. 6's penalty with λ/2 in front of it; the paper leaves the
    factor 2 in λ.

    Eq. 7 is exact when SGD follows. Before Adam the decay goes through its moments, like any
    gradient: it is not the decoupled decay of AdamW.

    Args:
      rate: λ.

    Returns:
      A transformation of tables {name: [rows, D]}. Its `update` must be given `present`
      {name: bool[rows]} and `counts` {name: n_j, [rows]}; it raises TypeError without them.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, present: Any, counts: Any, **_: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(_NO_PARAMS)

        def decayed(g: jax.Array, w: jax.Array, here: jax.Array, n: jax.Array) -> jax.Array:
            share = jnp.where(here & (n > 0), rate / jnp.maximum(n, 1), 0)
            return g + share[:, None].astype(g.dtype) * w

        return jax.tree.map(decayed, updates, params, present, counts), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def difacto_decay(rate: float) -> optax.GradientTransformationExtraArgs:
    """The regularisation of DiFacto (Li et al., WSDM 2016) as the paper compares it (section 6.5).

    As `mba_decay`, but without 1 / n_j: a row is decayed by λ · w_j whenever a batch holds it, and
    so the more the more frequent its id is.

    Args:
      rate: λ.

    Returns:
      A transformation of tables {name: [rows, D]}. Its `update` must be given `present`
      {name: bool[rows]}; it raises TypeError without it.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, present: Any, **_: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(_NO_PARAMS)

        def decayed(g: jax.Array, w: jax.Array, here: jax.Array) -> jax.Array:
            return g + jnp.where(here[:, None], jnp.asarray(rate, g.dtype) * w, 0)

        return jax.tree.map(decayed, updates, params, present), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def on_tables(
    inner: optax.GradientTransformationExtraArgs, names: Collection[str]
) -> optax.GradientTransformationExtraArgs:
    """`inner` on the tables `names` of a tree {"params": …, "tables": {name: …}}, else nothing."""

    def of(tree: Any) -> Any:
        return {name: tree["tables"][name] for name in names}

    def init(params: Any) -> Any:
        return inner.init(of(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(_NO_PARAMS)
        changed, state = inner.update(of(updates), state, of(params), **extra)
        return {**updates, "tables": {**updates["tables"], **changed}}, state

    return optax.GradientTransformationExtraArgs(init, update)


def build(
    optimizer: Any, regularizer: Any, batch_size: int, tables: Collection[str]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a config: clipping, if any; the decay, if any; then SGD or Adam.

    Args:
      optimizer: `config.optimizer`.
      regularizer: `config.regularizer`.
      batch_size: B, over all devices.
      tables: names of the tables that are decayed.
    """
    parts = []
    if optimizer.clip_norm:
        parts.append(optax.clip_by_global_norm(optimizer.clip_norm))
    decays = {"mba": mba_decay, "difacto": difacto_decay}
    if regularizer.name in decays:
        parts.append(on_tables(decays[regularizer.name](regularizer.rate), tables))
    learning_rate = decayed_learning_rate(optimizer, batch_size)
    parts.append({"adam": optax.adam, "sgd": optax.sgd}[optimizer.name](learning_rate))
    return optax.with_extra_args_support(optax.chain(*parts))
