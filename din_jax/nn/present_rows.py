"""The rows of a table that a batch looks up."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A table is updated sparsely where K is above this many times N, else densely with a mask
# (`benchmarks/sparse_or_dense.py` measures where the two cost the same).
SPARSE_ABOVE = 4


class Rows(NamedTuple):
    """The rows of a table that a batch looks up, each once.

    Sparse, with `ids`: position p is row `ids[p]` where `present[p]` is True, one position a row;
    the other positions are no row. Dense, without `ids`: row j is present where `present[j]`.
    """

    present: jax.Array  # bool[N], or bool[K]
    ids: jax.Array | None = None  # int32[N]


def updates_sparsely(rows: int, ids: int) -> bool:
    """Whether a table of K rows is updated sparsely (row-wise) when a batch looks N ids up in it.

    Otherwise the update is dense, with a mask: the result is the same, the cost grows with K.
    """
    return rows > SPARSE_ABOVE * ids


def present_mask(ids: jax.Array, mask: jax.Array, rows: int) -> jax.Array:
    """bool[rows]: which rows are among N ids. Padding is never present."""
    return jnp.zeros(rows, bool).at[jnp.where(mask, ids, rows)].set(True, mode="drop")


def present_rows(
    ids: jax.Array, mask: jax.Array, scratch: jax.Array
) -> tuple[jax.Array, Rows, jax.Array]:
    """The distinct ids among N, without a sort.

    Each position is written at its id in `scratch`; the greatest position is left there, and owns
    the id. The result is the same on every run and device. Padding is never present, whatever id it
    holds. Donate the scratch: otherwise K integers are copied.

    Args:
      ids: int32[N], 0 to K − 1 where `mask` is True.
      mask: bool[N].
      scratch: int32[K], of any content.

    Returns:
      The owners, int32[N]: the position in `Rows` of each id's row, N for padding; the rows; and
      the scratch for the next call.
    """
    positions = jnp.arange(len(ids), dtype=jnp.int32)
    at = jnp.where(mask, ids, len(scratch))
    scratch = scratch.at[at].set(-1, mode="drop").at[at].max(positions, mode="drop")
    owners = scratch.at[at].get(mode="fill", fill_value=len(ids))
    return owners, Rows(owners == positions, ids), scratch


def gather_rows(values: jax.Array, rows: Rows) -> jax.Array:
    """The present rows of values [K, …]: [N, …], or dense [K, …]; zero in other positions."""
    if rows.ids is None:
        return jnp.where(_beside(rows.present, values), values, jnp.zeros((), values.dtype))
    return values.at[_row_indices(rows.present, rows.ids, values)].get(mode="fill", fill_value=0)


def scatter_rows(values: jax.Array, rows: Rows, new: jax.Array) -> jax.Array:
    """Values [K, …] with the present rows replaced by those of `new`."""
    if rows.ids is None:
        return jnp.where(_beside(rows.present, values), new, values)
    indices = _row_indices(rows.present, rows.ids, values)
    return values.at[indices].set(new.astype(values.dtype), mode="drop")


def apply_row_updates(table: jax.Array, rows: Rows, updates: jax.Array) -> jax.Array:
    """The table [K, D] with `updates` added to the present rows.

    Donate the table: otherwise it is copied. Dense `updates` [K, D] are added as they are, as
    `optax.apply_updates` does; `row_sparse` leaves zeros in absent rows.
    """
    updates = updates.astype(table.dtype)
    if rows.ids is None:
        # An update of zero changes no bit: −0.0 + 0.0 would, and so would a subnormal + 0.0.
        return jnp.where(updates == 0, table, table + updates)
    return table.at[_row_indices(rows.present, rows.ids, table)].add(updates, mode="drop")


def _row_indices(present: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """Indices of the present rows; other positions get K, which gathers and scatters drop."""
    return jnp.where(present, ids, len(values))


def _beside(present: jax.Array, values: jax.Array) -> jax.Array:
    return present.reshape(-1, *[1] * (values.ndim - 1))
