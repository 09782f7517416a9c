import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compiling import optimized_jit, quick_jit
from hypothesis import given, strategies as st
from layer_cases import (
    EPSILON,
    assert_trees_close,
    assert_trees_equal,
    dice_variables,
    examples,
    f64,
    normal,
    seeds,
    some_mask,
)

from din_jax.nn.activations import Dice

ROWS, UNITS = 24, 3
MANY_ROWS = 1000


def train_function(axis_name=None):
    """Returns output, moving averages, and the gradients of α and s under `g`."""

    def train(variables, s, mask, g, momentum, epsilon):
        dice = Dice(momentum=momentum, epsilon=epsilon, axis_name=axis_name)

        def loss(params, s):
            out, new = dice.apply(
                {**variables, "params": params}, s, mask, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(g * out), (out, new["batch_stats"])

        (_, (out, stats)), (of_params, of_s) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(variables["params"], s)
        return out, stats, of_params["alpha"], of_s

    return train


_train = optimized_jit(train_function())
_train_mapped = optimized_jit(
    jax.vmap(train_function("devices"), (None, 0, 0, 0, None, None), axis_name="devices")
)
# One shape for all tests with many rows, and one for the others.
CONSTANTS = np.array([0.1, 3.3, -0.7, 1234.567, 1e-12, 0.0])


def train_dice(variables, s, mask, g, momentum=0.9, epsilon=EPSILON, run=_train):
    options = (np.asarray(x, s.dtype) for x in (momentum, epsilon))
    return jax.tree.map(np.asarray, run(variables, s, mask, g, *options))


@quick_jit
def evaluate_dice(variables, s, mask):
    return Dice(epsilon=EPSILON).apply(variables, s, mask, train=False, mutable=["batch_stats"])


# Values


@examples
@given(seeds, st.sampled_from([0.1, 1.0, 30.0]), st.sampled_from([0.0, -2.0, 50.0]))
def test_dice_in_training_matches_the_oracle(seed, scale, offset):
    rng = np.random.default_rng(seed)
    variables, mask = dice_variables(rng, UNITS), some_mask(rng, ROWS, least=2)
    s = normal(rng, ROWS, UNITS, scale=scale, offset=offset)
    s[~mask] = normal(rng, (~mask).sum(), UNITS, scale=1e3)
    out, *_ = train_dice(variables, s, mask, np.zeros_like(s))
    alpha = f64(variables["params"]["alpha"])
    expected = oracles.dice_training(f64(s[mask]), alpha, EPSILON)
    np.testing.assert_allclose(out[mask], expected, rtol=1e-5, atol=1e-5 * np.abs(s[mask]).max())


@examples
@given(seeds)
def test_dice_in_evaluation_matches_the_oracle_and_changes_no_average(seed):
    rng = np.random.default_rng(seed)
    variables, mask = dice_variables(rng, UNITS), some_mask(rng, ROWS)
    s = normal(rng, ROWS, UNITS, scale=3)
    out, changed = evaluate_dice(variables, s, mask)
    expected = oracles.dice(
        f64(s),
        f64(variables["params"]["alpha"]),
        **f64(variables["batch_stats"]),
        epsilon=EPSILON,
    )
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert_trees_equal(changed["batch_stats"], variables["batch_stats"])


def test_dice_gradients_match_central_differences_of_the_oracle():
    rng = np.random.default_rng(0)
    variables, mask = dice_variables(rng, UNITS), some_mask(rng, ROWS, least=2)
    s, g = normal(rng, ROWS, UNITS, scale=2, offset=1), normal(rng, ROWS, UNITS)
    g[~mask] = 0  # nothing reads the output of padding
    _, _, of_alpha, of_s = train_dice(variables, s, mask, g)

    def total(rows, alpha):
        return np.sum(g[mask] * np.array(oracles.dice_training(rows, alpha, EPSILON)))

    rows, alpha = f64(s[mask]), f64(variables["params"]["alpha"])
    expected = oracles.derivative(lambda x: total(x, alpha), rows, 1e-5)
    np.testing.assert_allclose(of_s[mask], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_s[~mask], 0)
    expected = oracles.derivative(lambda a: total(rows, a), alpha, 1e-5)
    np.testing.assert_allclose(of_alpha, expected, rtol=1e-4, atol=1e-5)


def test_epsilon_stands_outside_the_root():
    # With a standard deviation near ε the two readings of Eq. 9 differ by far more than rounding.
    rng = np.random.default_rng(1)
    variables, mask = dice_variables(rng, UNITS), np.arange(ROWS) < 3
    s = np.zeros((ROWS, UNITS), np.float32)
    s[:3] = np.array([1e-4, 3e-4, 5e-4])[:, None]
    out, *_ = train_dice(variables, s, mask, np.zeros_like(s), epsilon=1e-4)
    expected = oracles.dice_training(f64(s[:3]), f64(variables["params"]["alpha"]), 1e-4)
    np.testing.assert_allclose(out[:3], expected, rtol=1e-5, atol=1e-10)


# Moving averages


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_moving_averages_follow_the_real_rows(momentum):
    rng = np.random.default_rng(2)
    variables, mask = dice_variables(rng, UNITS), some_mask(rng, ROWS)
    s = normal(rng, ROWS, UNITS, scale=2, offset=3)
    s[~mask] = 1e6
    _, stats, *_ = train_dice(variables, s, mask, np.zeros_like(s), momentum=momentum)
    old = f64(variables["batch_stats"])
    mean, variance = oracles.mean_and_variance(f64(s[mask]))
    for name, batch in ("mean", mean), ("variance", variance):
        expected = momentum * old[name] + (1 - momentum) * batch
        np.testing.assert_allclose(stats[name], expected, rtol=1e-5)


# Weights


def weights_of(rng, mask, scale):
    """Fractional weights of the real rows, 0 of padding."""
    drawn = scale * rng.choice([0.05, 0.3, 1, 4], mask.shape)
    return np.where(mask, drawn, 0).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_weighted_dice_matches_the_oracle(scale):
    rng = np.random.default_rng(3)
    variables, mask = dice_variables(rng, UNITS), some_mask(rng, ROWS, least=2)
    s, g = normal(rng, ROWS, UNITS, scale=2, offset=1), normal(rng, ROWS, UNITS)
    s[~mask], g[~mask] = 1e6, 0
    weights = weights_of(rng, mask, scale)
    out, stats, of_alpha, of_s = train_dice(variables, s, weights, g, momentum=0.5)
    alpha, rows, w = f64(variables["params"]["alpha"]), f64(s[mask]), f64(weights[mask])
    expected = oracles.dice_training(rows, alpha, EPSILON, w)
    np.testing.assert_allclose(out[mask], expected, rtol=1e-5, atol=1e-5)
    for name, batch in zip(("mean", "variance"), oracles.mean_and_variance(rows, w), strict=True):
        expected = 0.5 * f64(variables["batch_stats"][name]) + 0.5 * batch
        np.testing.assert_allclose(stats[name], expected, rtol=1e-5)

    def total(rows, alpha):
        return np.sum(g[mask] * np.array(oracles.dice_training(rows, alpha, EPSILON, w)))

    expected = oracles.derivative(lambda x: total(x, alpha), rows, 1e-5)
    np.testing.assert_allclose(of_s[mask], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_s[~mask], 0)
    expected = oracles.derivative(lambda a: total(rows, a), alpha, 1e-5)
    np.testing.assert_allclose(of_alpha, expected, rtol=1e-4, atol=1e-5)


def test_weighted_dice_over_mapped_axis_is_weighted_dice_over_all_rows():
    rng = np.random.default_rng(4)
    variables = dice_variables(rng, UNITS)
    s, g = normal(rng, 3, 8, UNITS, scale=2, offset=5), normal(rng, 3, 8, UNITS)
    weights = weights_of(rng, np.arange(8) < np.array([8, 0, 5])[:, None], 0.01)
    g *= (weights > 0)[:, :, None]
    out, stats, of_alpha, of_s = train_dice(variables, s, weights, g, run=_train_mapped)
    s, weights, g = (x.reshape(ROWS, *x.shape[2:]) for x in (s, weights, g))
    expected = train_dice(variables, s, weights, g)
    found = out.reshape(s.shape), {k: v[2] for k, v in stats.items()}, of_alpha.sum(0)
    found = (*found, of_s.reshape(s.shape))
    real = weights > 0
    assert_trees_close((found[0][real], *found[1:]), (expected[0][real], *expected[1:]), 1e-5)


def test_initial_values_come_from_the_attributes():
    dice = Dice(mean_init=0.5, variance_init=2.0, alpha_init=0.25, axis_name="devices")
    # There is no mapped axis here: initialising must not ask for one.
    init = quick_jit(functools.partial(dice.init, train=True))
    variables = init(jax.random.key(0), np.ones((4, 2), np.float32), np.ones(4, bool))
    np.testing.assert_array_equal(variables["params"]["alpha"], [0.25, 0.25])
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [0.5, 0.5])
    np.testing.assert_array_equal(variables["batch_stats"]["variance"], [2, 2])


def test_variance_is_accurate_where_the_mean_is_much_larger():
    rng = np.random.default_rng(5)
    offsets = np.array([1e4, -1e4, 3e5, -3e5, 0, 1])
    s = (offsets + rng.standard_normal((MANY_ROWS, len(offsets)))).astype(np.float32)
    mask = some_mask(rng, MANY_ROWS)
    _, exact = oracles.mean_and_variance(f64(s[mask]))
    # With momentum 0 the moving average is the batch's statistic itself.
    variables = dice_variables(rng, len(offsets))
    _, stats, *_ = train_dice(variables, s, mask, np.zeros_like(s), momentum=0.0)
    np.testing.assert_allclose(stats["variance"], exact, rtol=1e-5)
    # The textbook's E[s²] − E[s]² has no right digit left in float32.
    real = s[mask][:, :4]
    naive = np.mean(real * real, axis=0) - np.mean(real, axis=0) ** 2
    assert np.all(np.abs(naive - exact[:4]) > 0.1 * exact[:4])


# Where there is no variance


def equal_rows(rng, rows):
    """(variables, s, mask, g) of so many real rows that are equal: a constant for each unit."""
    mask = np.arange(MANY_ROWS) < rows
    s = np.where(mask[:, None], CONSTANTS, 1e3).astype(np.float32)
    g = normal(rng, MANY_ROWS, len(CONSTANTS))
    g[~mask] = 0
    return dice_variables(rng, len(CONSTANTS)), s, mask, g


@pytest.mark.parametrize("rows", [1, 7, MANY_ROWS])
def test_equal_rows_have_p_one_half(rows):
    # Most of these constants have no exact float32, so their computed mean is off by a rounding,
    # which ε = 10⁻⁸ would magnify to any p were it not removed.
    variables, s, mask, g = equal_rows(np.random.default_rng(6), rows)
    out, stats, *_ = train_dice(variables, s, mask, g, momentum=0.0)
    expected = (1 + f64(variables["params"]["alpha"])) / 2 * f64(s[mask])
    np.testing.assert_allclose(out[mask], expected, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(stats["variance"], 0)
    np.testing.assert_allclose(stats["mean"], s[0], rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, MANY_ROWS])
def test_gradient_at_equal_rows_is_finite_and_bounded(rows):
    # With s_i = c for all i, z_i = (s_i − E[s]) / ε and p = ½, so that p's slope in z is ¼ and
    #   ∂L/∂s_j = g_j·(1 + α)/2 + c·(1 − α)·¼·10⁸·(g_j − mean g),
    # and |g_j − mean g| ≤ 2·max|g|.
    variables, s, mask, g = equal_rows(np.random.default_rng(7), rows)
    _, _, of_alpha, of_s = train_dice(variables, s, mask, g)
    s, g, of_s = s[mask], g[mask], of_s[mask]
    alpha = f64(variables["params"]["alpha"])
    slope = f64(s[0]) * (1 - alpha) / 4 / EPSILON
    bound = np.abs(g).max(0) * (np.abs(1 + alpha) / 2 + 2 * np.abs(slope))
    assert np.isfinite(of_s).all()
    assert (np.abs(of_s) <= bound * (1 + 1e-5)).all()
    expected = g * (1 + alpha) / 2 + slope * (g - f64(g).mean(0))
    assert (np.abs(of_s - expected) <= 1e-4 * np.abs(expected) + 1e-5 * bound).all()
    np.testing.assert_allclose(of_alpha, np.sum(f64(g) * s, 0) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, MANY_ROWS])
def test_equal_gradients_at_equal_rows_leave_the_direct_term(rows):
    # g_j − mean g is 0 here, beside the factor 10⁸: what's left of the two terms that cancel is a
    # few roundings of either. In float32 that can exceed the direct term; float64 shows it alone.
    variables, s, mask, g = equal_rows(np.random.default_rng(8), rows)
    g = np.where(mask[:, None], g[0], 0)
    alpha = f64(variables["params"]["alpha"])
    direct = g * (1 + alpha) / 2
    cancelling = np.abs(g * CONSTANTS * (1 - alpha)) / 4 / EPSILON
    for precision in np.float32, np.float64:
        with jax.enable_x64(precision is np.float64):
            cast = functools.partial(jax.tree.map, functools.partial(np.asarray, dtype=precision))
            _, _, _, of_s = train_dice(cast(variables), cast(s), mask, cast(g))
        assert of_s.dtype == precision
        bound = 16 * np.finfo(precision).eps * cancelling + 1e-6
        assert (np.abs(of_s - direct) <= bound).all()


def test_batch_of_one_real_row_is_finite():
    rng = np.random.default_rng(9)
    variables, mask = dice_variables(rng, UNITS), np.zeros(ROWS, bool)
    mask[5] = True
    s, g = normal(rng, ROWS, UNITS), normal(rng, ROWS, UNITS)
    out, stats, of_alpha, of_s = train_dice(variables, s, mask, g, momentum=0.0)
    np.testing.assert_allclose(out[5], (1 + variables["params"]["alpha"]) / 2 * s[5], rtol=1e-6)
    np.testing.assert_array_equal(stats["mean"], s[5])
    np.testing.assert_array_equal(stats["variance"], 0)
    assert np.isfinite(of_alpha).all()
    assert np.isfinite(of_s).all()


@pytest.mark.parametrize("devices", [0, 3])
def test_batch_without_a_real_row_is_finite_and_leaves_the_moving_averages(devices):
    rng = np.random.default_rng(10)
    shape = (devices, 8, UNITS) if devices else (ROWS, UNITS)
    variables, s, g = (
        dice_variables(rng, UNITS),
        normal(rng, *shape, scale=100),
        normal(rng, *shape),
    )
    out, stats, *gradients = train_dice(
        variables,
        s,
        np.zeros(shape[:-1], bool),
        g,
        momentum=0.0,
        run=_train_mapped if devices else _train,
    )
    assert all(np.isfinite(x).all() for x in (out, *gradients))
    for name, old in variables["batch_stats"].items():
        np.testing.assert_array_equal(stats[name], np.broadcast_to(old, stats[name].shape))


# Padding and devices


@examples
@given(seeds, st.sampled_from([1.0, 1e6, 1e30, -1e30]), st.booleans())
def test_content_of_padding_changes_nothing_in_dice(seed, content, equal):
    rng = np.random.default_rng(seed)
    variables, mask = dice_variables(rng, UNITS), some_mask(rng, ROWS)
    s, g = normal(rng, ROWS, UNITS), normal(rng, ROWS, UNITS)
    if equal:  # then the padding's distance from the mean is divided by ε alone
        s[:] = 0.3
    g[~mask] = 0
    filled = s.copy()
    filled[~mask] = content * rng.random(((~mask).sum(), UNITS))
    one, other = train_dice(variables, s, mask, g), train_dice(variables, filled, mask, g)
    np.testing.assert_array_equal(one[0][mask], other[0][mask])
    assert_trees_equal(one[1:], other[1:])
    np.testing.assert_array_equal(other[3][~mask], 0)


@examples
@given(seeds, st.sampled_from([(8, 0, 5), (3, 0, 1), (0, 1, 0)]))
def test_dice_over_mapped_axis_is_dice_over_all_rows(seed, counts):
    rng = np.random.default_rng(seed)
    variables = dice_variables(rng, UNITS)
    s, g = normal(rng, 3, 8, UNITS, scale=2, offset=5), normal(rng, 3, 8, UNITS)
    mask = np.arange(8) < np.array(counts)[:, None]  # unequal, and one shard has no row
    g *= mask[:, :, None]
    out, stats, of_alpha, of_s = train_dice(variables, s, mask, g, run=_train_mapped)

    s, mask, g = (x.reshape(ROWS, *x.shape[2:]) for x in (s, mask, g))
    all_out, all_stats, all_of_alpha, all_of_s = train_dice(variables, s, mask, g)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(out.reshape(ROWS, UNITS)[mask], all_out[mask])
    close(of_s.reshape(ROWS, UNITS), all_of_s)
    close(of_alpha.sum(0), all_of_alpha)
    for name, expected in all_stats.items():
        close(stats[name], np.stack([expected] * 3))


# Any leading axes


def run_everything(variables, s, g, mask=None):
    """Values in training and evaluation, moving averages, and gradients, without options."""

    def loss(params, s):
        out, new = Dice().apply(
            {**variables, "params": params}, s, mask, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(g * out), {"train": out, "stats": new["batch_stats"]}

    of_params, result = jax.grad(loss, has_aux=True)(variables["params"], s)
    of_s, _ = jax.grad(loss, argnums=1, has_aux=True)(variables["params"], s)
    return {**result, "eval": Dice().apply(variables, s, mask), "of": (of_params, of_s)}


def test_dice_takes_any_leading_axes_and_no_mask():
    rng = np.random.default_rng(13)
    variables, s, g = dice_variables(rng, UNITS), *(normal(rng, ROWS, UNITS) for _ in range(2))
    shapes = [(4, 6, UNITS), (2, 3, 4, UNITS), (ROWS, 1, UNITS)]

    @quick_jit
    def run(variables, s, g):
        rows = run_everything(variables, s, g, jnp.ones(ROWS, bool))
        return rows, [run_everything(variables, s.reshape(x), g.reshape(x)) for x in shapes]

    rows, others = run(variables, s, g)
    expected = oracles.dice_training(f64(s), f64(variables["params"]["alpha"]), EPSILON)
    np.testing.assert_allclose(rows["train"], expected, rtol=1e-5, atol=1e-5)
    for shape, other in zip(shapes, others, strict=True):
        assert other["train"].shape == other["eval"].shape == other["of"][1].shape == shape
        as_rows = jax.tree.map(lambda a, b: np.reshape(a, b.shape), other, rows)
        assert_trees_close(as_rows, rows, 1e-6)


def test_dice_of_a_single_vector_is_a_batch_of_one():
    variables = dice_variables(np.random.default_rng(14), UNITS)
    s = np.float32([1, -2, 3])
    out, new = quick_jit(
        lambda s: Dice(momentum=0.0).apply(variables, s, train=True, mutable=["batch_stats"])
    )(s)
    np.testing.assert_allclose(out, (1 + variables["params"]["alpha"]) / 2 * s, rtol=1e-6)
    np.testing.assert_array_equal(new["batch_stats"]["mean"], s)


def test_dice_of_padded_rows_is_dice_of_packed_rows():
    rng = np.random.default_rng(15)
    variables = dice_variables(rng, UNITS)
    mask = np.arange(6) < np.array([4, 0, 6, 1])[:, None]
    s, g = normal(rng, 4, 6, UNITS, offset=2), normal(rng, 4, 6, UNITS)
    s[~mask], g[~mask] = 1e6, 0
    run = quick_jit(run_everything)
    padded, packed = run(variables, s, g, mask), run(variables, s[mask], g[mask])
    np.testing.assert_array_equal(padded["of"][1][~mask], 0)
    padded["of"] = padded["of"][0], padded["of"][1][mask]
    for key in "train", "eval":
        padded[key] = padded[key][mask]
    assert_trees_close(padded, packed, 1e-6)
    expected = oracles.dice_training(f64(s[mask]), f64(variables["params"]["alpha"]), EPSILON)
    np.testing.assert_allclose(padded["train"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "mask"), [((4, 6), (4,)), ((4, 6), (24,)), ((4, 6), (4, 6, UNITS)), ((4,), (5,))]
)
def test_a_mask_of_another_shape_is_refused(rows, mask):
    variables = dice_variables(np.random.default_rng(16), UNITS)
    with pytest.raises(ValueError, match=r"the mask is \(.*\), expected \(4,"):
        Dice().apply(variables, np.zeros((*rows, UNITS), np.float32), np.ones(mask, bool))
