import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiling import quick_jit
from hypothesis import given
from layer_cases import examples, f64, factory, normal, seeds

from din_jax.config import default_config
from din_jax.nn.activations import Dice, PReLU, activation_factory

ROWS, UNITS = 24, 3


def prelu_with_gradients(alpha, s, g):
    out, pull = jax.vjp(lambda a, s: PReLU().apply({"params": {"alpha": a}}, s), alpha, s)
    return out, *pull(g)


prelu_of_rows = quick_jit(prelu_with_gradients)


@examples
@given(seeds)
def test_prelu_matches_the_oracle(seed):
    rng = np.random.default_rng(seed)
    alpha, s, g = normal(rng, UNITS), normal(rng, ROWS, UNITS), normal(rng, ROWS, UNITS)
    s[0] = 0
    out, of_alpha, of_s = prelu_of_rows(alpha, s, g)
    np.testing.assert_allclose(out, oracles.prelu(s, alpha), rtol=1e-6)
    # The slope's gradient is s where s < 0.
    np.testing.assert_allclose(of_alpha, (g * np.minimum(s, 0)).sum(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_s, g * np.where(s > 0, 1, alpha), rtol=1e-6)


def test_prelu_takes_any_leading_axes_and_no_mask():
    rng = np.random.default_rng(0)
    alpha, s, g = normal(rng, UNITS), normal(rng, ROWS, UNITS), normal(rng, ROWS, UNITS)
    shapes = [(4, 6, UNITS), (2, 3, 4, UNITS), (ROWS, 1, UNITS)]

    @quick_jit
    def run(alpha, s, g):
        results = [prelu_with_gradients(alpha, s.reshape(x), g.reshape(x)) for x in shapes]
        return results, prelu_with_gradients(alpha, s[0], g[0])

    results, of_vector = run(alpha, s, g)
    rows = prelu_of_rows(alpha, s, g)
    for shape, result in zip(shapes, results, strict=True):
        assert result[0].shape == result[2].shape == shape
        for actual, expected in zip(result, rows, strict=True):
            np.testing.assert_allclose(np.reshape(actual, expected.shape), expected, rtol=1e-5)
    np.testing.assert_array_equal(of_vector[0], rows[0][0])
    np.testing.assert_array_equal(of_vector[2], rows[2][0])


def test_prelu_starts_at_its_initial_slope():
    s = np.float32([[-2, 4]])
    out, _ = quick_jit(lambda s: PReLU(alpha_init=0.5).init_with_output(jax.random.key(0), s))(s)
    np.testing.assert_array_equal(out, [[-1, 4]])


@pytest.mark.parametrize("name", ["sigmoid", "relu"])
def test_plain_activations_match_the_oracle(name):
    rng = np.random.default_rng(13)
    s = normal(rng, ROWS, UNITS, scale=3)
    module = factory(name)()

    @quick_jit
    def run(s):
        return module.apply({}, s, jnp.ones(ROWS, bool), train=True), module.apply(
            {}, s.reshape(4, 6, UNITS)
        )

    out, with_more_axes = run(s)
    expected = oracles.activate(f64(s), {"kind": name}, train=True)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(with_more_axes, np.reshape(out, (4, 6, UNITS)))


def test_activation_factory_hands_the_config_on():
    config = default_config().model
    config.dice.update(momentum=0.5, epsilon=1e-3, alpha_init=0.1, mean_init=2.0, variance_init=3.0)
    config.prelu.alpha_init = 0.75
    assert activation_factory("dice", config, "devices")() == Dice(
        momentum=0.5,
        epsilon=1e-3,
        alpha_init=0.1,
        mean_init=2.0,
        variance_init=3.0,
        axis_name="devices",
    )
    assert activation_factory("prelu", config)() == PReLU(alpha_init=0.75)
