"""Embedding tables and the lookups in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

_ROWS_AT_ONCE = 1 << 16  # of a table, given initial values together


class TableSpec(NamedTuple):
    """An embedding table to be made: K rows ("unknown" included), width D, initial values.

    The initializer is called on a part of the rows at a time: its values must not depend on how
    many there are. A table that is not `decayed` is left alone by MBA and DiFacto.
    """

    rows: int
    dim: int
    initializer: Initializer
    decayed: bool = True


class Lookup(NamedTuple):
    """Ids of one table to look up; where `mask` is False is padding, whatever id it holds.

    What is looked up is multiplied by `scale`.
    """

    ids: jax.Array  # int32[N]
    mask: jax.Array  # bool[N]
    scale: float = 1.0


Tables = Mapping[str, jax.Array]  # {table: [rows, D]}
Lookups = Mapping[str, Mapping[str, Lookup]]  # {table: {name of the lookup: Lookup}}


def init_tables(
    specs: Mapping[str, TableSpec],
    key: jax.Array,
    *,
    blocks: Mapping[str, int] | None = None,
    block: jax.Array | int = 0,
) -> dict[str, jax.Array]:
    """Makes the tables, {name: float32[rows, D]}, with no second copy of one in memory.

    Row 0 ("unknown") begins at zero: where training never meets an unknown id it stays the zero
    vector, which adds nothing to a pool.

    Args:
      specs: of the tables.
      key: of the initial values.
      blocks: {table: rows of a block} of tables of which only a block is made, for one of several
        devices: the same values as in the whole table, and zeros past its end.
      block: which block.
    """
    keys = dict(zip(sorted(specs), jax.random.split(key, len(specs)), strict=True))
    blocks = blocks or {}
    return {
        name: _init_table(spec, keys[name])
        if name not in blocks
        else _init_block(spec, keys[name], blocks[name], block * blocks[name])
        for name, spec in sorted(specs.items())
    }


def _init_table(spec: TableSpec, key: jax.Array) -> jax.Array:
    some = min(spec.rows, _ROWS_AT_ONCE)

    def fill(i: jax.Array, values: jax.Array) -> jax.Array:
        # The last part ends where the table does, and so overwrites some of the one before.
        return jax.lax.dynamic_update_slice(values, _part(spec, key, i), (i * some, 0))

    values = jnp.zeros((spec.rows, spec.dim), jnp.float32)
    return jax.lax.fori_loop(0, -(-spec.rows // some), fill, values).at[0].set(0.0)


def _init_block(spec: TableSpec, key: jax.Array, rows: int, begin: jax.Array | int) -> jax.Array:
    """Rows `begin` to `begin + rows` of the same table."""
    some = min(spec.rows, _ROWS_AT_ONCE)
    parts = -(-spec.rows // some)

    def fill(i: jax.Array | int, values: jax.Array) -> jax.Array:
        at = jnp.minimum(i * some, spec.rows - some) + jnp.arange(some)
        at = jnp.where((at > 0) & (at >= begin) & (at < begin + rows), at - begin, rows)
        return values.at[at].set(_part(spec, key, i), mode="drop")

    end = jnp.minimum(begin + rows, spec.rows)
    values = jnp.zeros((rows, spec.dim), jnp.float32)
    values = jax.lax.fori_loop(begin // some, -(-end // some), fill, values)
    return fill(parts - 1, values)  # it begins before its place: see `_init_table`


def _part(spec: TableSpec, key: jax.Array, i: jax.Array | int) -> jax.Array:
    some = min(spec.rows, _ROWS_AT_ONCE)
    return spec.initializer(jax.random.fold_in(key, i), (some, spec.dim), jnp.float32)


def lookup(table: jax.Array, at: Lookup) -> jax.Array:
    """The rows [N, D] of a table at N ids; zero, with zero gradient, where the mask is False."""
    ids = jnp.where(at.mask, at.ids, 0)
    return jnp.where(at.mask[:, None], table.at[ids].get(mode="clip") * at.scale, 0.0)
