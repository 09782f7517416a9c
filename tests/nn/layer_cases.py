"""Random inputs and parameters of layers, as the modules take them and as the oracles do."""

import jax
import numpy as np
from hypothesis import settings, strategies as st

from din_jax.config import default_config
from din_jax.nn.activations import activation_factory

# Shapes stay the same from example to example, so that each test compiles once.
examples = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
EPSILON = 1e-8


def normal(rng, *shape, scale=1.0, offset=0.0):
    return (offset + scale * rng.standard_normal(shape)).astype(np.float32)


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def some_mask(rng, rows, least=1):
    """A mask with real and padding rows mixed: Dice may not rely on padding being last."""
    mask = rng.random(rows) < rng.uniform(0.2, 1)
    mask[rng.permutation(rows)[:least]] = True
    return mask


def assert_trees_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_trees_close(actual, expected, rtol):
    """Each array's largest difference is at most so small a part of its largest value."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max()),
        actual,
        expected,
    )


# Layers, as the oracles take them


def dense(rng, inputs, outputs, activation):
    return {
        "kernel": normal(rng, inputs, outputs, scale=0.5),
        "bias": normal(rng, outputs, scale=0.5),
        "activation": activation,
    }


def dice_variables(rng, units):
    return {
        "params": {"alpha": normal(rng, units)},
        "batch_stats": {
            "mean": normal(rng, units),
            "variance": rng.uniform(0.3, 3, units).astype(np.float32),
        },
    }


def with_dice(rng, units):
    variables = dice_variables(rng, units)
    return {"kind": "dice", **variables["params"], **variables["batch_stats"], "epsilon": EPSILON}


def with_prelu(rng, units):
    return {"kind": "prelu", "alpha": normal(rng, units)}


def f64_layers(layers):
    return [
        {
            **f64({k: layer[k] for k in ("kernel", "bias")}),
            "activation": layer["activation"]
            and {k: v if k == "kind" else f64(v) for k, v in layer["activation"].items()},
        }
        for layer in layers
    ]


# The same layers, as the modules take them


def factory(name, axis_name=None, **dice):
    """An activation of the config."""
    config = default_config().model
    config.dice.update(dice)
    return activation_factory(name, config, axis_name)


def mlp_variables(layers):
    """The layers in the order and under the names that the modules give them."""
    names = {"params": ("alpha",), "batch_stats": ("mean", "variance")}
    variables = {"params": {}, "batch_stats": {}}
    for i, layer in enumerate(layers):
        name = f"hidden_{i}" if layer["activation"] else "output"
        variables["params"][name] = {k: layer[k] for k in ("kernel", "bias")}
        for group, keys in names.items():
            if layer["activation"]:
                of_layer = {k: layer["activation"][k] for k in keys if k in layer["activation"]}
                variables[group][f"activation_{i}"] = of_layer
    return variables


# The activation unit

SAMPLES, CAPACITY, WIDTH = 5, 16, 3
LENGTHS = [4, 0, 6, 1, 0]  # empty histories in the middle and at the end
LONGEST = 7  # of padded histories


def behaviors_of(rng, padding):
    """(histories, packed behaviours, segment ids, mask) with this content in the padding."""
    histories = [normal(rng, n, WIDTH) for n in LENGTHS]
    packed = np.full((CAPACITY, WIDTH), padding, np.float32)
    packed[: sum(LENGTHS)] = np.concatenate(histories)
    segment_ids = np.full(CAPACITY, SAMPLES, np.int32)
    segment_ids[: sum(LENGTHS)] = np.repeat(np.arange(SAMPLES), LENGTHS)
    return histories, packed, segment_ids, segment_ids < SAMPLES


def padded_behaviors(histories, padding):
    """(padded behaviours [B, H, E], mask [B, H]) of the same histories."""
    mask = np.arange(LONGEST) < np.array(LENGTHS)[:, None]
    padded = np.full((SAMPLES, LONGEST, WIDTH), padding, np.float32)
    padded[mask] = np.concatenate(histories)
    return padded, mask


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
