"""Row-wise Adagrad against its formula in float64 NumPy."""

import jax
import numpy as np
import optax

from din_jax.optim.rowwise_adagrad import rowwise_adagrad


def test_rowwise_adagrad_is_its_formula():
    rng = np.random.default_rng(0)
    expected, sums = rng.standard_normal((3, 4)), np.full(3, 0.25)
    transform = rowwise_adagrad(0.5, initial_accumulator_value=0.25, eps=1e-3)
    weights = expected.astype(np.float32)
    state = transform.init(weights)

    @jax.jit
    def step(gradient, state, weights):
        updates, state = transform.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    for _ in range(3):
        gradient = rng.standard_normal((3, 4)) * [[1], [0], [3]]
        weights, state = step(gradient.astype(np.float32), state, weights)
        for j in range(3):
            sums[j] += sum(g * g for g in gradient[j]) / 4
            expected[j] -= 0.5 * gradient[j] / (np.sqrt(sums[j]) + 1e-3)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert state[0].sum_of_squares.shape == (3,)
    np.testing.assert_allclose(state[0].sum_of_squares, sums, rtol=1e-5)
