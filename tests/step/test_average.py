"""Averages of the weights, against weighted means in NumPy."""

import functools

import jax
import numpy as np
import pytest
from step_states import arbitrary_state, large_run

from din_jax.step.average import average

WEIGHTS = ("params", "batch_stats", "tables")


def weights_of(tree):
    return {name: getattr(tree, name) for name in WEIGHTS}


def weighted_mean(shares, *leaves):
    return np.tensordot(shares / shares.sum(), np.stack(leaves), 1)


def as_float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("half_life", [0.5, 3, 1e4])
def test_the_average_of_the_weights_is_their_weighted_mean(planted_store, half_life):
    run = large_run(planted_store, **{"train.ema_epochs": 1.0})
    average_in = average(half_life)
    seen, state = [], None
    for seed in range(5):
        drawn = arbitrary_state(run, seed)
        state = drawn if state is None else drawn.replace(average=state.average)
        before = jax.tree.map(np.asarray, state.replace(average=()))
        seen.append(as_float64(weights_of(state)))
        state = average_in(state)
        jax.tree.map(np.testing.assert_array_equal, state.replace(average=()), before)

        shares = 2.0 ** (-np.arange(len(seen))[::-1] / half_life)
        expected = jax.tree.map(functools.partial(weighted_mean, shares), *seen)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            weights_of(state.average),
            expected,
        )
        scored = state.scored()
        assert scored.average == ()
        jax.tree.map(np.testing.assert_array_equal, weights_of(scored), weights_of(state.average))
    assert int(state.average.count) == 5


def test_without_averages_the_weights_themselves_are_scored(planted_store):
    state = arbitrary_state(large_run(planted_store))
    assert state.average == ()
    assert state.scored().tables is state.tables
    state = arbitrary_state(large_run(planted_store, **{"train.ema_epochs": 1.0}))
    assert int(state.average.count) == 0, "before the first average"
    assert state.scored().tables is state.tables and state.scored().average == ()
