"""The activation unit and its pooling, a block of behaviours at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiling import optimized_jit, quick_jit
from layer_cases import (
    CAPACITY,
    EPSILON,
    SAMPLES,
    WIDTH,
    assert_trees_close,
    assert_trees_equal,
    behaviors_of,
    dice_variables,
    f64,
    f64_layers,
    factory,
    normal,
    some_mask,
    unit_layers,
    unit_variables,
    with_dice,
    with_prelu,
)

from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.activations import Dice
from din_jax.nn.blocks import InBlocks
from din_jax.nn.pooling import weighted_pool

CASES = [  # difference, outer, activation, its parameters, widths
    (False, False, "dice", with_dice, (4, 3)),
    (True, True, "dice", with_dice, (4,)),
    (True, False, "prelu", with_prelu, (4, 6)),
]


@functools.cache
def pooled_unit(case, block, axis_name=None):
    """Compiled: a unit's weights, the interests, its moving averages and the gradients of all."""
    difference, outer, name, _, hidden = CASES[case]
    unit = ActivationUnit(
        hidden, factory(name, axis_name), difference=difference, outer=outer, block=block
    )

    def loss(params, packed, ads, stats, segment_ids, mask, g, h, train):
        weights, new = unit.apply(
            {"params": params, "batch_stats": stats},
            packed,
            ads,
            segment_ids,
            mask,
            train=train,
            mutable=["batch_stats"],
        )
        interest = weighted_pool(weights, packed, segment_ids, len(ads), block=block)
        stats = new.get("batch_stats", {})
        return jnp.sum(g * weights) + jnp.sum(h * interest), (weights, interest, stats)

    run = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    return quick_jit(run, static_argnames="train") if axis_name is None else run


def pooled_unit_inputs(case, seed, padding=7.0):
    """What `pooled_unit` takes: the same draws whatever the padding holds."""
    difference, outer, _, activation, hidden = CASES[case]
    rng = np.random.default_rng(seed)
    variables = unit_variables(unit_layers(rng, difference, outer, activation, hidden))
    ads, g, h = (normal(rng, *shape) for shape in [(SAMPLES, WIDTH), (CAPACITY,), (SAMPLES, WIDTH)])
    _, packed, segment_ids, mask = behaviors_of(rng, padding)
    return variables["params"], packed, ads, variables["batch_stats"], segment_ids, mask, g, h


# Of 16 behaviours, 11 of them real: blocks of 3, some of them with padding and one without a real
# behaviour; of one behaviour; and of more than there are.
@pytest.mark.parametrize(
    ("case", "block", "train"),
    [(0, 3, True), (0, 1, True), (0, 100, True), (0, 3, False), (1, 3, True), (2, 3, True)],
)
def test_blocks_give_what_all_behaviours_at_once_give(case, block, train):
    inputs = pooled_unit_inputs(case, 20)
    at_once = pooled_unit(case, 0)(*inputs, train=train)
    in_blocks = pooled_unit(case, block)(*inputs, train=train)
    assert_trees_close(in_blocks, at_once, 2e-6)


def test_blocks_match_the_oracle():
    # In float64, where nothing but the statistics' definition is left.
    case = 1
    difference, outer, _, activation, hidden = CASES[case]
    rng = np.random.default_rng(21)
    layers = unit_layers(rng, difference, outer, activation, hidden)
    ads = normal(rng, SAMPLES, WIDTH)
    histories, packed, segment_ids, mask = behaviors_of(rng, padding=7.0)
    g, h = f64(normal(rng, CAPACITY)), f64(normal(rng, SAMPLES, WIDTH))

    def oracle(ads):
        """The unit's weights, and the loss of them and of what they pool."""
        weights, _ = oracles.activation_unit(
            [f64(x) for x in histories],
            ads,
            f64_layers(layers),
            difference=difference,
            outer=outer,
            train=True,
        )
        interest = [
            oracles.weighted_sum(f64(x), w, WIDTH) for w, x in zip(weights, histories, strict=True)
        ]
        weights = np.concatenate(weights)
        return weights, np.dot(g[mask], weights) + np.vdot(h, interest)

    variables = f64(unit_variables(layers))
    with jax.enable_x64(True):
        (_, (weights, _, _)), (_, _, of_ads) = pooled_unit(case, 3)(
            variables["params"],
            f64(packed),
            f64(ads),
            variables["batch_stats"],
            segment_ids,
            mask,
            g,
            h,
            train=True,
        )
    expected, _ = oracle(f64(ads))
    np.testing.assert_allclose(weights[mask], expected, rtol=1e-9)
    np.testing.assert_array_equal(weights[~mask], 0)
    expected = oracles.derivative(lambda ads: oracle(ads)[1], f64(ads), 1e-6)
    np.testing.assert_allclose(of_ads, expected, rtol=1e-5, atol=1e-7)


def test_initial_parameters_do_not_depend_on_blocks():
    _, packed, ads, _, segment_ids, mask, *_ = pooled_unit_inputs(0, 26)

    @quick_jit
    def init(key):
        return [
            ActivationUnit((4, 3), factory("dice"), block=block).init(
                key, packed, ads, segment_ids, mask, train=True
            )
            for block in (0, 3)
        ]

    assert_trees_equal(*init(jax.random.key(0)))


@pytest.mark.parametrize("case", [1, 2])
def test_content_of_padding_changes_nothing_in_blocks(case):
    one, *others = (
        pooled_unit(case, 3)(*pooled_unit_inputs(case, 22, padding), train=True)
        for padding in (0.0, 1.0, -1e6, 1e30)
    )
    for other in others:
        assert_trees_equal(one, other)


def test_blocks_over_mapped_axis_are_all_behaviours_at_once():
    # All devices have blocks without a real behaviour, and one has no other.
    case = 1
    params, packed, ads, stats, segment_ids, mask, g, h = pooled_unit_inputs(case, 23)
    shares = [
        (packed, ads, segment_ids, mask, g, h),
        (packed + 1, ads, segment_ids, mask & (segment_ids < 2), g[::-1], h[::-1]),
        (packed + 2, ads, segment_ids, mask & (segment_ids < 0), g, h),
    ]
    shares[1:] = [(p, a, np.where(m, s, SAMPLES), m, g, h) for p, a, s, m, g, h in shares[1:]]
    mapped = quick_jit(
        jax.vmap(
            functools.partial(pooled_unit(case, 3, "devices"), train=True),
            in_axes=(None, 0, 0, None, 0, 0, 0, 0),
            axis_name="devices",
        )
    )
    packed, ads, segment_ids, *rest = map(np.stack, zip(*shares, strict=True))
    loss, gradients = mapped(params, packed, ads, stats, segment_ids, *rest)

    # One device has all: its samples are those of the shares, one after the other.
    numbered = segment_ids + SAMPLES * np.arange(3)[:, None]
    order = np.argsort(~rest[0].reshape(-1), kind="stable")  # padding goes last
    flat = [x.reshape(-1, *x.shape[2:]) for x in (packed, ads, numbered, *rest)]
    packed, ads, numbered, mask, g, h = flat
    numbered = np.where(mask, numbered, 3 * SAMPLES)
    (expected, (weights, interest, new)), all_gradients = pooled_unit(case, 0)(
        params,
        packed[order],
        ads,
        stats,
        numbered[order],
        mask[order],
        g[order],
        h,
        train=True,
    )
    total, (of_shares, pooled, stats) = loss
    assert_trees_close(total.sum(), expected, 1e-5)
    assert_trees_close(of_shares.reshape(-1)[order], weights, 2e-6)
    assert_trees_close(pooled.reshape(-1, WIDTH), interest, 2e-6)
    assert_trees_close(stats, jax.tree.map(lambda x: np.stack([x] * 3), new), 2e-6)
    of_params, of_packed, of_ads = gradients
    assert_trees_close(jax.tree.map(lambda x: x.sum(0), of_params), all_gradients[0], 1e-5)
    assert_trees_close(of_packed.reshape(-1, WIDTH)[order], all_gradients[1], 1e-5)
    assert_trees_close(of_ads.reshape(-1, WIDTH), all_gradients[2], 1e-5)


@pytest.mark.parametrize("name", ["prelu", "sigmoid", "relu"])
def test_an_activation_of_blocks_is_that_of_all_rows(name):
    s = normal(np.random.default_rng(28), CAPACITY, WIDTH)
    mask = np.arange(CAPACITY) < 11
    module = factory(name)()

    @quick_jit
    def run(s):
        blocked = InBlocks.of(lambda s: s, 3, mask, s=(s, 0.0))
        variables = {"params": {"alpha": np.float32([-1, 0.5, 2])}}
        out = module.apply(variables, blocked, mask, train=True)
        return out.each(lambda out, _: out), module.apply(variables, s, mask, train=True)

    in_blocks, at_once = run(s)
    np.testing.assert_allclose(in_blocks.reshape(-1, WIDTH)[:CAPACITY], at_once, rtol=1e-6)


# Statistics of blocks

ROWS, BLOCK = 1000, 7
CONSTANTS = np.array([0.1, 3.3, -0.7, 1234.567, 1e-12, 0.0])


@optimized_jit
def dice_in_blocks(variables, s, mask, epsilon):
    blocked = InBlocks.of(lambda s: s, BLOCK, mask, s=(s, 0.0))
    # With momentum 0 a moving average is the batch's statistic itself.
    out, new = Dice(momentum=0.0, epsilon=epsilon).apply(
        variables, blocked, mask, train=True, mutable=["batch_stats"]
    )
    return out.each(lambda out, _: out).reshape(-1, s.shape[1])[: len(s)], new["batch_stats"]


def test_statistics_of_blocks_are_accurate_where_the_mean_is_much_larger():
    # Blocks whose means differ by far more than the values within them, and by far less.
    rng = np.random.default_rng(24)
    offset = np.array([0, 0, 1e4, 1e4, -3e5, -3e5])
    between = np.array([10, 1e-3, 10, 1e-3, 10, 1e-3])
    means = offset + between * (np.arange(ROWS) // BLOCK)[:, None]
    s, mask = np.float32(means + rng.standard_normal(means.shape)), some_mask(rng, ROWS)
    _, stats = dice_in_blocks(dice_variables(rng, 6), s, mask, EPSILON)
    mean, variance = oracles.mean_and_variance(f64(s[mask]))
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(stats["variance"], variance, rtol=1e-5)


def test_equal_rows_have_p_one_half_in_blocks():
    # The mean of means is rounded once more, which ε would magnify.
    variables = dice_variables(np.random.default_rng(25), 6)
    s = np.broadcast_to(CONSTANTS.astype(np.float32), (ROWS, 6))
    out, _ = dice_in_blocks(variables, s, np.ones(ROWS, bool), EPSILON)
    expected = (1 + f64(variables["params"]["alpha"])) / 2 * f64(s)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=0)


def test_the_mean_of_blocks_is_known_to_less_than_a_rounding():
    # One row in 1,000 differs, by float32's least step: the mean lies between two floats.
    variables = dice_variables(np.random.default_rng(27), 6)
    s = np.full((ROWS, 6), 3.3, np.float32)
    s[500] = np.nextafter(s[500], np.float32(4))
    out, _ = dice_in_blocks(variables, s, np.ones(ROWS, bool), np.float32(1e-30))
    expected = oracles.dice_training(f64(s), f64(variables["params"]["alpha"]), 1e-30)
    np.testing.assert_allclose(out, expected, rtol=1e-4)
