import jax
import numpy as np
import oracles
import pytest
from compiling import quick_jit
from layer_cases import f64, normal

from din_jax.nn.losses import click_logit, negative_log_likelihood, weighted_mean

LABELS = np.float32([1, 0, 1, 1, 0, 0])


@quick_jit
def mean_loss(logits, label, weight):
    losses = negative_log_likelihood(logits, label)
    gradient = jax.grad(lambda x: weighted_mean(negative_log_likelihood(x, label), weight))(logits)
    return losses, weighted_mean(losses, weight), gradient


def test_the_loss_and_its_gradient_match_equation_2():
    rng = np.random.default_rng(0)
    logits, weight = normal(rng, 6, 2, scale=3), np.float32([1, 1, 1, 1, 0, 0])
    losses, mean, gradient = mean_loss(logits, LABELS, weight)
    expected = [
        oracles.negative_log_likelihood(f64(logits[[i]]), f64(LABELS[[i]])) for i in range(6)
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(mean, np.mean(expected[:4]), rtol=1e-6)
    slope = oracles.derivative(
        lambda x: oracles.negative_log_likelihood(x, f64(LABELS[:4])), f64(logits[:4]), 1e-6
    )
    np.testing.assert_allclose(gradient[:4], slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[4:], 0)


def test_the_loss_of_certain_predictions_is_finite():
    logits = np.float32([[1e4, -1e4], [-1e4, 1e4]] * 3)
    losses, mean, gradient = mean_loss(logits, LABELS, np.ones(6, np.float32))
    np.testing.assert_allclose(losses, [2e4, 2e4, 2e4, 0, 0, 2e4])
    assert np.isfinite(mean)
    assert np.isfinite(gradient).all()


def test_the_loss_of_no_sample_is_zero():
    logits = normal(np.random.default_rng(1), 6, 2)
    _, mean, gradient = mean_loss(logits, LABELS, np.zeros(6, np.float32))
    assert mean == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e20])
def test_the_loss_of_fractional_weights_is_their_weighted_mean(scale):
    rng = np.random.default_rng(4)
    logits = normal(rng, 6, 2, scale=3)
    weight = np.float32(scale * np.array([0.1, 0.25, 0, 0.3, 0.02, 0]))
    losses, mean, gradient = mean_loss(logits, LABELS, weight)
    np.testing.assert_allclose(mean, np.average(f64(losses), weights=f64(weight)), rtol=1e-5)

    def expected(x):
        of_each = [oracles.negative_log_likelihood(x[[i]], f64(LABELS[[i]])) for i in range(len(x))]
        return np.average(of_each, weights=f64(weight))

    slope = oracles.derivative(expected, f64(logits), 1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_parts_of_a_weighted_mean_add_up_over_devices():
    rng = np.random.default_rng(2)
    run = quick_jit(jax.vmap(lambda v, w: weighted_mean(v, w, "devices"), axis_name="devices"))
    for weight in (
        np.float32([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]]),
        np.float32([[0.1, 0.02, 0, 0], [0, 0, 0, 0], [0.25, 0.125, 0.01, 0]]),
    ):
        values = normal(rng, 3, 4)
        parts = run(values, weight)
        np.testing.assert_allclose(parts, (values * weight).sum(1) / weight.sum(), rtol=1e-6)


def test_the_click_logit_gives_the_second_probability():
    logits = normal(np.random.default_rng(3), 6, 2, scale=10)
    p = np.exp(f64(logits)) / np.exp(f64(logits)).sum(axis=1, keepdims=True)
    z = f64(click_logit(logits))
    np.testing.assert_allclose(1 / (1 + np.exp(-z)), p[:, 1], rtol=1e-5)
