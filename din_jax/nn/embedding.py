"""Embedding tables and lookups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

_ROWS_AT_ONCE = 1 << 16  # rows of the chunks in which a table is initialized


class TableSpec(NamedTuple):
    """The specification of an embedding table.

    Attributes:
      rows: K, including row 0, "unknown".
      dim: D, the width.
      initializer: makes the initial values, [rows, D], a chunk of rows at a time: they must not
        depend on the number of rows.
      decayed: whether MBA and DiFacto decay the table.
    """

    rows: int
    dim: int
    initializer: Initializer
    decayed: bool = True


class Lookup(NamedTuple):
    """The ids that a batch looks up in one table.

    Attributes:
      ids: int32[N].
      mask: bool[N], False for padding, whose ids are ignored.
      scale: a factor of the vectors.
    """

    ids: jax.Array
    mask: jax.Array
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
    """Initializes the tables, {name: float32[rows, D]}, without a second copy of one in memory.

    Row 0 ("unknown") is initialized with zeros: if training has no unknown ids it remains the zero
    vector, which does not contribute to a sum.

    Args:
      specs: the tables' specifications.
      key: the random key of the initial values.
      blocks: {table: rows of a block} of the sharded tables, of which only one block is made. Its
        values are those of the unsharded table, and zeros past its end.
      block: the index of the block.
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
    chunk_rows = min(spec.rows, _ROWS_AT_ONCE)

    def fill(i: jax.Array, values: jax.Array) -> jax.Array:
        # `dynamic_update_slice` clamps the start: the last chunk ends at the table's end, and
        # overwrites rows of the chunk before it.
        return jax.lax.dynamic_update_slice(values, _chunk(spec, key, i), (i * chunk_rows, 0))

    values = jnp.zeros((spec.rows, spec.dim), jnp.float32)
    return jax.lax.fori_loop(0, -(-spec.rows // chunk_rows), fill, values).at[0].set(0.0)


def _init_block(spec: TableSpec, key: jax.Array, rows: int, begin: jax.Array | int) -> jax.Array:
    """Rows `begin` to `begin + rows` of the table that `_init_table` makes."""
    chunk_rows = min(spec.rows, _ROWS_AT_ONCE)
    chunks = -(-spec.rows // chunk_rows)

    def fill(i: jax.Array | int, values: jax.Array) -> jax.Array:
        row = jnp.minimum(i * chunk_rows, spec.rows - chunk_rows) + jnp.arange(chunk_rows)
        in_block = (row > 0) & (row >= begin) & (row < begin + rows)
        indices = jnp.where(in_block, row - begin, rows)
        return values.at[indices].set(_chunk(spec, key, i), mode="drop")

    end = jnp.minimum(begin + rows, spec.rows)
    values = jnp.zeros((rows, spec.dim), jnp.float32)
    values = jax.lax.fori_loop(begin // chunk_rows, -(-end // chunk_rows), fill, values)
    return fill(chunks - 1, values)  # the last chunk overlaps the one before: see `_init_table`


def _chunk(spec: TableSpec, key: jax.Array, i: jax.Array | int) -> jax.Array:
    """The initial values of chunk i."""
    chunk_rows = min(spec.rows, _ROWS_AT_ONCE)
    return spec.initializer(jax.random.fold_in(key, i), (chunk_rows, spec.dim), jnp.float32)


def lookup(table: jax.Array, at: Lookup) -> jax.Array:
    """Looks up the vectors [N, D] of N ids; zero, with zero gradient, where the mask is False."""
    ids = jnp.where(at.mask, at.ids, 0)
    return jnp.where(at.mask[:, None], table.at[ids].get(mode="clip") * at.scale, 0.0)
