"""The tables as a step works on them: the rows of a batch, on one device or many."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from din_jax.nn.embedding import Lookup, Lookups, Tables, lookup
from din_jax.nn.present_rows import Rows, gather_rows, present_mask, present_rows


class BatchRows(NamedTuple):
    """The tables as a step works on them.

    Attributes:
      tables: what the model looks up in, {table: [N, D] if it is updated sparsely, else [K, D]}.
      lookups: with their ids renumbered for `tables`.
      rows: {table: the rows that the global batch looks up}; of a sharded table, those in this
        device's block.
      weights: {table: the values of `rows`, [N, D]; or the whole table or block}. On one device
        they are `tables`.
      owners: {table: int32[M·N], the position in `rows` of each id of all devices, or one past the
        last}, of the tables whose gradients are exchanged row by row.
      scratch: for the next call.
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
    """Gathers the rows that a batch looks up, of the tables that have a scratch.

    The others are updated densely. On several devices the ids of all are gathered, so that every
    device finds the same present rows.

    Args:
      tables: {table: [K, D], or this device's block of it}.
      lookups: of this device's samples, by the ids of the tables.
      scratch: {table: int32[K], or of a block}, see `present_rows`.
      axis: mapped axis of the devices, or None for one.
      sharded: names of the tables of which each device has a block.
    """
    result = BatchRows({}, {}, {}, {}, {}, {})
    for name, table in tables.items():
        of_table = lookups.get(name, {})
        ids, mask = _all_ids(of_table)
        all_ids, all_masks = (ids, mask) if axis is None else _gathered(ids, mask, axis)
        if name in sharded:
            # Only the ids of this block, counted from its first row.
            all_ids, all_masks = _in_block(all_ids, all_masks, len(table), axis)
        if name in scratch:
            owners, rows, result.scratch[name] = present_rows(all_ids, all_masks, scratch[name])
            weights = gather_rows(table, rows)
        else:
            owners = jnp.where(all_masks, all_ids, len(table))
            rows = Rows(present_mask(all_ids, all_masks, len(table)))
            weights = table
        result.rows[name], result.weights[name] = rows, weights
        if axis is None:
            result.tables[name] = weights
            result.lookups[name] = _renumbered(of_table, owners if name in scratch else ids)
        elif name in sharded or name in scratch:
            # One vector for each id, repeated ones included.
            result.owners[name] = owners
            result.tables[name] = (
                _vectors_from_owners(table, all_ids, all_masks, axis)
                if name in sharded
                else lookup(table, Lookup(ids, mask))
            )
            result.lookups[name] = _renumbered(of_table, jnp.arange(len(ids), dtype=jnp.int32))
        else:
            result.tables[name], result.lookups[name] = table, dict(of_table)
    return result


def row_gradients(
    grads: Mapping[str, jax.Array], rows: BatchRows, axis: str | None
) -> dict[str, jax.Array]:
    """The gradient with respect to `rows.weights`, summed over devices.

    Of a table that is sharded or updated sparsely, devices exchange one vector an id, never
    [K, D]. Only a dense gradient, K ≤ 4 M·N, is summed as it is.

    Args:
      grads: {table: gradient with respect to `rows.tables`}, of this device.
      rows: what `rows_of_batch` returned.
      axis: mapped axis of the devices, or None for one.
    """
    if axis is None:
        return dict(grads)
    return {
        name: jax.ops.segment_sum(
            jax.lax.all_gather(grad, axis, tiled=True),
            rows.owners[name],
            len(rows.rows[name].present),
        )
        if name in rows.owners
        else jax.lax.psum(grad, axis)
        for name, grad in grads.items()
    }


def fetch_sharded(
    tables: Tables, lookups: Lookups, axis: str | None, sharded: Collection[str]
) -> tuple[dict[str, jax.Array], dict[str, dict[str, Lookup]]]:
    """Tables and lookups for a model: a sharded table is replaced by the vectors of the ids.

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
    """The lookups with their ids replaced by `numbers`, end to end."""
    renumbered, begin = {}, 0
    for name, at in of_table.items():
        end = begin + len(at.ids)
        renumbered[name] = at._replace(ids=numbers[begin:end])
        begin = end
    return renumbered


def _gathered(ids: jax.Array, mask: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """Ids and masks of all devices, [M·N]; a masked id is sent as −1."""
    ids = jax.lax.all_gather(jnp.where(mask, ids, -1), axis, tiled=True)
    return ids, ids >= 0


def _in_block(
    ids: jax.Array, mask: jax.Array, rows: int, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """Ids counted from the first row of this device's block, and which of them are in it."""
    ids = ids - jax.lax.axis_index(axis) * rows
    return ids, mask & (ids >= 0) & (ids < rows)


def _vectors_from_owners(
    block: jax.Array, ids: jax.Array, mine: jax.Array, axis: str | None
) -> jax.Array:
    """[N, D]: every device sends the rows of its block to the devices that look them up."""
    return jax.lax.psum_scatter(lookup(block, Lookup(ids, mine)), axis, tiled=True)
