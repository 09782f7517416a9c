"""Steps that leave rows with pretrained vectors alone, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_states import arbitrary_state, equal_shapes, large_run

from din_jax.data.pretrained import Pretrained
from din_jax.step import pretrained as pretrained_module
from din_jax.step.pretrained import write_pretrained

FIXED = {"model.pretrained": "item=a.npy,hour=b.npy", "model.pretrained_trainable": False}
SGD = {
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 0.1,
    "model.activation": "prelu",  # compiles soonest
}


def drawn(run, rng):
    """Vectors of half the rows of two tables: one is updated sparsely, one densely."""
    vectors = {}
    for name in ("item", "hour"):
        rows = np.flatnonzero(rng.random(run.model.tables[name].rows) < 0.5).astype(np.int32)
        values = rng.standard_normal((len(rows), run.model.tables[name].dim)).astype(np.float32)
        vectors[name] = Pretrained("a.npy", rows, values, 0.5, 0.5)
    return vectors


def copied(state):
    return jax.tree.map(np.array, state)


def written(pretrained):
    return {name: (given.rows, given.vectors) for name, given in pretrained.items()}


def norm(*trees):
    return np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(trees)))


@pytest.mark.parametrize("lazy", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_step_with_fixed_rows_is_that_of_the_other_weights(planted_store, monkeypatch, lazy):
    """Neither their gradients, in the norm that clips, nor their decay count."""
    run = large_run(planted_store, **SGD, **FIXED, **{"optimizer.lazy": lazy})
    vectors = drawn(run, np.random.default_rng(4))
    monkeypatch.setattr(pretrained_module, "_ROWS_AT_ONCE", 1000)  # the goods in two parts
    state = write_pretrained(arbitrary_state(run), written(vectors))
    assert ("item" in state.scratch, "hour" in state.scratch) == (lazy, False)
    old = copied(state)
    for name, (_, rows, values, *_) in vectors.items():
        expected = np.array(arbitrary_state(run).tables[name])
        expected[rows] = values
        np.testing.assert_array_equal(old.tables[name], expected)
        assert np.flatnonzero(old.fixed[name]).tolist() == rows.tolist()

    (batch,), step = equal_shapes(run.source, 1), run.step()
    free = jax.tree.map(jnp.array, old)
    free, _ = step(free.replace(fixed=jax.tree.map(jnp.zeros_like, free.fixed)), batch)
    free = copied(free)
    state, _ = step(state, batch)

    # SGD of learning rate 0.1: what it took away are the clipped gradients and the decay (Eq. 7).
    def clipped(old, new):
        return (old.astype(np.float64) - new) / 0.1

    decay = {name: np.zeros((len(table), 1)) for name, table in old.tables.items()}
    for name, lookups in run.model.lookups(batch).items():
        for at in lookups.values():
            ids = np.asarray(at.ids)[np.asarray(at.mask)]
            decay[name][ids, 0] = 3.0 / np.maximum(run.regularizer.counts[name][ids], 1)
    of_tables = {
        name: clipped(table, free.tables[name]) - decay[name] * table
        for name, table in old.tables.items()
    }
    of_params = jax.tree.map(clipped, old.params, free.params)
    assert norm(of_params, of_tables) == pytest.approx(0.5, rel=1e-3), "they were clipped"
    for name in vectors:
        assert np.abs(of_tables[name][old.fixed[name]]).max() > 0
        of_tables[name][old.fixed[name]] = decay[name][old.fixed[name]] = 0
    factor = 0.5 / norm(of_params, of_tables)
    assert factor > 1.01, "the fixed rows counted"
    for name, table in old.tables.items():
        change = 0.1 * (factor * of_tables[name] + decay[name] * table)
        np.testing.assert_allclose(state.tables[name], table - change, rtol=1e-5, atol=1e-5)
    for name in vectors:
        fixed = old.fixed[name]
        np.testing.assert_array_equal(state.tables[name][fixed], old.tables[name][fixed])
        np.testing.assert_array_equal(state.fixed[name], fixed)


@pytest.mark.long
@pytest.mark.parametrize("lazy", [True, False, "catch_up"])
@pytest.mark.parametrize("name", ["adam", "adagrad", "rowwise_adagrad", "sgd"])
def test_fixed_rows_keep_their_bits_where_all_rows_are_updated(planted_store, lazy, name):
    run = large_run(planted_store, **FIXED, **{"optimizer.name": name, "optimizer.lazy": lazy})
    state = write_pretrained(arbitrary_state(run), written(drawn(run, np.random.default_rng(5))))
    old, step = copied(state), run.step()
    for batch in equal_shapes(run.source, 4):
        state, _ = step(state, batch)
    state = run.settle()(state)
    for table, fixed in old.fixed.items():
        new = np.asarray(state.tables[table])
        assert new[fixed].tobytes() == old.tables[table][fixed].tobytes()
        assert (new[~fixed] != old.tables[table][~fixed]).any()
