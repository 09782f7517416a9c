"""Row-sparse updates against dense Optax with a mask.

The dense reference is written here from its definition: absent rows are zero in gradient, weights
and state while the inner transformation runs on whole tables, and are then put back.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from row_sparse_cases import COUNTS, ROWS, SEPARABLE, parameters

from din_jax.nn.present_rows import Rows, apply_row_updates, gather_rows, present_rows
from din_jax.optim.row_sparse import row_sparse, whole_tables

# One of each kind in the default suite: no state, state of whole rows, one value a row, a global
# norm of gradients and of what was made of weights, the arguments `present` and `counts`, a global
# schedule in the state, transformations of some of the parameters only, and zeros that give NaN.
KINDS = (
    "sgd",
    "rmsprop",
    "no epsilon",
    "rowwise",
    "clip",
    "clip after decay",
    "mba",
    "inject",
    "masked",
    "partition",
    "frozen",
)
CASES = [
    pytest.param(
        name,
        dense,
        id=f"{name}-{layout}",
        marks=() if (name in KINDS and dense) or name == "adam" else pytest.mark.long,
    )
    for name in SEPARABLE
    for layout, dense in {"sparse": (), "sparse and dense": ("a",)}.items()
]


def batch_of(rng):
    """Ids with repeats, and padding that holds any id; sometimes nothing is present."""
    for name, rows in ROWS.items():
        ids = rng.integers(0, rows, 11) // rng.integers(1, 4)
        yield name, ids.astype(np.int32), rng.random(11) < rng.choice([0, 0.8, 1])


def row_sparse_step(transform, dense):
    """A step on parameters, state and scratch, with dense updates of the tables `dense`."""

    def step(params, state, scratch, grads, batch, present):
        rows, scratch = {}, dict(scratch)
        for name, (ids, mask) in batch.items():
            if name in dense:
                rows[name] = Rows(present[name])
            else:
                _, rows[name], scratch[name] = present_rows(ids, mask, scratch[name])

        def gathered(tree):
            return {
                name: leaf if name in dense else gather_rows(leaf, rows[name])
                for name, leaf in tree["tables"].items()
            }

        updates, state = transform.update(
            {**grads, "tables": gathered(grads)},
            state,
            {**params, "tables": gathered(params)},
            rows=rows,
            counts={name: gather_rows(jnp.asarray(n), rows[name]) for name, n in COUNTS.items()},
        )
        moved = {
            "params": optax.apply_updates(params["params"], updates["params"]),
            "tables": {
                name: apply_row_updates(table, rows[name], updates["tables"][name])
                for name, table in params["tables"].items()
            },
        }
        return moved, state, scratch

    return step


def masked_dense_step(inner, params, state, grads, present):
    """One step of `inner` on whole tables; present: {name: bool[K]}."""
    by_length = {k: name for name, k in ROWS.items()}

    def only(leaf, name, otherwise=0.0):
        here = present[name].reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(here, leaf, otherwise)

    def rows_of(leaf):
        return by_length.get(leaf.shape[0]) if leaf.ndim else None

    def zeroed(tree):
        return jax.tree.map(lambda x: only(x, rows_of(x)) if rows_of(x) else x, tree)

    updates, after = inner.update(
        zeroed(grads), zeroed(state), zeroed(params), present=present, counts=COUNTS
    )
    moved = optax.apply_updates(params, updates)

    def back(new, old):
        return only(new, rows_of(new), old) if rows_of(new) else new

    return jax.tree.map(back, moved, params), jax.tree.map(back, after, state)


def bits(x):
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize(("name", "dense"), CASES)
def test_row_sparse_is_dense_with_a_mask(name, dense):
    inner = optax.with_extra_args_support(SEPARABLE[name])
    sparse = row_sparse(SEPARABLE[name])
    one_step = row_sparse_step(sparse, dense)

    @jax.jit
    def both_steps(params, state, scratch, grads, batch, present):
        expected = masked_dense_step(inner, params, state, grads, present)
        return one_step(params, state, scratch, grads, batch, present), expected

    params, rng = parameters(7)
    state = sparse.init(params)
    scratch = {table: np.full(k, -7, np.int32) for table, k in ROWS.items()}
    some_absent = dict.fromkeys(ROWS, 0)
    for _ in range(30):
        batch = {table: (ids, mask) for table, ids, mask in batch_of(rng)}
        present = {
            table: np.isin(np.arange(ROWS[table]), ids[mask])
            for table, (ids, mask) in batch.items()
        }
        grads = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype("f"), params)
        for table, here in present.items():
            grads["tables"][table] *= here[:, None]
        (moved, after, scratch), expected = both_steps(
            params, state, scratch, grads, batch, present
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
            (moved, after),
            expected,
        )
        for table, k in ROWS.items():
            absent = ~present[table]
            some_absent[table] += absent.any() and not absent.all()
            for before, now in zip(
                jax.tree.leaves((params["tables"][table], state)),
                jax.tree.leaves((moved["tables"][table], after)),
                strict=True,
            ):
                if before.ndim and len(before) == k:
                    assert (bits(before)[absent] == bits(now)[absent]).all()
        params, state = moved, after
    assert min(some_absent.values()) > 10


def test_with_every_row_present_lazy_adam_is_optax_adam():
    sparse, dense = row_sparse(optax.adam(0.1)), optax.adam(0.1)
    step = jax.jit(row_sparse_step(sparse, ()))
    params, rng = parameters(0)
    state, scratch = sparse.init(params), {n: np.zeros(k, np.int32) for n, k in ROWS.items()}

    @jax.jit
    def dense_step(params, state, grads):
        updates, state = dense.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    dense_params, dense_state = params, dense.init(params)
    for _ in range(5):
        grads = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype("f"), params)
        batch = {n: (rng.permutation(k).astype("i"), np.ones(k, bool)) for n, k in ROWS.items()}
        present = {n: np.ones(k, bool) for n, k in ROWS.items()}
        params, state, scratch = step(params, state, scratch, grads, batch, present)
        dense_params, dense_state = dense_step(dense_params, dense_state, grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        (params, state),
        (dense_params, dense_state),
    )


def test_moments_of_an_absent_row_stay_and_dense_adam_changes_them():
    """What the docstring says of lazy Adam, in two steps of one row."""
    params = {"params": {}, "tables": {"a": jnp.ones((2, 1))}}
    gradient = {"params": {}, "tables": {"a": jnp.array([[1.0], [0.0]])}}
    nothing = {"params": {}, "tables": {"a": jnp.zeros((2, 1))}}

    def two_steps(transform):
        here, away = Rows(np.array([True, False])), Rows(np.array([False, False]))
        _, state = transform.update(gradient, transform.init(params), params, rows={"a": here})
        return state, *transform.update(nothing, state, params, rows={"a": away})

    for transform, moves in (
        (row_sparse(optax.adam(0.1)), False),
        (whole_tables(optax.adam(0.1)), True),
    ):
        state, updates, after = jax.jit(lambda t=transform: two_steps(t))()
        assert bool(updates["tables"]["a"][0, 0] != 0) == moves
        assert bool(after[0].mu["tables"]["a"][0, 0] != state[0].mu["tables"]["a"][0, 0]) == moves
        assert int(after[0].count) == 2
