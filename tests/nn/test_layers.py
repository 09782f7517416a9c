import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings, strategies as st

from din_jax.config import default_config
from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.activations import Dice, PReLU, activation_factory
from din_jax.nn.blocks import InBlocks
from din_jax.nn.mlp import MLP
from din_jax.nn.pooling import segment_mean, segment_pool, segment_softmax, weighted_pool

# Shapes stay the same from example to example, so that each test compiles once.
examples = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
ROWS, UNITS = 24, 3
EPSILON = 1e-8


def normal(rng, *shape, scale=1.0, offset=0.0):
    return (offset + scale * rng.standard_normal(shape)).astype(np.float32)


def dice_variables(rng, units=UNITS):
    return {
        "params": {"alpha": normal(rng, units)},
        "batch_stats": {
            "mean": normal(rng, units),
            "variance": rng.uniform(0.3, 3, units).astype(np.float32),
        },
    }


def some_mask(rng, rows=ROWS, least=1):
    """A mask with real and padding rows mixed: Dice may not rely on padding being last."""
    mask = rng.random(rows) < rng.uniform(0.2, 1)
    mask[rng.permutation(rows)[:least]] = True
    return mask


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@functools.cache
def dice_functions(momentum=0.9, axis_name=None):
    """Compiled (train, evaluate): train returns output, averages, and gradients under `g`."""
    dice = Dice(momentum=momentum, epsilon=EPSILON, axis_name=axis_name)

    def loss(params, s, stats, mask, g):
        out, new = dice.apply(
            {"params": params, "batch_stats": stats}, s, mask, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(g * out), (out, new["batch_stats"])

    def train(variables, s, mask, g):
        (_, (out, stats)), (of_params, of_s) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(variables["params"], s, variables["batch_stats"], mask, g)
        return out, stats, of_params["alpha"], of_s

    def evaluate(variables, s, mask):
        return dice.apply(variables, s, mask, train=False)

    return train, jax.jit(train), jax.jit(evaluate)


def train_dice(variables, s, mask, g, **options):
    return jax.tree.map(np.asarray, dice_functions(**options)[1](variables, s, mask, g))


def evaluate_dice(variables, s, mask):
    return np.asarray(dice_functions()[2](variables, s, mask))


# Dice: values


@examples
@given(seeds, st.sampled_from([0.1, 1.0, 30.0]), st.sampled_from([0.0, -2.0, 50.0]))
def test_dice_in_training_matches_the_oracle(seed, scale, offset):
    rng = np.random.default_rng(seed)
    variables, mask = dice_variables(rng), some_mask(rng, least=2)
    s = normal(rng, ROWS, UNITS, scale=scale, offset=offset)
    s[~mask] = normal(rng, (~mask).sum(), UNITS, scale=1e3)
    out, *_ = train_dice(variables, s, mask, np.zeros_like(s))
    alpha = f64(variables["params"]["alpha"])
    expected = oracles.dice_training(f64(s[mask]), alpha, EPSILON)
    np.testing.assert_allclose(out[mask], expected, rtol=1e-5, atol=1e-5 * np.abs(s[mask]).max())


@examples
@given(seeds)
def test_dice_in_evaluation_matches_the_oracle(seed):
    rng = np.random.default_rng(seed)
    variables, mask = dice_variables(rng), some_mask(rng)
    s = normal(rng, ROWS, UNITS, scale=3)
    expected = oracles.dice(
        f64(s),
        f64(variables["params"]["alpha"]),
        **f64(variables["batch_stats"]),
        epsilon=EPSILON,
    )
    np.testing.assert_allclose(evaluate_dice(variables, s, mask), expected, rtol=1e-5, atol=1e-5)


def test_dice_gradients_match_central_differences_of_the_oracle():
    rng = np.random.default_rng(0)
    variables, mask = dice_variables(rng), some_mask(rng, least=2)
    s, g = normal(rng, ROWS, UNITS, scale=2, offset=1), normal(rng, ROWS, UNITS)
    g[~mask] = 0  # what padding gives is read by nobody
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
    s = np.float32([[1e-4], [3e-4], [5e-4]])
    dice = Dice(epsilon=1e-4)
    variables = {
        "params": {"alpha": np.zeros(1, np.float32)},
        "batch_stats": {"mean": np.zeros(1, np.float32), "variance": np.ones(1, np.float32)},
    }
    out, _ = dice.apply(variables, s, np.ones(3, bool), train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(
        out, oracles.dice_training(f64(s), np.zeros(1), 1e-4), rtol=1e-5, atol=1e-10
    )


def test_dice_in_evaluation_does_not_depend_on_the_batch():
    rng = np.random.default_rng(1)
    variables, s = dice_variables(rng), normal(rng, 256, UNITS, scale=3)
    together = evaluate_dice(variables, s, np.ones(256, bool))
    for i in range(0, 256, 37):
        alone = evaluate_dice(variables, s[i : i + 1], np.ones(1, bool))
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-6, atol=1e-7)


# Dice: moving averages


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_moving_averages_follow_the_real_rows(momentum):
    rng = np.random.default_rng(2)
    variables, mask = dice_variables(rng), some_mask(rng)
    s = normal(rng, ROWS, UNITS, scale=2, offset=3)
    s[~mask] = 1e6
    _, stats, *_ = train_dice(variables, s, mask, np.zeros_like(s), momentum=momentum)
    old = f64(variables["batch_stats"])
    mean, variance = oracles.mean_and_variance(f64(s[mask]))
    for name, batch in ("mean", mean), ("variance", variance):
        expected = momentum * old[name] + (1 - momentum) * batch
        np.testing.assert_allclose(stats[name], expected, rtol=1e-5)


def test_moving_averages_stay_without_a_real_row():
    rng = np.random.default_rng(3)
    variables, s = dice_variables(rng), normal(rng, ROWS, UNITS)
    _, stats, *_ = train_dice(variables, s, np.zeros(ROWS, bool), np.zeros_like(s))
    for name, old in variables["batch_stats"].items():
        np.testing.assert_array_equal(stats[name], old)


def test_evaluation_leaves_the_moving_averages():
    rng = np.random.default_rng(4)
    variables, s = dice_variables(rng), normal(rng, ROWS, UNITS)
    _, changed = Dice().apply(
        variables, s, np.ones(ROWS, bool), train=False, mutable=["batch_stats"]
    )
    for name, old in variables["batch_stats"].items():
        np.testing.assert_array_equal(changed["batch_stats"][name], old)


def test_initial_values_come_from_the_attributes():
    dice = Dice(mean_init=0.5, variance_init=2.0, alpha_init=0.25, axis_name="devices")
    # There is no mapped axis here: initialising must not ask for one.
    variables = dice.init(
        jax.random.key(0), np.ones((4, 2), np.float32), np.ones(4, bool), train=True
    )
    np.testing.assert_array_equal(variables["params"]["alpha"], [0.25, 0.25])
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [0.5, 0.5])
    np.testing.assert_array_equal(variables["batch_stats"]["variance"], [2, 2])


@pytest.mark.parametrize("mean", [1e4, -1e4, 3e5])
def test_variance_is_accurate_where_the_mean_is_much_larger(mean):
    rng = np.random.default_rng(5)
    s = normal(rng, 4096, UNITS, offset=mean)
    mask = some_mask(rng, 4096)
    _, exact = oracles.mean_and_variance(f64(s[mask]))
    # With momentum 0 the moving average is the batch's statistic itself.
    _, stats, *_ = train_dice(dice_variables(rng), s, mask, np.zeros_like(s), momentum=0.0)
    np.testing.assert_allclose(stats["variance"], exact, rtol=1e-5)
    # The textbook's E[s²] − E[s]² has no right digit left in float32.
    real = jnp.asarray(s[mask])
    naive = jnp.mean(real * real, axis=0) - jnp.mean(real, axis=0) ** 2
    assert np.all(np.abs(naive - exact) > 0.1 * exact)


# Dice: where there is no variance

CONSTANTS = [0.1, 3.3, -0.7, 1234.567, 1e-12, 0.0]


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("constant", CONSTANTS)
def test_equal_rows_have_p_one_half(constant, rows):
    # Most of these constants have no exact float32, so their computed mean is off by a rounding,
    # which ε = 10⁻⁸ would magnify to any p were it not removed.
    rng = np.random.default_rng(6)
    variables = dice_variables(rng)
    s = np.full((rows, UNITS), constant, np.float32)
    out, stats, *_ = train_dice(variables, s, np.ones(rows, bool), np.zeros_like(s), momentum=0.0)
    expected = (1 + f64(variables["params"]["alpha"])) / 2 * s.astype(np.float64)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(stats["variance"], 0)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("constant", CONSTANTS)
def test_gradient_at_equal_rows_is_finite_and_bounded(constant, rows):
    # With s_i = c for all i, z_i = (s_i − E[s]) / ε and p = ½, so that p's slope in z is ¼ and
    #   ∂L/∂s_j = g_j·(1 + α)/2 + c·(1 − α)·¼·10⁸·(g_j − mean g),
    # and |g_j − mean g| ≤ 2·max|g|.
    rng = np.random.default_rng(7)
    variables = dice_variables(rng)
    s, g = np.full((rows, UNITS), constant, np.float32), normal(rng, rows, UNITS)
    _, _, of_alpha, of_s = train_dice(variables, s, np.ones(rows, bool), g)
    alpha = f64(variables["params"]["alpha"])
    slope = float(s[0, 0]) * (1 - alpha) / 4 / EPSILON
    bound = np.abs(g).max(0) * (np.abs(1 + alpha) / 2 + 2 * np.abs(slope))
    assert np.isfinite(of_s).all()
    assert (np.abs(of_s) <= bound * (1 + 1e-5)).all()
    expected = g * (1 + alpha) / 2 + slope * (g - f64(g).mean(0))
    np.testing.assert_allclose(of_s, expected, rtol=1e-4, atol=1e-5 * bound.max())
    np.testing.assert_allclose(of_alpha, np.sum(g * s, 0) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("constant", CONSTANTS)
def test_equal_gradients_at_equal_rows_leave_the_direct_term(constant, rows):
    # g_j − mean g is 0 here, beside the factor 10⁸: what's left of the two terms that cancel is a
    # few roundings of either. In float32 that can exceed the direct term; float64 shows it alone.
    rng = np.random.default_rng(8)
    variables = dice_variables(rng)
    s = np.full((rows, UNITS), constant, np.float32)
    g = np.broadcast_to(normal(rng, 1, UNITS), s.shape)
    alpha = f64(variables["params"]["alpha"])
    direct = g * (1 + alpha) / 2
    cancelling = np.abs(g * constant * (1 - alpha)) / 4 / EPSILON
    for precision in np.float32, np.float64:
        with jax.enable_x64(precision is np.float64):
            cast = functools.partial(jax.tree.map, functools.partial(np.asarray, dtype=precision))
            _, _, _, of_s = train_dice(cast(variables), cast(s), np.ones(rows, bool), cast(g))
        assert of_s.dtype == precision
        bound = 16 * np.finfo(precision).eps * cancelling + 1e-6
        assert (np.abs(of_s - direct) <= bound).all()


def test_batch_of_one_real_row_is_finite():
    rng = np.random.default_rng(9)
    variables, mask = dice_variables(rng), np.zeros(ROWS, bool)
    mask[5] = True
    s, g = normal(rng, ROWS, UNITS), normal(rng, ROWS, UNITS)
    out, stats, of_alpha, of_s = train_dice(variables, s, mask, g, momentum=0.0)
    np.testing.assert_allclose(out[5], (1 + variables["params"]["alpha"]) / 2 * s[5], rtol=1e-6)
    np.testing.assert_array_equal(stats["mean"], s[5])
    np.testing.assert_array_equal(stats["variance"], 0)
    assert np.isfinite(of_alpha).all()
    assert np.isfinite(of_s).all()


def test_batch_without_a_real_row_is_finite():
    rng = np.random.default_rng(10)
    s, g = normal(rng, ROWS, UNITS, scale=100), normal(rng, ROWS, UNITS)
    for found in jax.tree.leaves(
        train_dice(dice_variables(rng), s, np.zeros(ROWS, bool), g, momentum=0.0)
    ):
        assert np.isfinite(found).all()


# Dice: padding and devices


@examples
@given(seeds, st.sampled_from([1.0, 1e6, 1e30, -1e30]))
def test_content_of_padding_changes_nothing_in_dice(seed, content):
    rng = np.random.default_rng(seed)
    variables, mask = dice_variables(rng), some_mask(rng)
    s, g = normal(rng, ROWS, UNITS), normal(rng, ROWS, UNITS)
    g[~mask] = 0
    filled = s.copy()
    filled[~mask] = content * rng.random(((~mask).sum(), UNITS))
    one, other = train_dice(variables, s, mask, g), train_dice(variables, filled, mask, g)
    np.testing.assert_array_equal(one[0][mask], other[0][mask])
    for a, b in zip(jax.tree.leaves(one[1:]), jax.tree.leaves(other[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(other[3][~mask], 0)


def test_content_of_padding_changes_nothing_at_equal_rows():
    # Here the padding's distance from the mean is divided by ε alone.
    rng = np.random.default_rng(11)
    variables, mask = dice_variables(rng), some_mask(rng)
    s, g = np.full((ROWS, UNITS), 0.3, np.float32), normal(rng, ROWS, UNITS)
    g[~mask] = 0
    filled = np.where(mask[:, None], s, np.float32(1e30))
    one, other = train_dice(variables, s, mask, g), train_dice(variables, filled, mask, g)
    np.testing.assert_array_equal(one[0][mask], other[0][mask])
    for a, b in zip(jax.tree.leaves(one[1:]), jax.tree.leaves(other[1:]), strict=True):
        np.testing.assert_array_equal(a, b)


@examples
@given(seeds, st.sampled_from([(8, 0, 5), (3, 0, 1), (0, 1, 0)]))
def test_dice_over_mapped_axis_is_dice_over_all_rows(seed, counts):
    rng = np.random.default_rng(seed)
    variables = dice_variables(rng)
    s, g = normal(rng, 3, 8, UNITS, scale=2, offset=5), normal(rng, 3, 8, UNITS)
    mask = np.arange(8) < np.array(counts)[:, None]  # unequal, and one shard has no row
    g *= mask[:, :, None]
    train, *_ = dice_functions(axis_name="devices")
    mapped = _mapped(train)
    out, stats, of_alpha, of_s = jax.tree.map(np.asarray, mapped(variables, s, mask, g))

    flat = [x.reshape(24, *x.shape[2:]) for x in (s, mask, g)]
    all_out, all_stats, all_of_alpha, all_of_s = train_dice(variables, *flat)
    at_once = flat[1]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(out.reshape(24, UNITS)[at_once], all_out[at_once])
    close(of_s.reshape(24, UNITS), all_of_s)
    close(of_alpha.sum(0), all_of_alpha)
    for name, expected in all_stats.items():
        for shard in range(3):
            close(stats[name][shard], expected)


@functools.cache
def _mapped(train):
    return jax.jit(jax.vmap(train, in_axes=(None, 0, 0, 0), axis_name="devices"))


def test_mapped_axis_without_a_real_row_leaves_the_moving_averages():
    rng = np.random.default_rng(12)
    variables, s = dice_variables(rng), normal(rng, 3, 8, UNITS)
    train, *_ = dice_functions(axis_name="devices")
    out, stats, *grads = _mapped(train)(variables, s, np.zeros((3, 8), bool), np.zeros_like(s))
    for name, old in variables["batch_stats"].items():
        np.testing.assert_array_equal(stats[name], np.broadcast_to(old, (3, UNITS)))
    assert all(np.isfinite(x).all() for x in (out, *grads))


# The other activations, and the MLP


@functools.cache
def prelu_with_gradient():
    def run(alpha, s):
        mask = np.ones(len(s), bool)
        out, pull = jax.vjp(
            lambda a: PReLU().apply({"params": {"alpha": a}}, s, mask, train=True), alpha
        )
        return out, pull(jnp.ones_like(out))[0]

    return jax.jit(run)


@examples
@given(seeds)
def test_prelu_matches_the_oracle(seed):
    rng = np.random.default_rng(seed)
    alpha, s = normal(rng, UNITS), normal(rng, ROWS, UNITS)
    s[0] = 0

    out, of_alpha = prelu_with_gradient()(alpha, s)
    np.testing.assert_allclose(out, oracles.prelu(s, alpha), rtol=1e-6)
    # The slope's gradient is s where s < 0.
    np.testing.assert_allclose(of_alpha, np.minimum(s, 0).sum(0), rtol=1e-4, atol=1e-5)


def test_prelu_starts_at_its_initial_slope():
    s = np.float32([[-2, 4]])
    prelu = PReLU(alpha_init=0.5)
    variables = prelu.init(jax.random.key(0), s, np.ones(1, bool), train=True)
    out = prelu.apply(variables, s, np.ones(1, bool), train=False)
    np.testing.assert_array_equal(out, [[-1, 4]])


@pytest.mark.parametrize("name", ["sigmoid", "relu"])
def test_plain_activations_match_the_oracle(name):
    rng = np.random.default_rng(13)
    s = normal(rng, ROWS, UNITS, scale=3)
    module = activation_factory(name, default_config().model)()
    out = module.apply({}, s, np.ones(ROWS, bool), train=True)
    np.testing.assert_allclose(
        out, oracles.activate(f64(s), {"kind": name}, train=True), rtol=1e-6, atol=1e-7
    )


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


def dense(rng, inputs, outputs, activation):
    return {
        "kernel": normal(rng, inputs, outputs, scale=0.5),
        "bias": normal(rng, outputs, scale=0.5),
        "activation": activation,
    }


def with_dice(rng, units):
    variables = dice_variables(rng, units)
    return {"kind": "dice", **variables["params"], **variables["batch_stats"], "epsilon": EPSILON}


def with_prelu(rng, units):
    return {"kind": "prelu", "alpha": normal(rng, units)}


def activation_variables(activation):
    names = {"params": ("alpha",), "batch_stats": ("mean", "variance")}
    return {
        group: {k: activation[k] for k in keys if k in activation} for group, keys in names.items()
    }


def mlp_variables(layers):
    """The layers in the order and under the names that the modules give them."""
    params, stats = {}, {}
    for i, layer in enumerate(layers):
        name = f"hidden_{i}" if layer["activation"] else "output"
        params[name] = {k: layer[k] for k in ("kernel", "bias")}
        if layer["activation"]:
            variables = activation_variables(layer["activation"])
            params[f"activation_{i}"] = variables["params"]
            stats[f"activation_{i}"] = variables["batch_stats"]
    return {"params": params, "batch_stats": stats}


def f64_layers(layers):
    return [
        {
            **f64({k: layer[k] for k in ("kernel", "bias")}),
            "activation": layer["activation"]
            and {k: v if k == "kind" else f64(v) for k, v in layer["activation"].items()},
        }
        for layer in layers
    ]


@pytest.mark.parametrize("train", [True, False])
def test_mlp_matches_the_oracle(train):
    rng = np.random.default_rng(14)
    layers = [
        dense(rng, 4, 5, with_dice(rng, 5)),
        dense(rng, 5, 3, with_dice(rng, 3)),
        dense(rng, 3, 2, None),
    ]
    x, mask = normal(rng, ROWS, 4), some_mask(rng)
    module = MLP((5, 3), 2, activation_factory("dice", default_config().model))
    run = jax.jit(functools.partial(module.apply, train=train, mutable=["batch_stats"]))
    out, _ = run(mlp_variables(layers), x, mask)
    expected, _ = oracles.mlp(f64(x[mask]), f64_layers(layers), train)
    np.testing.assert_allclose(out[mask], expected, rtol=1e-4, atol=1e-5)


# The activation unit

SAMPLES, CAPACITY, WIDTH = 5, 16, 3
LENGTHS = [4, 0, 6, 1, 0]  # empty histories in the middle and at the end


def behaviors_of(rng, padding):
    """(histories, packed behaviours, segment ids, mask) with this content in the padding."""
    histories = [normal(rng, n, WIDTH) for n in LENGTHS]
    packed = np.full((CAPACITY, WIDTH), padding, np.float32)
    packed[: sum(LENGTHS)] = np.concatenate(histories)
    segment_ids = np.full(CAPACITY, SAMPLES, np.int32)
    segment_ids[: sum(LENGTHS)] = np.repeat(np.arange(SAMPLES), LENGTHS)
    return histories, packed, segment_ids, segment_ids < SAMPLES


def unit_layers(rng, difference, outer, activation, hidden):
    width = WIDTH * (2 + difference) + (WIDTH**2 if outer else WIDTH)
    layers = []
    for units in hidden:
        layers.append(dense(rng, width, units, activation(rng, units)))
        width = units
    return [*layers, dense(rng, width, 1, None)]


def unit_variables(layers):
    variables = mlp_variables(layers)
    variables["params"].update(variables["params"].pop("hidden_0"))
    return variables


UNIT_CASES = [  # difference, outer, activation, its parameters, widths
    *((d, o, "dice", with_dice, (4,)) for d in (False, True) for o in (False, True)),
    (True, False, "prelu", with_prelu, (4, 6)),
]


@pytest.mark.parametrize(("difference", "outer", "name", "activation", "hidden"), UNIT_CASES)
def test_activation_unit_matches_the_oracle(difference, outer, name, activation, hidden):
    rng = np.random.default_rng(15)
    layers = unit_layers(rng, difference, outer, activation, hidden)
    ads = normal(rng, SAMPLES, WIDTH)
    histories, packed, segment_ids, mask = behaviors_of(rng, padding=7.0)
    factory = activation_factory(name, default_config().model)
    unit = ActivationUnit(hidden, factory, difference=difference, outer=outer)

    @jax.jit
    def run(variables, *args):
        return {
            train: unit.apply(variables, *args, train=train, mutable=["batch_stats"])[0]
            for train in (True, False)
        }

    found = run(unit_variables(layers), packed, ads, segment_ids, mask)
    for train, weights in found.items():
        expected, _ = oracles.activation_unit(
            [f64(h) for h in histories],
            f64(ads),
            f64_layers(layers),
            difference=difference,
            outer=outer,
            train=train,
        )
        np.testing.assert_allclose(weights[mask], np.concatenate(expected), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(weights[~mask], 0)


def test_activation_unit_has_one_kernel_of_the_concatenation():
    # The blocks are a way to compute it, not other parameters: 3·(2 + 1) + 3² rows, 4 columns.
    rng = np.random.default_rng(16)
    _, packed, segment_ids, mask = behaviors_of(rng, padding=0.0)
    unit = ActivationUnit(
        (4,), activation_factory("prelu", default_config().model), difference=True, outer=True
    )
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


@functools.cache
def unit_with_gradients():
    unit = ActivationUnit((4,), activation_factory("dice", default_config().model), difference=True)

    def loss(params, packed, ads, stats, segment_ids, mask, g):
        weights, new = unit.apply(
            {"params": params, "batch_stats": stats},
            packed,
            ads,
            segment_ids,
            mask,
            train=True,
            mutable=["batch_stats"],
        )
        return jnp.sum(g * weights), (weights, new["batch_stats"])

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


@examples
@given(seeds, st.sampled_from([1.0, -1e6, 1e30]))
def test_content_of_padding_changes_nothing_in_the_activation_unit(seed, content):
    found = []
    for padding in 0.0, content:
        rng = np.random.default_rng(seed)  # the same draws twice
        variables = unit_variables(unit_layers(rng, True, False, with_dice, (4,)))
        ads, g = normal(rng, SAMPLES, WIDTH), normal(rng, CAPACITY)
        _, packed, segment_ids, mask = behaviors_of(rng, padding)
        run = unit_with_gradients()
        found.append(
            run(variables["params"], packed, ads, variables["batch_stats"], segment_ids, mask, g)
        )
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(a, b)


# The activation unit and its pooling in blocks of behaviours

BLOCKED_CASES = [  # difference, outer, activation, its parameters, widths
    (False, False, "dice", with_dice, (4, 3)),
    (True, True, "dice", with_dice, (4,)),
    (True, False, "prelu", with_prelu, (4, 6)),
    (False, True, "sigmoid", lambda rng, units: {"kind": "sigmoid"}, (4, 6)),
]


@functools.cache
def pooled_unit(case, block, axis_name=None):
    """Compiled: a unit's weights, the interests, its statistics and the gradients of all."""
    difference, outer, name, _, hidden = BLOCKED_CASES[case]
    factory = activation_factory(name, default_config().model, axis_name)
    unit = ActivationUnit(hidden, factory, difference=difference, outer=outer, block=block)

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
    return jax.jit(run, static_argnames="train") if axis_name is None else run


def pooled_unit_inputs(case, seed, padding=7.0):
    """What `pooled_unit` takes: the same draws whatever the padding holds."""
    difference, outer, _, activation, hidden = BLOCKED_CASES[case]
    rng = np.random.default_rng(seed)
    variables = unit_variables(unit_layers(rng, difference, outer, activation, hidden))
    ads, g, h = (normal(rng, *shape) for shape in [(SAMPLES, WIDTH), (CAPACITY,), (SAMPLES, WIDTH)])
    _, packed, segment_ids, mask = behaviors_of(rng, padding)
    return variables["params"], packed, ads, variables["batch_stats"], segment_ids, mask, g, h


def assert_close(found, expected, rtol):
    """Each array's largest difference is so small a part of its largest value."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max()),
        found,
        expected,
    )


# Of 16 behaviours, 11 of them real: one at a time; some over, and a block without a real one; more
# than there are.
BLOCKS = [1, 3, 100]


@pytest.mark.parametrize(
    ("case", "block", "train"),
    [
        *((0, block, True) for block in BLOCKS),
        (0, 3, False),
        *((case, 3, True) for case in (1, 2, 3)),
    ],
)
def test_blocks_give_what_all_behaviours_at_once_give(case, block, train):
    inputs = pooled_unit_inputs(case, 20)
    at_once = pooled_unit(case, 0)(*inputs, train=train)
    found = pooled_unit(case, block)(*inputs, train=train)
    assert_close(found, at_once, 2e-6)


def test_blocks_match_the_oracle():
    # In float64, where nothing but the statistics' definition is left.
    case = 1
    difference, outer, _, activation, hidden = BLOCKED_CASES[case]
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
            np.dot(w, x) if len(x) else np.zeros(WIDTH)
            for w, x in zip(weights, histories, strict=True)
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


def test_parameters_are_the_same_with_blocks_and_without():
    _, packed, ads, _, segment_ids, mask, *_ = pooled_unit_inputs(0, 26)
    one, other = (
        ActivationUnit(
            (4, 3), activation_factory("dice", default_config().model), block=block
        ).init(jax.random.key(0), packed, ads, segment_ids, mask, train=True)
        for block in (0, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("case", [1, 2])
def test_content_of_padding_changes_nothing_in_blocks(case):
    one, *others = (
        pooled_unit(case, 3)(*pooled_unit_inputs(case, 22, padding), train=True)
        for padding in (0.0, 1.0, -1e6, 1e30)
    )
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, one, other)


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
    mapped = jax.jit(
        jax.vmap(
            functools.partial(pooled_unit(case, 3, "devices"), train=True),
            in_axes=(None, 0, 0, None, 0, 0, 0, 0),
            axis_name="devices",
        )
    )
    packed, ads, segment_ids, *rest = map(np.stack, zip(*shares, strict=True))
    loss, grads = mapped(params, packed, ads, stats, segment_ids, *rest)

    # One device has all: its samples are those of the shares, one after the other.
    numbered = segment_ids + SAMPLES * np.arange(3)[:, None]
    order = np.argsort(~rest[0].reshape(-1), kind="stable")  # padding goes last
    flat = [x.reshape(-1, *x.shape[2:]) for x in (packed, ads, numbered, *rest)]
    packed, ads, numbered, mask, g, h = flat
    numbered = np.where(mask, numbered, 3 * SAMPLES)
    (expected, (weights, interest, new)), all_grads = pooled_unit(case, 0)(
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
    total, (found, pooled, stats) = loss
    assert_close(total.sum(), expected, 1e-5)
    assert_close(found.reshape(-1)[order], weights, 2e-6)
    assert_close(pooled.reshape(-1, WIDTH), interest, 2e-6)
    assert_close(stats, jax.tree.map(lambda x: np.stack([x] * 3), new), 2e-6)
    of_params, of_packed, of_ads = grads
    assert_close(jax.tree.map(lambda x: x.sum(0), of_params), all_grads[0], 1e-5)
    assert_close(of_packed.reshape(-1, WIDTH)[order], all_grads[1], 1e-5)
    assert_close(of_ads.reshape(-1, WIDTH), all_grads[2], 1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_statistics_of_blocks_are_accurate_where_the_mean_is_much_larger(offset):
    # Blocks whose means differ by far more than the values within them, and by far less.
    rng = np.random.default_rng(24)
    for between in 10.0, 1e-3:
        means = offset + between * np.arange(8)
        s = np.float32(means[:, None, None] + rng.standard_normal((8, 512, UNITS)))
        s, mask = s.reshape(-1, UNITS), some_mask(rng, 4096)
        blocked = InBlocks.of(lambda s: s, 512, mask, s=(s, 0.0))
        dice = Dice(momentum=0.0)
        _, new = dice.apply(dice_variables(rng), blocked, mask, train=True, mutable=["batch_stats"])
        mean, variance = oracles.mean_and_variance(f64(s[mask]))
        np.testing.assert_allclose(new["batch_stats"]["mean"], mean, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(new["batch_stats"]["variance"], variance, rtol=1e-5)


def dice_in_blocks(variables, s, block, epsilon):
    mask = np.ones(len(s), bool)
    blocked = InBlocks.of(lambda s: s, block, mask, s=(s, 0.0))
    out, _ = Dice(epsilon=epsilon).apply(
        variables, blocked, mask, train=True, mutable=["batch_stats"]
    )
    return out.each(lambda out, _: out).reshape(-1, UNITS)[: len(s)]


@pytest.mark.parametrize("constant", CONSTANTS)
def test_equal_rows_have_p_one_half_in_blocks(constant):
    # The mean of means is rounded once more, which ε would magnify.
    variables = dice_variables(np.random.default_rng(25))
    s = np.full((1000, UNITS), constant, np.float32)
    out = dice_in_blocks(variables, s, 7, EPSILON)
    expected = (1 + f64(variables["params"]["alpha"])) / 2 * s.astype(np.float64)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=0)


def test_the_mean_of_blocks_is_known_to_less_than_a_rounding():
    # One row in 1,000 differs, by float32's least step: the mean lies between two floats.
    variables = dice_variables(np.random.default_rng(27))
    s = np.full((1000, UNITS), 3.3, np.float32)
    s[500] = np.nextafter(s[500], np.float32(4))
    out = dice_in_blocks(variables, s, 7, 1e-30)
    expected = oracles.dice_training(f64(s), f64(variables["params"]["alpha"]), 1e-30)
    np.testing.assert_allclose(out, expected, rtol=1e-4)


# Pooling


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

    return jax.jit(run)


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
def softmax_with_gradient():
    def run(x, g, segment_ids, mask):
        out, pull = jax.vjp(lambda x: segment_softmax(x, segment_ids, SAMPLES, mask), x)
        return out, pull(g)[0]

    return jax.jit(run)


@examples
@given(seeds, st.sampled_from([1.0, 80.0, 1e4]))
def test_segment_softmax_matches_the_oracle(seed, scale):
    rng = np.random.default_rng(seed)
    segments, packed, segment_ids, mask = segments_of(rng)
    x = packed[:, 0] * np.where(mask, np.float32(scale), 1)
    out, _ = softmax_with_gradient()(x, np.zeros_like(x), segment_ids, mask)
    expected = [oracles.softmax(f64(s[:, 0] * np.float32(scale))) for s in segments]
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
    _, of_x = softmax_with_gradient()(x, g, segment_ids, mask)

    def total(x):
        weights = [oracles.softmax(part) for part in np.split(x, np.cumsum(lengths)[:-1])]
        return np.dot(g[mask], np.concatenate(weights))

    expected = oracles.derivative(total, f64(x[mask]), 1e-5)
    np.testing.assert_allclose(of_x[mask], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(of_x[~mask], 0)
