"""Ids to vectors: embedding tables, the lookups in them, and the rows that a batch looks up.

A step costs the same however large a table is: it works on the rows of the batch, [N, D], found
without a sort and renumbered, and never makes anything of the table's size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def present_mask(ids: jax.Array, mask: jax.Array, rows: int) -> jax.Array:
    """bool[rows]: which rows are among N ids. Padding is never present."""
    return jnp.zeros(rows, bool).at[jnp.where(mask, ids, rows)].set(True, mode="drop")


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
      tables: what the model looks up in, {table: [N, D]; or the whole table, [K, D]}.
      lookups: with their ids renumbered for those.
      rows: {table: which rows the whole batch looks up}; of this device's block, if it is sharded.
      weights: {table: these rows, [N, D]; or the whole table or block}. On one device they are
        `tables`.
      owners: {table: int32[M·N], for each id of all devices its position in `rows`, or one past
        the last}, of the tables whose gradients are exchanged by rows.
      scratch: the tables' scratch to give next time.
    """

    tables: dict[str, jax.Array]
    lookups: dict[str, dict[str, Lookup]]
    rows: dict[str, Rows]
    weights: dict[str, jax.Array]
    owners: dict[str, jax.Array]
    scratch: dict[str, jax.Array]


def rows_of_batch(
    tables: Tables,
    lookups: Lookups,
    scratch: Mapping[str, jax.Array],
    axis: str | None = None,
    sharded: Collection[str] = (),
) -> BatchRows:
    """Gathers the rows that a batch looks up: those with a scratch by rows, the others as a whole.

    On several devices every device learns which ids all look up, and so which rows are present.

    Args:
      tables: {table: [K, D], or this device's block of it}.
      lookups: of this device's samples, by the ids of the tables.
      scratch: {table: int32[K], or of a block}, see `present_rows`.
      axis: mapped axis of the devices, or None for one.
      sharded: names of the tables of which each device has a block.
    """
    found = BatchRows({}, {}, {}, {}, {}, {})
    for name, table in tables.items():
        of_table = lookups.get(name, {})
        ids, mask = _all_ids(of_table)
        all_ids, all_masks = (ids, mask) if axis is None else _gathered(ids, mask, axis)
        if name in sharded:
            # Among all ids those of this block, counted from its beginning.
            all_ids, all_masks = _in_block(all_ids, all_masks, len(table), axis)
        if name in scratch:
            owners, rows, found.scratch[name] = present_rows(all_ids, all_masks, scratch[name])
            weights = gather_rows(table, rows)
        else:
            owners = jnp.where(all_masks, all_ids, len(table))
            rows = Rows(present_mask(all_ids, all_masks, len(table)))
            weights = table
        found.rows[name], found.weights[name] = rows, weights
        if axis is None:
            found.tables[name] = weights
            found.lookups[name] = _renumbered(of_table, owners if name in scratch else ids)
        elif name in sharded or name in scratch:
            # One vector an id, repeated ones too: this device need not know which are.
            found.owners[name] = owners
            found.tables[name] = (
                _vectors_from_owners(table, all_ids, all_masks, axis)
                if name in sharded
                else lookup(table, Lookup(ids, mask))
            )
            found.lookups[name] = _renumbered(of_table, jnp.arange(len(ids), dtype=jnp.int32))
        else:
            found.tables[name], found.lookups[name] = table, dict(of_table)
    return found


def row_gradients(
    grads: Mapping[str, jax.Array], found: BatchRows, axis: str | None
) -> dict[str, jax.Array]:
    """The gradient with respect to `found.weights`, summed over devices.

    A table that goes by rows, or is sharded, sends one vector an id; only one that goes as a whole,
    K ≤ 4 M·N, is summed as such.

    Args:
      grads: {table: gradient with respect to `found.tables`}, of this device.
      found: what `rows_of_batch` returned.
      axis: mapped axis of the devices, or None for one.
    """
    if axis is None:
        return dict(grads)
    return {
        name: jax.ops.segment_sum(
            jax.lax.all_gather(grad, axis, tiled=True),
            found.owners[name],
            len(found.rows[name].present),
        )
        if name in found.owners
        else jax.lax.psum(grad, axis)
        for name, grad in grads.items()
    }


def fetch_sharded(
    tables: Tables, lookups: Lookups, axis: str | None, sharded: Collection[str]
) -> tuple[dict[str, jax.Array], dict[str, dict[str, Lookup]]]:
    """Tables and lookups as a model takes them: of a sharded table, the vectors of the ids.

    Args:
      tables, lookups, axis, sharded: see `rows_of_batch`.
    """
    values, renumbered = dict(tables), {name: dict(of) for name, of in lookups.items()}
    for name in sharded:
        of_table = lookups.get(name, {})
        ids, mask = _all_ids(of_table)
        block = _in_block(*_gathered(ids, mask, axis), len(tables[name]), axis)
        values[name] = _vectors_from_owners(tables[name], *block, axis)
        renumbered[name] = _renumbered(of_table, jnp.arange(len(ids), dtype=jnp.int32))
    return values, renumbered


def _all_ids(of_table: Mapping[str, Lookup]) -> tuple[jax.Array, jax.Array]:
    """Ids and masks of all lookups in a table, end to end."""
    ids = jnp.concatenate([jnp.zeros(0, jnp.int32), *(at.ids for at in of_table.values())])
    return ids, jnp.concatenate([jnp.zeros(0, bool), *(at.mask for at in of_table.values())])


def _renumbered(of_table: Mapping[str, Lookup], numbers: jax.Array) -> dict[str, Lookup]:
    """The lookups with these ids, end to end, in place of their own."""
    found, begin = {}, 0
    for name, at in of_table.items():
        end = begin + len(at.ids)
        found[name] = at._replace(ids=numbers[begin:end])
        begin = end
    return found


def _gathered(ids: jax.Array, mask: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Ids and masks of all devices, [M·N]; the mask travels as an id of −1."""
    ids = jax.lax.all_gather(jnp.where(mask, ids, -1), axis, tiled=True)
    return ids, ids >= 0


def _in_block(
    ids: jax.Array, mask: jax.Array, rows: int, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """Ids counted from the beginning of this device's block, and which are real and in it."""
    ids = ids - jax.lax.axis_index(axis) * rows
    return ids, mask & (ids >= 0) & (ids < rows)


def _vectors_from_owners(
    block: jax.Array, ids: jax.Array, mine: jax.Array, axis: str | None
) -> jax.Array:
    """[N, D]: every device answers for the rows of its block, and gets those of its own ids."""
    return jax.lax.psum_scatter(lookup(block, Lookup(ids, mine)), axis, tiled=True)
