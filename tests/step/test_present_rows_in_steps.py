"""The rows that a batch looks up, against loops over its ids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from din_jax.nn.present_rows import (
    Rows,
    apply_row_updates,
    gather_rows,
    present_mask,
    present_rows,
    scatter_rows,
)

POSITIONS, ROWS = 20, 10


@jax.jit
def rows_of(ids, mask, scratch, values):
    owners, rows, scratch = present_rows(ids, mask, scratch)
    gathered = gather_rows(values, rows)
    return {
        "owners": owners,
        "rows": rows,
        "scratch": scratch,
        "gathered": gathered,
        "scattered": scatter_rows(values, rows, gathered + 1),
        "added": apply_row_updates(values, rows, jnp.full_like(gathered, 2)),
        "mask": present_mask(ids, mask, len(values)),
    }


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, ROWS - 1), st.booleans()), max_size=POSITIONS),
    st.integers(0, 99),
)
@example([], 0)
def test_present_rows_are_the_distinct_real_ids(lookups, seed):
    # Padded to one shape, which compiles once; padding holds any ids.
    rng = np.random.default_rng(seed)
    padding = POSITIONS - len(lookups)
    ids = np.array([i for i, _ in lookups] + rng.integers(0, ROWS, padding).tolist(), np.int32)
    mask = np.array([real for _, real in lookups] + [False] * padding)
    scratch = rng.integers(-5, 25, ROWS).astype(np.int32)
    values = rng.standard_normal((ROWS, 3)).astype(np.float32)
    result = jax.tree.map(np.asarray, rows_of(ids, mask, scratch, values))
    rows, owners = result["rows"], result["owners"]

    assert sorted(ids[rows.present]) == sorted(set(ids[mask]))
    for at, (j, real) in enumerate(zip(ids, mask, strict=True)):
        if real:
            assert rows.present[owners[at]] and ids[owners[at]] == j
        else:
            assert owners[at] == POSITIONS and not rows.present[at]
    present = np.zeros(ROWS, bool)
    for j, real in zip(ids, mask, strict=True):
        present[j] |= real
    assert result["mask"].tolist() == present.tolist()

    assert (result["gathered"] == np.where(rows.present[:, None], values[ids], 0)).all()
    for name, addend in (("scattered", 1), ("added", 2)):
        expected = values.copy()
        expected[present] += np.float32(addend)
        np.testing.assert_array_equal(result[name], expected)


def test_without_ids_no_row_is_present():
    owners, rows, scratch = present_rows(
        np.zeros(0, np.int32), np.zeros(0, bool), jnp.arange(3, dtype=jnp.int32)
    )
    assert owners.shape == rows.present.shape == (0,) and scratch.shape == (3,)
    assert not present_mask(np.zeros(0, np.int32), np.zeros(0, bool), 3).any()


@pytest.mark.parametrize("sparse", [False, True])
def test_an_update_of_zero_changes_no_bit(sparse):
    table = jnp.array([[-0.0, 1e-40], [1.0, 2.0], [3.0, -0.0]])
    rows = Rows(np.array([False, True, False]))
    updates = jnp.array([[0.0, 0.0], [5.0, 0.0], [0.0, 0.0]])
    if sparse:
        rows = Rows(np.array([True, False]), np.array([1, 0], np.int32))
        updates = updates[np.array([1, 0])]
    after = np.asarray(apply_row_updates(table, rows, updates))
    expected = np.float32([[-0.0, 1e-40], [6.0, 2.0], [3.0, -0.0]])
    assert (after.view(np.uint32) == expected.view(np.uint32)).all()
