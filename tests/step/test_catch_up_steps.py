"""Steps whose absent rows catch up, against the steps of dense Optax."""

import jax
import numpy as np
import pytest
from step_states import arbitrary_state, equal_shapes, large_run

from din_jax.step.settle import settle
from din_jax.step.train import train_step


def assert_trained_alike(state, dense):
    def trained(state):
        return {"params": state.params, "tables": state.tables, "batch_stats": state.batch_stats}

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        trained(state),
        trained(dense),
    )


@pytest.mark.long
@pytest.mark.parametrize("model", ["base", "din"])
def test_steps_that_catch_up_are_those_of_dense_adam(planted_store, model):
    """With MBA and clipping; before and after rows are settled, and a table becomes dense."""
    keys = {"model.name": model, "optimizer.name": "adam"}
    run = large_run(planted_store, **keys, **{"optimizer.lazy": "catch_up"})
    plain = large_run(planted_store, **keys, **{"optimizer.lazy": False})
    state, dense = arbitrary_state(run), arbitrary_state(plain)
    assert "item" in state.scratch and "hour" not in state.scratch and not dense.scratch
    initial = np.asarray(state.tables["item"])
    step = train_step(run.model, run.optimizer, run.regularizer)
    dense_step = train_step(plain.model, plain.optimizer, plain.regularizer)
    batches = equal_shapes(run.source, 24)

    def take(state, dense, batches):
        for batch in batches:
            state, loss = step(state, batch)
            dense, dense_loss = dense_step(dense, batch)
            np.testing.assert_allclose(loss, dense_loss, rtol=1e-5)
        return state, dense

    state, dense = take(state, dense, batches[:12])
    behind = np.asarray(state.opt_state.last_step["item"])
    assert len(set(behind)) > 5, "rows of many last steps"
    off = np.abs(np.asarray(state.tables["item"]) - dense.tables["item"]).max()
    assert off > 1e-3, "lazy Adam's rows, until they catch up"
    state = settle(run.optimizer)(state)
    assert_trained_alike(state, dense)
    np.testing.assert_array_equal(state.tables["item"][behind == 0], initial[behind == 0])

    state, dense = take(state, dense, batches[12:18])
    # As if it went on where a batch looks up more ids: then the table is updated densely.
    settle_dense = settle(run.optimizer, only_dense=True)
    state, dense = take(settle_dense(state.replace(scratch={})), dense, batches[18:])
    assert_trained_alike(settle_dense(state), dense)


@pytest.mark.long
def test_a_state_of_rows_that_are_behind_is_scored_as_if_they_were_not(planted_store):
    run = large_run(planted_store, **{"optimizer.lazy": "catch_up", "optimizer.name": "adam"})
    state, step = arbitrary_state(run), run.step()
    for batch in equal_shapes(run.source, 12):
        state, _ = step(state, batch)
    found = run.probabilities(state, "validation")
    stale = run.evaluator("validation").probabilities(state)
    settled = run.settle()(state)
    np.testing.assert_array_equal(found, run.evaluator("validation").probabilities(settled))
    assert np.abs(found - stale).max() > 1e-4


def test_states_of_other_optimizers_are_settled(planted_store):
    run = large_run(planted_store, **{"optimizer.name": "sgd", "optimizer.lazy": "catch_up"})
    state = arbitrary_state(run)
    assert run.settle()(state) is state, "SGD without momentum: dense and lazy are one"
