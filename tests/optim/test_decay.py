"""The decays against Eqs. 6 and 7, written out in float64 NumPy and by autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st

from din_jax.optim.mba import difacto_decay, mba_decay, on_tables


@st.composite
def tables(draw):
    """A table's gradient, weights, present rows and counts; few shapes, which compile once each."""
    rows, dim = draw(st.sampled_from([(1, 1), (12, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    present = rng.random(rows) < draw(st.sampled_from([0, 0.5, 1]))
    counts = rng.integers(0, 20, rows) * (rng.random(rows) < 0.8)
    counts = np.float32(counts * draw(st.sampled_from([1, 0.03])))  # or sums of weights
    gradient, weights = rng.standard_normal((2, rows, dim)).astype(np.float32)
    return gradient, weights, present, counts


@jax.jit
def decayed(rate, gradient, weights, present, counts):
    """The gradient with the decay of MBA, and with that of DiFacto."""
    updates, state, params = {"t": gradient}, optax.EmptyState(), {"t": weights}
    extra = {"present": {"t": present}, "counts": {"t": counts}}
    mba, _ = mba_decay(rate).update(updates, state, params, **extra)
    difacto, _ = difacto_decay(rate).update(updates, state, params, **extra)
    return mba["t"], difacto["t"]


@settings(deadline=None)
@given(tables(), st.floats(0, 10))
def test_mba_decay_is_equation_7(data, rate):
    gradient, weights, present, counts = data
    mba, difacto = map(np.asarray, decayed(rate, *data))
    expected = gradient.astype(np.float64)
    for j in range(len(weights)):
        if present[j] and counts[j] > 0:
            expected[j] += rate * weights[j] / counts[j]
    np.testing.assert_allclose(mba, expected, rtol=1e-6, atol=1e-6)
    untouched = ~(present & (counts > 0))
    assert (mba[untouched] == gradient[untouched]).all()

    expected = gradient + rate * present[:, None] * weights.astype(np.float64)
    np.testing.assert_allclose(difacto, expected, rtol=1e-6, atol=1e-6)
    assert (difacto[~present] == gradient[~present]).all()


@jax.jit
def gradient_of_the_penalty(weights, present, counts):
    def penalty(w):  # λ/2 · Σ_j α_j / n_j · ‖w_j‖², with λ = 0.3
        n = jnp.where(counts > 0, counts, 1)
        return 0.15 * jnp.sum(present * (counts > 0) / n * jnp.sum(w**2, axis=1))

    return jax.grad(penalty)(weights)


@settings(deadline=None, max_examples=30)
@given(tables())
def test_mba_decay_is_the_gradient_of_equation_6(data):
    gradient, weights, present, counts = data
    decay, _ = decayed(0.3, np.zeros_like(gradient), weights, present, counts)
    expected = gradient_of_the_penalty(weights, present, counts)
    np.testing.assert_allclose(decay, expected, rtol=1e-5, atol=1e-7)


def test_only_the_named_tables_decay():
    tree = {
        "params": np.ones(3, np.float32),
        "tables": {name: np.ones((2, 2), np.float32) for name in "abc"},
    }
    present = dict.fromkeys("abc", np.array([True, False]))
    transform = on_tables(difacto_decay(0.5), ("a", "b"))
    updates, _ = transform.update(tree, transform.init(tree), tree, present=present)
    for name in "ab":
        assert updates["tables"][name].tolist() == [[1.5, 1.5], [1, 1]]
    assert updates["tables"]["c"] is tree["tables"]["c"]
    assert updates["params"] is tree["params"]


def test_a_forgotten_or_misspelt_argument_raises():
    weights, here, n = np.ones((3, 2), np.float32), np.ones(3, bool), np.ones(3)
    chain = optax.chain(mba_decay(0.1), optax.sgd(1.0))
    state = chain.init(weights)
    chain.update(weights, state, weights, present=here, counts=n)
    with pytest.raises(TypeError, match="counts"):
        chain.update(weights, state, weights, present=here)
    with pytest.raises(TypeError, match="present"):
        chain.update(weights, state, weights, presnet=here, counts=n)
    with pytest.raises(ValueError, match="params"):
        chain.update(weights, state, present=here, counts=n)
    with pytest.raises(TypeError, match="present"):
        difacto_decay(0.1).update(weights, optax.EmptyState(), weights)
