"""Ids to vectors: embedding tables, the lookups in them, and the rows that a batch looks up.

A step costs the same however large a table is: it works on the rows of the batch, [N, D], found
without a sort and renumbered, and never makes anything of the table's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

# A table goes by rows where K is above this many times N, else as a whole, with a mask
# (`benchmarks/rows_or_mask.py` measures where the two cost the same).
ROWS_ABOVE = 4
_ROWS_AT_ONCE = 1 << 16  # of a table, given initial values together


class TableSpec(NamedTuple):
    """An embedding table to be made: K rows ("unknown" included), width D, initial values.

    The initializer is called on a part of the rows at a time: its values must not depend on how
    many there are.
    """

    rows: int
    dim: int
    initializer: Initializer


class Lookup(NamedTuple):
    """Ids of one table to look up; where `mask` is False is padding, whatever id it holds.

    What is looked up is multiplied by `scale`.
    """

    ids: jax.Array  # int32[N]
    mask: jax.Array  # bool[N]
    scale: float = 1.0


Tables = Mapping[str, jax.Array]  # {table: [rows, D]}
Lookups = Mapping[str, Mapping[str, Lookup]]  # {table: {name of the lookup: Lookup}}


def init_tables(specs: Mapping[str, TableSpec], key: jax.Array) -> dict[str, jax.Array]:
    """Makes the tables, {name: float32[rows, D]}, with no second copy of one in memory.

    Row 0 ("unknown") begins at zero: where training never meets an unknown id it stays the zero
    vector, which adds nothing to a pool.
    """

    def table(spec: TableSpec, key: jax.Array) -> jax.Array:
        some = min(spec.rows, _ROWS_AT_ONCE)

        def fill(i: jax.Array, values: jax.Array) -> jax.Array:
            part = spec.initializer(jax.random.fold_in(key, i), (some, spec.dim), jnp.float32)
            # The last part ends where the table does, and so overwrites some of the one before.
            return jax.lax.dynamic_update_slice(values, part, (i * some, 0))

        values = jnp.zeros((spec.rows, spec.dim), jnp.float32)
        return jax.lax.fori_loop(0, -(-spec.rows // some), fill, values).at[0].set(0.0)

    def make(key: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(specs))
        return {
            name: table(spec, k)
            for (name, spec), k in zip(sorted(specs.items()), keys, strict=True)
        }

    return jax.jit(make)(key)


def lookup(table: jax.Array, at: Lookup) -> jax.Array:
    """The rows [N, D] of a table at N ids; zero, with zero gradient, where the mask is False."""
    ids = jnp.where(at.mask, at.ids, 0)
    return jnp.where(at.mask[:, None], table.at[ids].get(mode="clip") * at.scale, 0.0)


class Rows(NamedTuple):
    """Which rows of a table a batch looks up, each once.

    By rows, with `ids`: position p stands for row `ids[p]` where `present[p]` is True, one position
    for each row; the others stand for none. As a whole, without `ids`: `present[j]` says it of row
    j.
    """

    present: jax.Array  # bool[N], or bool[K]
    ids: jax.Array | None = None  # int32[N]


def goes_by_rows(rows: int, ids: int) -> bool:
    """Whether a table of K rows is updated by rows when a batch looks N ids up in it.

    Otherwise it is updated as a whole, with a mask: the same result, at a cost that grows with K.
    """
    return rows > ROWS_ABOVE * ids


def present_mask(lookups: Mapping[str, Lookup], rows: int) -> jax.Array:
    """bool[rows]: which rows of one table a batch looks up. Padding is never present."""
    mask = jnp.zeros(rows, bool)
    for at in lookups.values():
        mask = mask.at[jnp.where(at.mask, at.ids, rows)].set(True, mode="drop")
    return mask


def present_rows(
    ids: jax.Array, mask: jax.Array, scratch: jax.Array
) -> tuple[jax.Array, Rows, jax.Array]:
    """The distinct ids among N, without a sort.

    Each position is written at its id in `scratch`, the greatest wins, and is read back: it owns
    the id. The result is the same on every run and device. Padding is never present, whatever id it
    holds. Donate the scratch, or it is copied: K integers.

    Args:
      ids: int32[N], 0 to K − 1 where `mask` is True.
      mask: bool[N].
      scratch: int32[K], of any content.

    Returns:
      The owners, int32[N]: the position in `Rows` of each id's row, N for padding; the rows; and
      the scratch to give next time.
    """
    positions = jnp.arange(len(ids), dtype=jnp.int32)
    at = jnp.where(mask, ids, len(scratch))
    scratch = scratch.at[at].set(-1, mode="drop").at[at].max(positions, mode="drop")
    owners = scratch.at[at].get(mode="fill", fill_value=len(ids))
    return owners, Rows(owners == positions, ids), scratch


def gather_rows(values: jax.Array, rows: Rows) -> jax.Array:
    """The present rows of values [K, …]: [N, …], or [K, …] as a whole; zero where there is none."""
    if rows.ids is None:
        return jnp.where(_beside(rows.present, values), values, jnp.zeros((), values.dtype))
    return values.at[_places(rows.present, rows.ids, values)].get(mode="fill", fill_value=0)


def scatter_rows(values: jax.Array, rows: Rows, new: jax.Array) -> jax.Array:
    """Values [K, …] with the present rows replaced by those of `new`; the others are untouched."""
    if rows.ids is None:
        return jnp.where(_beside(rows.present, values), new, values)
    places = _places(rows.present, rows.ids, values)
    return values.at[places].set(new.astype(values.dtype), mode="drop")


def apply_row_updates(table: jax.Array, rows: Rows, updates: jax.Array) -> jax.Array:
    """The table [K, D] with `updates` added to the present rows.

    Donate the table, or it is copied. As a whole, without `rows.ids`, all of `updates` [K, D] is
    added, as `optax.apply_updates` does; `row_sparse` leaves only zeros in absent rows.
    """
    updates = updates.astype(table.dtype)
    if rows.ids is None:
        # An update of zero changes no bit: −0.0 + 0.0 would, and so would a subnormal + 0.0.
        return jnp.where(updates == 0, table, table + updates)
    return table.at[_places(rows.present, rows.ids, table)].add(updates, mode="drop")


def _places(present: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Indices of the present rows; what stands for none is past the end, where it is dropped."""
    return jnp.where(present, ids, len(values))


def _beside(present: jax.Array, values: jax.Array) -> jax.Array:
    return present.reshape(-1, *[1] * (values.ndim - 1))


class BatchRows(NamedTuple):
    """The tables as a step works on them.

    Attributes:
      tables: {table: its present rows, [N, D]; or the whole table, [K, D]}.
      lookups: with their ids renumbered for those.
      rows: {table: which rows they are}.
      scratch: the tables' scratch to give next time.
    """

    tables: dict[str, jax.Array]
    lookups: dict[str, dict[str, Lookup]]
    rows: dict[str, Rows]
    scratch: dict[str, jax.Array]


def rows_of_batch(tables: Tables, lookups: Lookups, scratch: Mapping[str, jax.Array]) -> BatchRows:
    """Gathers the rows that a batch looks up: those with a scratch by rows, the others as a whole.

    Args:
      tables: {table: [K, D]}.
      lookups: of a batch, by the ids of the tables.
      scratch: {table: int32[K]}, see `present_rows`.
    """
    found = BatchRows({}, {}, {}, {})
    for name, table in tables.items():
        of_table = lookups.get(name, {})
        if name not in scratch or not of_table:
            found.tables[name] = table
            found.lookups[name] = dict(of_table)
            found.rows[name] = Rows(present_mask(of_table, len(table)))
            if name in scratch:
                found.scratch[name] = scratch[name]
            continue
        owners, rows, found.scratch[name] = present_rows(
            jnp.concatenate([at.ids for at in of_table.values()]),
            jnp.concatenate([at.mask for at in of_table.values()]),
            scratch[name],
        )
        found.tables[name] = gather_rows(table, rows)
        found.rows[name] = rows
        found.lookups[name], begin = {}, 0
        for at_name, at in of_table.items():
            end = begin + len(at.ids)
            found.lookups[name][at_name] = at._replace(ids=owners[begin:end])
            begin = end
    return found
