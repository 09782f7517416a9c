import functools

import jax
import jax.numpy as jnp
import numpy as np
import option_oracles
import oracles
import pytest
from compiling import quick_jit
from hypothesis import given, strategies as st
from layer_cases import CAPACITY, SAMPLES, WIDTH, examples, f64, normal, seeds

from din_jax.nn.pooling import (
    normalize_weights,
    rows_of_samples,
    segment_mean,
    segment_pool,
    segment_softmax,
    weighted_pool,
)


def segments_of(rng):
    """(values of each segment, packed values, segment ids, mask), with empty segments."""
    lengths = rng.integers(0, 4, SAMPLES)
    lengths[rng.integers(SAMPLES)] = 0
    segments = [normal(rng, n, WIDTH, scale=3) for n in lengths]
    packed = normal(rng, CAPACITY, WIDTH, scale=1e30)
    packed[: lengths.sum()] = np.concatenate(segments)
    segment_ids = np.full(CAPACITY, SAMPLES, np.int32)
    segment_ids[: lengths.sum()] = np.repeat(np.arange(SAMPLES), lengths)
    return segments, packed, segment_ids, segment_ids < SAMPLES


@functools.cache
def pooling_with_gradient(function):
    def run(values, segment_ids):
        out, pull = jax.vjp(lambda v: function(v, segment_ids, SAMPLES), values)
        return out, pull(jnp.ones_like(out))[0]

    return quick_jit(run)


@pytest.mark.parametrize(("function", "mean"), [(segment_pool, False), (segment_mean, True)])
@examples
@given(seeds)
def test_segment_pool_and_mean_match_the_oracle(function, mean, seed):
    segments, packed, segment_ids, mask = segments_of(np.random.default_rng(seed))
    expected = [oracles.pool(f64(s), WIDTH, mean) for s in segments]
    out, of_values = pooling_with_gradient(function)(packed, segment_ids)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(of_values[~mask], 0)
    expected = [np.full(s.shape, 1 / len(s) if mean else 1) for s in segments if len(s)]
    np.testing.assert_allclose(of_values[mask], np.concatenate([np.empty((0, WIDTH)), *expected]))


@functools.cache
def weighted_pooling_with_gradients(block):
    def run(weights, values, segment_ids, g):
        out, pull = jax.vjp(
            lambda w, v: weighted_pool(w, v, segment_ids, SAMPLES, block=block), weights, values
        )
        return out, *pull(g)

    return quick_jit(run)


@pytest.mark.parametrize("block", [0, 3])  # of 16 values
@examples
@given(seeds)
def test_weighted_pool_matches_the_oracle(block, seed):
    rng = np.random.default_rng(seed)
    segments, packed, segment_ids, mask = segments_of(rng)
    weights, g = normal(rng, CAPACITY), normal(rng, SAMPLES, WIDTH)
    out, of_weights, of_values = weighted_pooling_with_gradients(block)(
        weights, packed, segment_ids, g
    )
    of_segments = np.split(f64(weights), np.cumsum([len(s) for s in segments]))
    expected = [
        oracles.weighted_sum(f64(s), w, WIDTH)
        for s, w in zip(segments, of_segments[:SAMPLES], strict=True)
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    own_g = g[segment_ids[mask]]
    np.testing.assert_allclose(of_values[mask], weights[mask, None] * own_g, rtol=1e-5)
    np.testing.assert_allclose(
        of_weights[mask], (packed[mask] * own_g).sum(1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(of_values[~mask], 0)
    np.testing.assert_array_equal(of_weights[~mask], 0)


@quick_jit
def softmax_with_gradient(x, g, segment_ids, mask):
    out, pull = jax.vjp(lambda x: segment_softmax(x, segment_ids, SAMPLES, mask), x)
    return out, pull(g)[0]


@examples
@given(seeds, st.sampled_from([1.0, 80.0, 1e4]))
def test_segment_softmax_matches_the_oracle(seed, scale):
    rng = np.random.default_rng(seed)
    segments, packed, segment_ids, mask = segments_of(rng)
    x = packed[:, 0] * np.where(mask, np.float32(scale), 1)
    out, _ = softmax_with_gradient(x, np.zeros_like(x), segment_ids, mask)
    expected = [option_oracles.softmax(f64(s[:, 0] * np.float32(scale))) for s in segments]
    np.testing.assert_allclose(out[mask], np.concatenate(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out[~mask], 0)


@pytest.mark.parametrize("padding", [0.0, 1e3, 1e30])
@pytest.mark.parametrize("offset", [0.0, -300.0])
def test_segment_softmax_gradient_matches_the_oracle(offset, padding):
    # The scores' offset changes no weight. Padding may lie far above the scores of the segment
    # before it, where exp of the difference is infinite.
    rng = np.random.default_rng(17)
    lengths, g = [4, 0, 3, 0, 5], normal(rng, CAPACITY)
    segment_ids = np.int32(np.repeat(np.arange(6), [*lengths, CAPACITY - 12]))
    x, mask = normal(rng, CAPACITY, offset=offset), segment_ids < SAMPLES
    x[~mask] = padding
    _, of_x = softmax_with_gradient(x, g, segment_ids, mask)

    def total(x):
        weights = [option_oracles.softmax(part) for part in np.split(x, np.cumsum(lengths)[:-1])]
        return np.dot(g[mask], np.concatenate(weights))

    expected = oracles.derivative(total, f64(x[mask]), 1e-5)
    np.testing.assert_allclose(of_x[mask], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_x[~mask], 0)


NORMALIZATIONS = ("none", "mean", "sqrt", "softmax", "sigmoid")


@quick_jit
def normalized_with_gradient(w, g, segment_ids, mask):
    """{how: (weights, gradient)}"""

    def of(how):
        normalize = functools.partial(normalize_weights, how=how)
        out, pull = jax.vjp(lambda w: normalize(w, segment_ids, SAMPLES, mask), w)
        return out, pull(g)[0]

    return {how: of(how) for how in NORMALIZATIONS}


@examples
@given(seeds, st.sampled_from([0.3, 30.0, 1e30]))
def test_normalized_weights_match_the_oracle(seed, scale):
    """With empty histories and with those of one behaviour, whose softmax is 1."""
    rng = np.random.default_rng(seed)
    segments, packed, segment_ids, mask = segments_of(rng)
    g = normal(rng, CAPACITY)
    w = packed[:, 0] * np.where(mask, np.float32(scale), 1)  # padding is large
    for how, (out, of_w) in normalized_with_gradient(w, g, segment_ids, mask).items():
        histories = np.split(f64(w[mask]), np.cumsum([len(s) for s in segments])[:-1])
        expected = [option_oracles.normalized(h.tolist(), how) for h in histories]
        np.testing.assert_allclose(out[mask], np.concatenate(expected), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(out[~mask], 0)
        np.testing.assert_array_equal(of_w[~mask], 0)
        assert np.isfinite(of_w).all()


def test_weights_are_normalized_in_a_known_way():
    with pytest.raises(ValueError, match="normalize_weights: how='max'"):
        normalize_weights(np.ones(1), np.zeros(1, np.int32), 1, np.ones(1, bool), "max")


def test_gradients_of_normalized_weights_match_the_oracle():
    rng = np.random.default_rng(18)
    lengths, g = [4, 0, 3, 0, 1], normal(rng, CAPACITY)
    segment_ids = np.int32(np.repeat(np.arange(6), [*lengths, CAPACITY - 8]))
    w, mask = normal(rng, CAPACITY), segment_ids < SAMPLES
    w[~mask] = 7
    for how, (_, of_w) in normalized_with_gradient(w, g, segment_ids, mask).items():

        def total(w, how=how):
            histories = np.split(w, np.cumsum(lengths)[:-1])
            parts = [option_oracles.normalized(h.tolist(), how) for h in histories]
            return np.dot(g[mask], np.concatenate(parts))

        expected = oracles.derivative(total, f64(w[mask]), 1e-5)
        np.testing.assert_allclose(of_w[mask], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(of_w[~mask], 0)


def test_rows_of_samples_can_be_exported_for_any_number():
    scope = jax.export.SymbolicScope()
    rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3", scope=scope), jnp.float32)
    ids = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t", scope=scope), jnp.int32)
    exported = jax.export.export(jax.jit(rows_of_samples))(rows, ids)
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for number, owners in ((2, [0, 0, 1]), (1, [0, 0, 0, 0])):
        found = exported.call(values[:number], np.array(owners, np.int32))
        np.testing.assert_array_equal(found, values[owners])
