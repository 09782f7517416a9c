"""The activation unit's inputs from ids alone, against plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import option_oracles
import oracles
import pytest
from compiling import quick_jit
from hypothesis import given, settings
from layer_cases import (
    CAPACITY,
    LENGTHS,
    SAMPLES,
    WIDTH,
    assert_trees_close,
    assert_trees_equal,
    behaviors_of,
    dense,
    f64,
    f64_layers,
    factory,
    normal,
    seeds,
    unit_layers,
    unit_variables,
    with_dice,
)

from din_jax.data.packing import Packed
from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.codes import Code, matches, position_code

many = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.mark.parametrize("x64", [False, True])
def test_places_are_in_buckets_of_powers_of_two(x64):
    lengths = [0, 1, 2, 3, 4, 0, 7, 8, 9, 2**16 + 3, 0]
    padding = 5
    segment_ids = np.repeat(np.arange(len(lengths) + 1), [*lengths, padding]).astype(np.int32)
    with jax.enable_x64(x64):
        code = jax.jit(lambda ids: position_code(ids, len(lengths))._replace(size=0))(segment_ids)
    places = [n - 1 - i for n in lengths for i in range(n)]
    assert code.ids.dtype == np.int32
    assert code.ids.tolist() == [option_oracles.place_bucket(p) for p in places] + [0] * padding
    assert {0, 14, 15} <= set(code.ids.tolist())
    # The bucket changes at places 2ᵏ − 1, the last of which is in the history.
    newest_first = code.ids[-padding - 1 :: -1][: 2**16 + 3]
    (changes,) = np.nonzero(np.diff(newest_first))
    assert (changes + 1).tolist() == [2**k - 1 for k in range(1, 16)]


def test_a_code_is_a_one_hot_vector_or_a_number():
    ids = jnp.array([2, 0, 1])
    np.testing.assert_array_equal(Code(ids, 3).encoded(), np.eye(3)[[2, 0, 1]])
    np.testing.assert_array_equal(Code(ids, 1).encoded(), [[2], [0], [1]])


# Matches: 5 samples; 12 behaviours, 20 ids in them and 10 of multi-hot ads at most

BEHAVIORS, NESTED, SHOWN = 12, 20, 10


@quick_jit
def found(behaviors, ad, segment_ids, mask, ad_mask):
    return matches(behaviors, ad, segment_ids, SAMPLES, mask, ad_mask)


def ragged(rng, count, capacity):
    """`count` lists of ids, [], [3], [0, 3, 3], …; at most `capacity` in all, often as many."""
    lists = [rng.integers(0, 4, rng.integers(0, 4)).tolist() for _ in range(count)]
    while sum(map(len, lists)) > capacity:
        lists[int(rng.integers(count))] = []
    if count and rng.random() < 0.5:
        lists[-1] += [3] * (capacity - sum(map(len, lists)))
    return lists


def array_of(rng, values, capacity, masked):
    """(values and then garbage, their mask): some real ids are masked, as dropout does."""
    padding = rng.integers(-3, 5, capacity - len(values))
    mask = np.concatenate([~np.array(masked, bool), np.zeros(len(padding), bool)])
    return np.concatenate([values, padding]).astype(np.int32), mask


def field_of(rng, entries, multi_hot, size, capacity):
    """(a field as batches have it, its mask, the unmasked ids of each entry) of plain lists."""
    masked = [rng.random(len(e) if multi_hot else 1) < 0.2 for e in entries]
    flat = [m for of_entry in masked for m in of_entry]
    if not multi_hot:
        values, mask = array_of(rng, entries, size, flat)
        return values, mask, [[] if m[0] else [e] for e, m in zip(entries, masked, strict=True)]
    values, mask = array_of(rng, [i for e in entries for i in e], capacity, flat)
    owners = np.repeat(np.arange(len(entries)), list(map(len, entries)))
    segment_ids = np.concatenate([owners, np.full(capacity - len(owners), size)])
    kept = [
        [i for i, m in zip(e, of_entry, strict=True) if not m]
        for e, of_entry in zip(entries, masked, strict=True)
    ]
    return Packed(values, segment_ids.astype(np.int32)), mask, kept


def drawn(rng, nested, several):
    """(what `found` takes, what it gives)"""
    full = rng.random() < 0.3  # no padding
    real = BEHAVIORS if full else int(rng.integers(BEHAVIORS))
    samples = SAMPLES if full else int(rng.integers(1, SAMPLES + 1))
    owners = np.sort(rng.integers(0, samples, real))
    segment_ids = np.concatenate([owners, np.full(BEHAVIORS - real, SAMPLES)]).astype(np.int32)
    visited = ragged(rng, real, NESTED) if nested else rng.integers(0, 4, real).tolist()
    shown = ragged(rng, samples, SHOWN) if several else rng.integers(0, 4, samples).tolist()
    behaviors, mask, visited = field_of(rng, visited, nested, BEHAVIORS, NESTED)
    ad, ad_mask, shown = field_of(rng, shown, several, SAMPLES, SHOWN)
    expected = [
        option_oracles.matched(ids, shown[owner])
        for ids, owner in zip(visited, owners, strict=True)
    ]
    return (behaviors, ad, segment_ids, mask, ad_mask), expected + [0] * (BEHAVIORS - real)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("several", [False, True])
@many
@given(seeds)
def test_matches_are_the_ids_that_the_ad_has_too(nested, several, seed):
    """With unknown, repeated and dropped ids, empty ads, and ids of an ad in the padding."""
    inputs, expected = drawn(np.random.default_rng(seed), nested, several)
    counts = found(*inputs)
    assert counts.dtype == np.int32
    assert counts.tolist() == expected


def test_batches_that_are_scored_together_have_their_own_matches():
    """As `score_steps` maps batches: their ads have different numbers of ids."""
    rng = np.random.default_rng(32)
    inputs, expected = zip(*[drawn(rng, True, True) for _ in range(4)], strict=True)
    together = jax.tree.map(lambda *arrays: np.stack(arrays), *inputs)
    run = quick_jit(jax.vmap(lambda *x: matches(*x[:3], SAMPLES, *x[3:])))
    assert run(*together).tolist() == list(expected)


# In the activation unit


def coded_unit(block=0):
    return ActivationUnit((4,), factory("dice"), difference=True, block=block, bias_init=0.25)


def codes_of(rng):
    """([T, 5 + 1] one-hot codes of each behaviour, for the oracle; the codes)"""
    bucket, matched = rng.integers(0, 5, CAPACITY), rng.integers(0, 2, CAPACITY)
    vectors = np.concatenate([np.eye(5)[bucket], matched[:, None]], axis=1)
    return vectors, [Code(np.int32(bucket), 5), Code(np.float32(matched), 1)]


def coded_variables(rng):
    """(layers of the oracle, variables) whose first kernel has rows for the codes at its end."""
    layers = unit_layers(rng, True, False, with_dice, (4,))
    variables = unit_variables(layers)
    own = dense(rng, 6, 4, None)["kernel"]
    variables["params"] |= {"code_0": own[:5], "code_1": own[5:]}
    first = {**layers[0], "kernel": np.concatenate([layers[0]["kernel"], own])}
    return [first, *layers[1:]], variables


@functools.cache
def weights_and_gradients(block):
    def loss(params, stats, packed, ads, segment_ids, mask, ids, g):
        codes = [Code(i, size) for i, size in zip(ids, (5, 1), strict=True)]
        weights, _ = coded_unit(block).apply(
            {"params": params, "batch_stats": stats},
            packed,
            ads,
            segment_ids,
            mask,
            codes=codes,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(g * weights), weights

    return quick_jit(jax.value_and_grad(loss, has_aux=True))


def unit_inputs(padding):
    """(layers and codes of the oracle, what `weights_and_gradients` takes)"""
    rng = np.random.default_rng(30)
    layers, variables = coded_variables(rng)
    ads, g = normal(rng, SAMPLES, WIDTH), normal(rng, CAPACITY)
    histories, packed, segment_ids, mask = behaviors_of(rng, padding)
    vectors, codes = codes_of(rng)
    ids = [np.where(mask, code.ids, code.ids.dtype.type(padding)) for code in codes]
    stats = variables["batch_stats"]
    return (layers, vectors, histories, ads), (
        *(variables["params"], stats, packed, ads, segment_ids, mask, ids, g),
    )


def test_codes_are_further_inputs_of_the_first_layer():
    (layers, vectors, histories, ads), inputs = unit_inputs(padding=7.0)
    at_once = weights_and_gradients(0)(*inputs)
    (_, weights), _ = at_once
    expected, _ = oracles.activation_unit(
        [f64(h) for h in histories],
        f64(ads),
        f64_layers(layers),
        difference=True,
        outer=False,
        train=True,
        codes=np.split(vectors[: sum(LENGTHS)], np.cumsum(LENGTHS)[:-1]),
    )
    mask = inputs[5]
    np.testing.assert_allclose(weights[mask], np.concatenate(expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(weights[~mask], 0)
    in_blocks = weights_and_gradients(3)(*inputs)
    assert_trees_close(in_blocks, at_once, 2e-6)
    for block, result in (0, at_once), (3, in_blocks):
        _, other = unit_inputs(padding=-1e6)
        assert_trees_equal(weights_and_gradients(block)(*other), result)


def test_codes_begin_without_an_effect_and_the_output_with_its_bias():
    _, (_, _, packed, ads, segment_ids, mask, *_) = unit_inputs(padding=0.0)
    _, codes = codes_of(np.random.default_rng(31))

    @quick_jit
    def run(key):
        init = functools.partial(coded_unit().init, key, packed, ads, segment_ids, mask)
        variables = init(codes=codes)
        apply = functools.partial(coded_unit().apply, variables, packed, ads, segment_ids, mask)
        return init(), variables, apply(codes=codes), apply()

    plain, variables, with_codes, without = run(jax.random.key(0))
    assert variables["params"]["output"]["bias"].tolist() == [0.25]
    for i in range(2):
        np.testing.assert_array_equal(variables["params"].pop(f"code_{i}"), 0)
    assert jax.tree.structure(variables) == jax.tree.structure(plain)
    np.testing.assert_array_equal(with_codes, without)


def test_codes_are_of_packed_behaviours():
    behaviors, ads = np.zeros((SAMPLES, 3, WIDTH), np.float32), np.zeros((SAMPLES, WIDTH))
    with pytest.raises(ValueError, match="codes are for packed behaviours, with segment_ids"):
        coded_unit().apply({}, behaviors, ads, codes=codes_of(np.random.default_rng(0))[1])
