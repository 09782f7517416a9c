"""The rows of a table that a batch looks up."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A table goes by rows where K is above this many times N, else as a whole, with a mask
# (`benchmarks/rows_or_mask.py` measures where the two cost the same).
ROWS_ABOVE = 4


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
