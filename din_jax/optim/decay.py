"""Decay of the rows present in a batch: MBA (Eqs. 4 to 7) and DiFacto."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

_NO_PARAMS = "a decay needs the params: call update(updates, state, params, …)"


def mba_decay(rate: float) -> optax.GradientTransformationExtraArgs:
    """Mini-batch aware regularisation (Eqs. 4 to 7): decay of the rows present in the batch.

    To the gradient of row j of a table it adds

        λ · α_j / n_j · w_j

    where α_j is 1 if the batch looks the row up, however often, and n_j is the number of training
    samples that hold id j (`din_jax.data.counts`). An absent row gets nothing, nor does one with
    n_j = 0. This is the gradient of Eq. 6's penalty with λ/2 in front of it; the paper leaves the
    factor 2 in λ.

    Eq. 7 is exact when SGD follows. Before Adam the decay goes through its moments, like any
    gradient: it is not the decoupled decay of AdamW.

    Args:
      rate: λ.

    Returns:
      A transformation of tables {name: [rows, D]}. Its `update` must be given `present`
      {name: bool[rows]} and `counts` {name: n_j, [rows]}; it raises TypeError without them, and
      ValueError for a table that `counts` leaves out.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, present: Any, counts: Any, **_: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(_NO_PARAMS)
        if isinstance(counts, Mapping) and updates.keys() - counts.keys():
            raise ValueError(
                "mba_decay: no counts n_j for the tables "
                + ", ".join(sorted(updates.keys() - counts.keys()))
                + ": a table of hashed ids has none, since several ids share a row; decay only "
                "tables with counts (on_tables), or use difacto_decay, which needs none"
            )

        def decayed(g: jax.Array, w: jax.Array, here: jax.Array, n: jax.Array) -> jax.Array:
            factor = jnp.where(here & (n > 0), rate / jnp.maximum(n, 1), 0)
            return g + factor[:, None].astype(g.dtype) * w

        here, n = _those_of(updates, present), _those_of(updates, counts)
        return jax.tree.map(decayed, updates, params, here, n), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def difacto_decay(rate: float) -> optax.GradientTransformationExtraArgs:
    """The regularisation of DiFacto (Li et al., WSDM 2016) as the paper compares it (section 6.5).

    As `mba_decay`, but without 1 / n_j: a row is decayed by λ · w_j whenever a batch holds it, and
    so the more the more frequent its id is (`docs/design.md` quotes the paper on this).

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

        return jax.tree.map(decayed, updates, params, _those_of(updates, present)), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _those_of(updates: Any, given: Any) -> Any:
    """Of what is given for every table, that of the tables in `updates`."""
    return {name: given[name] for name in updates} if isinstance(given, Mapping) else given


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
