import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiling import quick_jit
from hypothesis import given, strategies as st
from layer_cases import (
    CAPACITY,
    LENGTHS,
    LONGEST,
    SAMPLES,
    WIDTH,
    assert_trees_close,
    assert_trees_equal,
    behaviors_of,
    examples,
    f64,
    f64_layers,
    factory,
    normal,
    padded_behaviors,
    seeds,
    unit_layers,
    unit_variables,
    with_dice,
    with_prelu,
)

from din_jax.nn.activation_unit import ActivationUnit

MOMENTUM = 0.75
CASES = [  # difference, outer, activation, its parameters, widths
    (False, False, "dice", with_dice, (4, 3)),
    (True, False, "prelu", with_prelu, (4, 6)),
    (False, True, "dice", with_dice, (4,)),
    (True, True, "dice", with_dice, (4,)),
]


def average_of(old, batch):
    return MOMENTUM * f64(old) + (1 - MOMENTUM) * batch


@pytest.mark.parametrize(("difference", "outer", "name", "activation", "hidden"), CASES)
def test_activation_unit_matches_the_oracle(difference, outer, name, activation, hidden):
    """Packed and padded, in training and evaluation: weights, and moving averages of Dice."""
    rng = np.random.default_rng(15)
    layers = unit_layers(rng, difference, outer, activation, hidden)
    variables = unit_variables(layers)
    ads = normal(rng, SAMPLES, WIDTH)
    histories, packed, segment_ids, mask = behaviors_of(rng, padding=7.0)
    padded, padded_mask = padded_behaviors(histories, padding=-50.0)
    unit = ActivationUnit(
        hidden, factory(name, momentum=MOMENTUM), difference=difference, outer=outer
    )

    @quick_jit
    def run(variables, packed, padded, ads):
        apply = functools.partial(unit.apply, variables, mutable=["batch_stats"])
        return {
            train: {
                # Without a mask, the segment ids say which behaviours are real.
                "packed": apply(packed, ads, segment_ids, train=train),
                "padded": apply(padded, ads, mask=padded_mask, train=train),
            }
            for train in (True, False)
        }

    masks = {"packed": mask, "padded": padded_mask}
    for train, results in run(variables, packed, padded, ads).items():
        expected, entered = oracles.activation_unit(
            [f64(h) for h in histories],
            f64(ads),
            f64_layers(layers),
            difference=difference,
            outer=outer,
            train=train,
        )
        for layout, (weights, changed) in results.items():
            real = masks[layout]
            assert weights.shape == real.shape
            np.testing.assert_allclose(
                weights[real], np.concatenate(expected), rtol=1e-4, atol=1e-5
            )
            np.testing.assert_array_equal(weights[~real], 0)
            for i, rows in enumerate(entered if name == "dice" else []):
                old, new = (
                    stats[f"activation_{i}"]
                    for stats in (variables["batch_stats"], changed["batch_stats"])
                )
                if not train:
                    assert_trees_equal(new, old)
                    continue
                mean, variance = oracles.mean_and_variance(rows)
                close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
                close(new["mean"], average_of(old["mean"], mean))
                close(new["variance"], average_of(old["variance"], variance))


def test_activation_unit_has_one_kernel_of_the_concatenation():
    # The blocks are a way to compute it, not other parameters: 3·(2 + 1) + 3² rows, 4 columns.
    rng = np.random.default_rng(16)
    _, packed, segment_ids, mask = behaviors_of(rng, padding=0.0)
    unit = ActivationUnit((4,), factory("prelu"), difference=True, outer=True)
    shapes = jax.eval_shape(
        functools.partial(unit.init, train=False),
        jax.random.key(0),
        packed,
        normal(rng, SAMPLES, WIDTH),
        segment_ids,
        mask,
    )["params"]
    assert shapes["kernel"].shape == (18, 4)
    assert shapes["bias"].shape == (4,)


# Padding, and behaviours that are padded in place of packed


def unit_with_gradients(params, behaviors, ads, stats, g, segment_ids=None, mask=None):
    """((weights, moving averages), gradients of parameters, behaviours and ads), in training."""
    unit = ActivationUnit((4,), factory("dice"), difference=True)

    def loss(params, behaviors, ads):
        variables = {"params": params, "batch_stats": stats}
        weights, new = unit.apply(
            variables, behaviors, ads, segment_ids, mask, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(g * weights), (weights, new["batch_stats"])

    (_, aux), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, behaviors, ads
    )
    return aux, gradients


@quick_jit
def packed_and_padded(variables, packed, padded, ads, g, segment_ids, padded_mask):
    """`unit_with_gradients` of the same histories in both layouts; `g` is of padded ones."""
    params, stats = variables["params"], variables["batch_stats"]
    real = sum(LENGTHS)
    rows = np.nonzero(np.arange(LONGEST) < np.array(LENGTHS)[:, None])
    g_packed = jnp.zeros(CAPACITY).at[:real].set(g[rows])
    return (
        unit_with_gradients(params, packed, ads, stats, g_packed, segment_ids=segment_ids),
        unit_with_gradients(params, padded, ads, stats, g, mask=padded_mask),
    )


def layouts_of(seed, padding):
    """What `packed_and_padded` takes: the same draws whatever the padding holds."""
    rng = np.random.default_rng(seed)
    variables = unit_variables(unit_layers(rng, True, False, with_dice, (4,)))
    ads, g = normal(rng, SAMPLES, WIDTH), normal(rng, SAMPLES, LONGEST)
    histories, packed, segment_ids, _ = behaviors_of(rng, padding)
    padded, padded_mask = padded_behaviors(histories, padding)
    return variables, packed, padded, ads, g, segment_ids, padded_mask


def test_padded_behaviours_give_what_packed_ones_give():
    inputs = layouts_of(17, padding=3.0)
    packed, padded = packed_and_padded(*inputs)
    mask, real = inputs[-1], sum(LENGTHS)
    (weights, stats), (of_params, of_behaviors, of_ads) = padded
    np.testing.assert_array_equal(weights[~mask], 0)
    np.testing.assert_array_equal(of_behaviors[~mask], 0)
    (packed_weights, packed_stats), (packed_of_params, packed_of_behaviors, packed_of_ads) = packed
    assert_trees_close(
        (weights[mask], stats, of_params, of_behaviors[mask], of_ads),
        (
            packed_weights[:real],
            packed_stats,
            packed_of_params,
            packed_of_behaviors[:real],
            packed_of_ads,
        ),
        2e-6,
    )


def test_padded_behaviours_without_a_mask_are_all_real():
    rng = np.random.default_rng(18)
    layers = unit_layers(rng, False, False, with_dice, (4,))
    histories, ads = normal(rng, SAMPLES, LONGEST, WIDTH), normal(rng, SAMPLES, WIDTH)
    unit = ActivationUnit((4,), factory("dice"))
    weights = quick_jit(unit.apply)(unit_variables(layers), histories, ads)
    expected, _ = oracles.activation_unit(
        f64(histories), f64(ads), f64_layers(layers), difference=False, outer=False, train=False
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)


@examples
@given(seeds, st.sampled_from([1.0, -1e6, 1e30]))
def test_content_of_padding_changes_nothing_in_the_activation_unit(seed, content):
    one, other = (packed_and_padded(*layouts_of(seed, padding)) for padding in (0.0, content))
    assert_trees_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "segment_ids", "message"),
    [
        ((CAPACITY, WIDTH), None, r"behaviors \(16, 3\) need segment_ids \[T\]"),
        ((SAMPLES, LONGEST, WIDTH), np.zeros(35, np.int32), r"\(5, 7, 3\) take no segment_ids"),
    ],
)
def test_segment_ids_belong_to_packed_behaviours(shape, segment_ids, message):
    behaviors, ads = np.zeros(shape, np.float32), np.zeros((SAMPLES, WIDTH), np.float32)
    with pytest.raises(ValueError, match=message):
        ActivationUnit((4,)).apply({}, behaviors, ads, segment_ids)
