"""Ids to vectors: embedding tables and the lookups in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer


class TableSpec(NamedTuple):
    """An embedding table to be made: K rows ("unknown" included), width D, initial values."""

    rows: int
    dim: int
    initializer: Initializer


class Lookup(NamedTuple):
    """Ids of one table to look up; where `mask` is False is padding, whatever id it holds."""

    ids: jax.Array  # int32[N]
    mask: jax.Array  # bool[N]


Tables = Mapping[str, jax.Array]  # {table: [rows, D]}
Lookups = Mapping[str, Mapping[str, Lookup]]  # {table: {name of the lookup: Lookup}}


def init_tables(specs: Mapping[str, TableSpec], key: jax.Array) -> dict[str, jax.Array]:
    """Makes the tables, {name: float32[rows, D]}.

    Row 0 ("unknown") begins at zero: where training never meets an unknown id it stays the zero
    vector, which adds nothing to a pool.
    """
    tables = {}
    for (name, spec), k in zip(
        sorted(specs.items()), jax.random.split(key, len(specs)), strict=True
    ):
        tables[name] = spec.initializer(k, (spec.rows, spec.dim), jnp.float32).at[0].set(0.0)
    return tables


def present_mask(lookups: Mapping[str, Lookup], rows: int) -> jax.Array:
    """bool[rows]: which rows of one table a batch looks up. Padding is never present."""
    mask = jnp.zeros(rows, bool)
    for at in lookups.values():
        mask = mask.at[jnp.where(at.mask, at.ids, rows)].set(True, mode="drop")
    return mask


def lookup(table: jax.Array, at: Lookup) -> jax.Array:
    """The rows [N, D] of a table at N ids; zero, with zero gradient, where the mask is False."""
    ids = jnp.where(at.mask, at.ids, 0)
    return jnp.where(at.mask[:, None], table.at[ids].get(mode="clip"), 0.0)
