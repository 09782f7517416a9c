"""Weight decay of the rows present in a batch: MBA (Eqs. 4 to 7) and DiFacto."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

_NO_PARAMS = "a decay needs the params: call update(updates, state, params, …)"


def mba_decay(rate: float) -> optax.GradientTransformationExtraArgs:
    """Mini-batch aware regularisation (Eqs. 4 to 7): decay of the rows present in the batch.

    Adds to the gradient of row j of a table

        λ · α_j / n_j · w_j

    where α_j is 1 if the batch looks up the row, once or several times, and n_j is the number of
    training samples with id j, or the sum of their weights (`din_jax.data.counts`). Absent rows and
    rows with n_j = 0 are not decayed. This is the gradient of Eq. 6's penalty times λ/2; the paper
    absorbs the factor 2 in λ.

    Followed by SGD this is exactly Eq. 7. Followed by Adam the decay enters the moments, like any
    gradient: it is not the decoupled weight decay of AdamW.

    Args:
      rate: λ.

    Returns:
      A transformation of tables {name: [rows, D]}. Its `update` requires the keyword arguments
      `present` {name: bool[rows]} and `counts` {name: n_j, [rows]}. It raises TypeError without
      them, and ValueError for a table without counts.
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

        def decayed(g: jax.Array, w: jax.Array, present: jax.Array, n: jax.Array) -> jax.Array:
            decays = present & (n > 0)
            factor = jnp.where(decays, rate / jnp.where(decays, n, 1), 0)
            return g + factor[:, None].astype(g.dtype) * w

        present, n = _select(present, updates), _select(counts, updates)
        return jax.tree.map(decayed, updates, params, present, n), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def difacto_decay(rate: float) -> optax.GradientTransformationExtraArgs:
    """The regularisation of DiFacto (Li et al., WSDM 2016) as the paper compares it (section 6.5).

    Like `mba_decay` without the factor 1 / n_j: λ · w_j is added to the gradient of a row in every
    step that looks it up, so that frequent ids are decayed more often (`docs/design.md` quotes the
    paper on this).

    Args:
      rate: λ.

    Returns:
      A transformation of tables {name: [rows, D]}. Its `update` requires the keyword argument
      `present` {name: bool[rows]}, and raises TypeError without it.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, present: Any, **_: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(_NO_PARAMS)

        def decayed(g: jax.Array, w: jax.Array, present: jax.Array) -> jax.Array:
            return g + jnp.where(present[:, None], jnp.asarray(rate, g.dtype) * w, 0)

        return jax.tree.map(decayed, updates, params, _select(present, updates)), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _select(by_table: Any, updates: Any) -> Any:
    """Selects the entries of {table: value} for the tables in `updates`."""
    if not isinstance(by_table, Mapping):
        return by_table
    return {name: by_table[name] for name in updates}


def on_tables(
    inner: optax.GradientTransformationExtraArgs, names: Collection[str]
) -> optax.GradientTransformationExtraArgs:
    """Applies `inner` only to the tables `names` of a tree {"params": …, "tables": {name: …}}."""

    def selected(tree: Any) -> Any:
        return {name: tree["tables"][name] for name in names}

    def init(params: Any) -> Any:
        return inner.init(selected(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(_NO_PARAMS)
        new, state = inner.update(selected(updates), state, selected(params), **extra)
        return {**updates, "tables": {**updates["tables"], **new}}, state

    return optax.GradientTransformationExtraArgs(init, update)
