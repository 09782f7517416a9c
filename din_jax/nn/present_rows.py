"""Finds, gathers and updates the rows of a table that a batch looks up."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A table is updated sparsely if K > SPARSE_ABOVE · N, else densely with a mask
# (`benchmarks/sparse_or_dense.py` measures at which K / N the two cost the same).
SPARSE_ABOVE = 4


class Rows(NamedTuple):
    """The distinct rows of a table that a batch looks up, sparse or dense.

    Sparse: position p stands for row `ids[p]` if `present[p]` is True, and for no row otherwise.
    Each present row has exactly one position. Dense: row j is present if `present[j]` is True.

    Attributes:
      present: bool[N] if sparse, bool[K] if dense.
      ids: int32[N] if sparse, None if dense.
    """

    present: jax.Array
    ids: jax.Array | None = None


def updates_sparsely(rows: int, ids: int) -> bool:
    """Whether a table of K rows is updated sparsely (row-wise) when a batch looks up N ids.

    Otherwise the update is dense, with a mask. The result is equal, but the cost grows with K.
    """
    return rows > SPARSE_ABOVE * ids


def present_mask(ids: jax.Array, mask: jax.Array, rows: int) -> jax.Array:
    """bool[rows]: the rows that occur among the ids int32[N]; those of padding do not count."""
    return jnp.zeros(rows, bool).at[jnp.where(mask, ids, rows)].set(True, mode="drop")


def present_rows(
    ids: jax.Array, mask: jax.Array, scratch: jax.Array
) -> tuple[jax.Array, Rows, jax.Array]:
    """Finds the distinct ids among N ids without sorting.

    Each position is written to `scratch` at its id. The greatest position with an id remains there,
    and owns the id. The result is deterministic, and equal on all devices. Ids of padding are
    ignored. Donate the scratch: otherwise K integers are copied.

    Args:
      ids: int32[N], 0 to K − 1 where `mask` is True.
      mask: bool[N], False for padding.
      scratch: int32[K] with any content.

    Returns:
      The owners, int32[N]: for each id, the position in `Rows` of its row, or N for padding; the
      rows; and the scratch for the next call.
    """
    positions = jnp.arange(len(ids), dtype=jnp.int32)
    indices = jnp.where(mask, ids, len(scratch))
    scratch = scratch.at[indices].set(-1, mode="drop").at[indices].max(positions, mode="drop")
    owners = scratch.at[indices].get(mode="fill", fill_value=len(ids))
    return owners, Rows(owners == positions, ids), scratch


def without_fixed(rows: Rows, fixed: jax.Array) -> Rows:
    """The rows but for those that are fixed: an update leaves these alone, as if they were absent.

    Args:
      rows: the rows that a batch looks up.
      fixed: bool[K].
    """
    return rows._replace(present=rows.present & ~gather_rows(fixed, rows))


def gather_rows(values: jax.Array, rows: Rows) -> jax.Array:
    """Gathers the present rows of values [K, …] to [N, …], or to [K, …] if `rows` is dense.

    Positions that stand for no row are zero.
    """
    if rows.ids is None:
        return jnp.where(_broadcast(rows.present, values), values, jnp.zeros((), values.dtype))
    return values.at[_row_indices(rows.present, rows.ids, values)].get(mode="fill", fill_value=0)


def scatter_rows(values: jax.Array, rows: Rows, new: jax.Array) -> jax.Array:
    """Replaces the present rows of values [K, …] by `new`, [N, …] or dense [K, …]."""
    if rows.ids is None:
        return jnp.where(_broadcast(rows.present, values), new, values)
    indices = _row_indices(rows.present, rows.ids, values)
    return values.at[indices].set(new.astype(values.dtype), mode="drop")


def apply_row_updates(
    table: jax.Array, rows: Rows, updates: jax.Array, weights: jax.Array | None = None
) -> jax.Array:
    """Adds `updates` to the present rows of a table [K, D].

    Donate the table: otherwise it is copied. Dense `updates` [K, D] are added to all rows, as by
    `optax.apply_updates`; those of `row_sparse` are zero in absent rows.

    Args:
      table: [K, D].
      rows: the present rows.
      updates: [N, D], or dense [K, D].
      weights: what they are added to, [N, D]: the rows after they caught up
        (`din_jax.optim.catch_up`). By default the table's own rows.
    """
    updates = updates.astype(table.dtype)
    if rows.ids is None:
        # Keeps the bits of rows whose update is zero: adding 0.0 changes −0.0 and subnormals.
        return jnp.where(updates == 0, table, table + updates)
    if weights is not None:
        return scatter_rows(table, rows, weights + updates)
    return table.at[_row_indices(rows.present, rows.ids, table)].add(updates, mode="drop")


def _row_indices(present: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """The ids of the present rows; K, which gather and scatter drop, in other positions."""
    return jnp.where(present, ids, len(values))


def _broadcast(present: jax.Array, values: jax.Array) -> jax.Array:
    """Reshapes present [K] so that it broadcasts with values [K, …]."""
    return present.reshape(-1, *[1] * (values.ndim - 1))
