"""Gathers the table rows that a batch looks up, on one device or several."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from din_jax.nn.embedding import Lookup, Lookups, Tables, lookup
from din_jax.nn.present_rows import Rows, gather_rows, present_mask, present_rows


class BatchRows(NamedTuple):
    """The rows and lookups of one step.

    Attributes:
      rows: {table: the rows that the global batch looks up}; of a sharded table, the rows in this
        device's block.
      weights: {table: the values of `rows`, [N, D]; if it is updated densely, the full table or
        block}.
      lookups: the lookups, with ids that index the tables of `model_tables`.
      owners: {table: int32[M·N], the position in `rows` of each id of all devices; for a masked
        id, the number of rows}, for the tables whose vectors and gradients are exchanged row by
        row: on several devices all but those that are replicated and updated densely.
      scratch: the scratch for the next call.
    """

    rows: dict[str, Rows]
    weights: dict[str, jax.Array]
    lookups: dict[str, dict[str, Lookup]]
    owners: dict[str, jax.Array]
    scratch: dict[str, jax.Array]


def rows_of_batch(
    tables: Tables,
    lookups: Lookups,
    scratch: Mapping[str, jax.Array],
    axis: str | None = None,
    sharded: Collection[str] = (),
) -> BatchRows:
    """Gathers the rows that a batch looks up, from the tables that have a scratch.

    Tables without a scratch are updated densely. On several devices the ids of all devices are
    gathered, so that every device computes the same present rows.

    Args:
      tables: {table: [K, D], or this device's block of it}.
      lookups: the lookups of the local batch.
      scratch: {table: int32[K], or of a block}, see `present_rows`.
      axis: the devices' mapped axis, or None for one device.
      sharded: names of the sharded tables.
    """
    result = BatchRows({}, {}, {}, {}, {})
    for name, table in tables.items():
        table_lookups = lookups.get(name, {})
        ids, mask = _concatenated(table_lookups)
        all_ids, all_masks = (ids, mask) if axis is None else _all_gathered(ids, mask, axis)
        if name in sharded:
            # Only the ids in this block, relative to its first row.
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
            new_ids = owners if name in scratch else ids
        elif name in sharded or name in scratch:
            result.owners[name] = owners
            new_ids = jnp.arange(len(ids), dtype=jnp.int32)  # one vector per id, with repetitions
        else:
            new_ids = ids
        result.lookups[name] = _with_ids(table_lookups, new_ids)
    return result


def model_tables(
    rows: BatchRows, axis: str | None, sharded: Collection[str]
) -> dict[str, jax.Array]:
    """The model's inputs {table: [N, D], or [K, D] if it is looked up as a whole}.

    On one device they are `rows.weights`. On several, the owner of a sharded row sends its vector.

    Args:
      rows: the result of `rows_of_batch`.
      axis, sharded: see `rows_of_batch`.
    """
    tables = dict(rows.weights)
    for name, owners in rows.owners.items():
        weights = rows.weights[name]
        if name in sharded:
            tables[name] = _vectors_from_owners(weights, owners, owners < len(weights), axis)
        else:  # every device has the rows of all devices
            count = len(owners) // jax.lax.axis_size(axis)
            own = jax.lax.dynamic_slice_in_dim(owners, jax.lax.axis_index(axis) * count, count)
            tables[name] = lookup(weights, Lookup(own, own < len(weights)))
    return tables


def row_gradients(
    grads: Mapping[str, jax.Array], rows: BatchRows, axis: str | None
) -> dict[str, jax.Array]:
    """The gradient with respect to `rows.weights`, summed over devices.

    For a table that is sharded or updated sparsely, devices exchange one vector per id, never
    [K, D]. Only the gradient of a replicated table that is updated densely, K ≤ 4 M·N, is
    all-reduced.

    Args:
      grads: {table: this device's gradient with respect to the tables of `model_tables`}.
      rows: the result of `rows_of_batch`.
      axis: the devices' mapped axis, or None for one device.
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
    """Replaces each sharded table by the vectors of the local batch's ids, for the model.

    Args:
      tables, lookups, axis, sharded: see `rows_of_batch`.
    """
    values = dict(tables)
    new_lookups = {name: dict(table_lookups) for name, table_lookups in lookups.items()}
    for name in sharded:
        table_lookups = lookups.get(name, {})
        ids, mask = _concatenated(table_lookups)
        block = _in_block(*_all_gathered(ids, mask, axis), len(tables[name]), axis)
        values[name] = _vectors_from_owners(tables[name], *block, axis)
        new_lookups[name] = _with_ids(table_lookups, jnp.arange(len(ids), dtype=jnp.int32))
    return values, new_lookups


def _concatenated(table_lookups: Mapping[str, Lookup]) -> tuple[jax.Array, jax.Array]:
    """The concatenated ids and masks, [N], of all lookups in a table."""
    lookups = table_lookups.values()
    ids = jnp.concatenate([jnp.zeros(0, jnp.int32), *(lookup.ids for lookup in lookups)])
    return ids, jnp.concatenate([jnp.zeros(0, bool), *(lookup.mask for lookup in lookups)])


def _with_ids(table_lookups: Mapping[str, Lookup], ids: jax.Array) -> dict[str, Lookup]:
    """The lookups with their ids replaced by `ids` [N], which are concatenated in their order."""
    replaced, begin = {}, 0
    for name, old in table_lookups.items():
        end = begin + len(old.ids)
        replaced[name] = old._replace(ids=ids[begin:end])
        begin = end
    return replaced


def _all_gathered(ids: jax.Array, mask: jax.Array, axis: str | None) -> tuple[jax.Array, jax.Array]:
    """The ids and masks of all devices, [M·N]; a masked id is sent as −1."""
    ids = jax.lax.all_gather(jnp.where(mask, ids, -1), axis, tiled=True)
    return ids, ids >= 0


def _in_block(
    ids: jax.Array, mask: jax.Array, rows: int, axis: str | None
) -> tuple[jax.Array, jax.Array]:
    """Converts ids to rows of this device's block, and masks those outside it."""
    ids = ids - jax.lax.axis_index(axis) * rows
    return ids, mask & (ids >= 0) & (ids < rows)


def _vectors_from_owners(
    block: jax.Array, ids: jax.Array, mask: jax.Array, axis: str | None
) -> jax.Array:
    """Fetches the vectors [N, D] of the local ids from the devices that own their rows.

    Args:
      block: this device's block of the table.
      ids, mask: [M·N] of all devices, from `_in_block`.
      axis: the devices' mapped axis.
    """
    return jax.lax.psum_scatter(lookup(block, Lookup(ids, mask)), axis, tiled=True)
