"""Models of small configs: compiled, and as the oracles compute them."""

import functools

import jax
import jax.numpy as jnp
import number_oracles
import numpy as np
import oracles
from compiling import quick_jit
from hypothesis import settings, strategies as st
from model_batches import (
    LARGER,
    NUMERIC_SCHEMA,
    RELEASED_SCHEMA,
    SCHEMA,
    SIZES,
    draw_samples,
    make_batch,
)

from din_jax.config import default_config
from din_jax.models.registry import build_model
from din_jax.nn.losses import negative_log_likelihood, weighted_mean

examples = settings(max_examples=10, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
# Each table has a width of its own, so that vectors in a wrong order don't fit or give other sums.
DIMS = {"age": 2, "goods": 4, "hour": 1, "shop": 3, "tag": 2, "user": 5}

# Every option of the config is in one of these, and each model in both groups. The oracles know no
# capacity: of `SCORED` a batch has those of `LARGER`, of `TRAINED` those of `SIZES`.
TRAINED = {
    "base mean": {"name": "base", "activation": "dice", "pooling": "mean"},
    "din extras": {
        "name": "din",
        "activation": "dice",
        "attention.difference": True,
        "attention.outer": True,
        "pooling": "mean",
        "item_bias": "shop",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "din options": {
        "name": "din",
        "activation": "dice",
        "attention.normalize": "softmax",
        "attention.bias_init": 0.5,
        "attention.position": True,
        "attention.age": True,
        "attention.match": True,
        "match_counts": True,
        "intensity": True,
        "bias_fields": ("user_id", "tags", "goods"),
        "embedding_init": "width",
    },
    "lr mean": {"name": "lr", "pooling": "mean", "extra_fields": ("user_id",)},
    # Of 100 pairs of goods some share one of 40 buckets; pairs of shops and of tags have room.
    "wide_deep": {
        "name": "wide_deep",
        "activation": "prelu",
        "wide.buckets": 40,
        "wide.ad_values": 2,
    },
    "pnn inner": {"name": "pnn", "activation": "dice"},
    "deepfm": {"name": "deepfm", "activation": "dice"},
    "released din dice": {
        "preset": "released_code",
        "name": "din",
        "activation": "dice",
        "attention.hidden": (7, 5),
    },
}
SCORED = {
    "base extras": {
        "name": "base",
        "activation": "prelu",
        "item_bias": "goods",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "din dice": {"name": "din", "activation": "dice"},
    "din prelu": {
        "name": "din",
        "activation": "prelu",
        "attention.difference": True,
        "attention.hidden": (5, 3),
    },
    "din relu": {
        "name": "din",
        "activation": "relu",
        "attention.activation": "sigmoid",
        "attention.outer": True,
    },
    "din blocks": {
        "name": "din",
        "activation": "dice",
        "attention.hidden": (5, 3),
        "attention.difference": True,
        "attention.block": 7,
    },
    "din options in blocks": {
        "name": "din",
        "activation": "dice",
        "attention.normalize": "sqrt",
        "intensity": True,
        "attention.position": True,
        "attention.match": True,
        "attention.block": 7,
    },
    "lr": {"name": "lr"},
    "wide_deep extras": {
        "name": "wide_deep",
        "activation": "dice",
        "pooling": "mean",
        "item_bias": "goods",
        "interest_product": True,
        "extra_fields": ("user_id",),
        "bias_fields": ("tags", "hour"),
    },
    "pnn outer": {
        "name": "pnn",
        "activation": "sigmoid",
        "pnn.product": "outer",
        "pooling": "mean",
        "item_bias": "shop",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "deepfm extras": {
        "name": "deepfm",
        "activation": "relu",
        "pooling": "mean",
        "item_bias": "shop",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "released base sigmoid": {"preset": "released_code", "name": "base", "activation": "sigmoid"},
}
# Each model on numeric fields, for `test_numbers`. Wide & Deep without its weights is base.
NUMERIC = {
    "numeric lr": {"name": "lr", "pooling": "mean"},
    "numeric wide_deep": {
        "name": "wide_deep",
        "interest_product": True,
        "table_dims": "goods=4,shop=2",
    },
    "numeric pnn": {"name": "pnn"},
    "numeric deepfm": {"name": "deepfm", "pooling": "mean"},
    "numeric din": {
        "name": "din",
        "table_dims": "goods=4,shop=2",
        "attention.normalize": "softmax",
        "attention.match": True,
        "match_counts": True,
        "interest_product": True,
    },
}
NUMERIC = {name: {"activation": "relu", **options} for name, options in NUMERIC.items()}
CASES = TRAINED | SCORED | NUMERIC


# Models


def schema_of(name):
    special = {"released": RELEASED_SCHEMA, "numeric": NUMERIC_SCHEMA}
    return special.get(name.split()[0], SCHEMA)


@functools.cache
def config_of(name):
    """The `config.model` of a case."""
    config = default_config().model
    config.embedding_dim = 3
    if schema_of(name) is SCHEMA and CASES[name]["name"] not in ("pnn", "deepfm"):
        config.table_dims = ",".join(f"{table}={dim}" for table, dim in DIMS.items())
    config.hidden = (6, 4)
    config.attention.hidden = (5,)
    config.dice.momentum = 0.8
    config.update_from_flattened_dict(CASES[name])
    return config


@functools.cache
def model_of(name):
    return build_model(schema_of(name), config_of(name))


def apply(model, variables, batch, **how):
    return model.module.apply(
        {k: variables[k] for k in ("params", "batch_stats")},
        variables["tables"],
        model.lookups(batch),
        batch,
        **how,
    )


def forward(model):
    """Compiled: variables, batch → {"train": (logits, aux), "eval": (logits, aux)}."""

    def run(variables, batch):
        # Both in one compilation, of which the two share most.
        in_training, _ = apply(model, variables, batch, train=True, mutable=["batch_stats"])
        return {"train": in_training, "eval": apply(model, variables, batch, train=False)}

    return quick_jit(run)


def training(model, axis_name=None):
    """variables, batch → ((loss, (logits, aux, moving averages)), gradients)"""

    def loss_of(trained, variables, batch):
        (logits, aux), updated = apply(
            model, variables | trained, batch, train=True, mutable=["batch_stats"]
        )
        losses = negative_log_likelihood(logits, batch.label)
        loss = weighted_mean(losses, batch.weight, axis_name)
        return loss, (logits, aux, updated.get("batch_stats", {}))

    def run(variables, batch):
        trained = {k: variables[k] for k in ("params", "tables")}
        return jax.value_and_grad(loss_of, has_aux=True)(trained, variables, batch)

    return run


@functools.cache
def _compiled(name):
    model = model_of(name)
    if name in SCORED:
        return forward(model)

    def run(variables, batch):
        (loss, (logits, aux, stats)), gradients = training(model)(variables, batch)
        return {
            "loss": loss,
            "stats": stats,
            "gradients": gradients,
            "train": (logits, aux),
            "eval": apply(model, variables, batch, train=False),
        }

    return quick_jit(run)


def results(name, variables, batch):
    """{"train", "eval": (logits, aux)}; of `TRAINED` cases also "loss", "stats", "gradients"."""
    return _compiled(name)(variables, batch)


def learned(name, variables, batch):
    """What a train step is made of, and the real samples' logits in training."""
    everything = results(name, variables, batch)
    step = {key: everything[key] for key in ("loss", "stats", "gradients")}
    return {**step, "logits": everything["train"][0][: int(batch.weight.sum())]}


def scores(name, variables, batch):
    """Logits in evaluation."""
    return results(name, variables, batch)["eval"][0]


@functools.cache
def _shapes(name):
    """Of the module's variables."""
    model = model_of(name)
    rng = np.random.default_rng(0)
    batch = make_batch(draw_samples(rng, schema_of(name)), schema_of(name), rng)
    tables = {
        k: jax.ShapeDtypeStruct((s.rows, s.dim), jnp.float32) for k, s in model.tables.items()
    }

    def init(key, tables, batch):
        return model.module.init(key, tables, model.lookups(batch), batch, train=False)

    return jax.eval_shape(init, jax.random.key(0), tables, batch)


def draw_variables(name, rng):
    """Random parameters, averages and tables in place of the initial ones, many of which are 0."""

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape) * (0.5 if leaf.ndim == 2 else 1)
        return np.float32(np.abs(x) + 0.3 if path[-1].key == "variance" else x)

    variables = jax.tree_util.tree_map_with_path(draw, dict(_shapes(name)))
    tables = {
        k: rng.standard_normal((s.rows, s.dim)).astype(np.float32)
        for k, s in model_of(name).tables.items()
    }
    return {"batch_stats": {}, **variables, "tables": tables}


@functools.cache
def setup(name, seed, empty=False):
    """(samples, batch, variables) of a seed; with `empty`, all histories are."""
    rng = np.random.default_rng(seed)
    samples = draw_samples(rng, schema_of(name), empty)
    batch = make_batch(samples, schema_of(name), rng, LARGER if name in SCORED else SIZES)
    return samples, batch, draw_variables(name, rng)


# The oracles' view of the parameters


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def _layers_of(kind, params, stats):
    """An oracle's layers of a hidden stack: hidden_0, activation_0, hidden_1, …, output."""
    layers = []
    for i in range(sum(key.startswith("hidden") for key in params)):
        activation = {"kind": kind, **params.get(f"activation_{i}", {})}
        if kind == "dice":
            activation |= {**stats[f"activation_{i}"], "epsilon": np.float64(1e-8)}
        layers.append({**params[f"hidden_{i}"], "activation": activation})
    return [*layers, {**params["output"], "activation": None}]


def _unit_layers_of(kind, params, stats):
    """As `_layers_of`, for an activation unit, which holds its first layer's weights itself."""
    codes = [params[f"code_{i}"] for i in range(sum(k.startswith("code_") for k in params))]
    first = {"kernel": np.concatenate([params["kernel"], *codes]), "bias": params["bias"]}
    return _layers_of(kind, {**params, "hidden_0": first}, stats)


def oracle(name, samples, variables, train):
    """What an oracle says of real samples: logits [REAL, 2], interest, weights, entered."""
    config = config_of(name)
    if config.preset == "released_code":
        return _released_oracle(config, samples, variables)
    if config.name == "lr":
        tables, params = f64(variables["tables"]), f64(variables["params"])
        schema, mean = schema_of(name), config.pooling == "mean"
        z = [oracles.linear(s, schema, tables, mean, config.extra_fields) for s in samples]
        z = [x + float(params["bias"]) for x in z]
        for i, sample in enumerate(samples):
            z[i] += number_oracles.linear(sample, schema, _number_weights(params), mean)
        return {"logits": np.stack([np.zeros(len(z)), z], axis=1)}
    return _paper_oracle(config, schema_of(name), samples, variables, train, buckets_of(name))


def _number_weights(params):
    return params["number_weights"]["kernel"][:, 0] if "number_weights" in params else []


def _paper_oracle(config, schema, samples, variables, train, crosses):
    params, stats = f64(variables["params"]), f64(variables["batch_stats"])
    vectors = {k.removeprefix("of_"): v for k, v in params.get("number_vectors", {}).items()}
    kind, unit_kind = config.activation, config.attention.activation or config.activation
    units = {}
    if config.name == "din":
        for sequence in schema.sequences:
            part = f"activation_unit_{sequence.name}"
            units[sequence.name] = _unit_layers_of(unit_kind, params[part], stats.get(part, {}))
    mlp = _layers_of(kind, params["Head_0"]["mlp"], stats.get("Head_0", {}).get("mlp", {}))
    if config.name == "pnn" or config.match_counts or config.intensity:
        beside = params["Head_0"]["mlp"]["products"]["kernel"]
        mlp[0]["kernel"] = np.concatenate([mlp[0]["kernel"], beside])
    return oracles.paper(
        samples,
        schema,
        f64(variables["tables"]),
        {"mlp": mlp, "units": units, "vectors": vectors, "weights": _number_weights(params)},
        attention=config.name == "din",
        train=train,
        mean=config.pooling == "mean",
        difference=config.attention.difference,
        outer=config.attention.outer,
        interest_product=config.interest_product,
        item_bias=config.item_bias,
        extra_fields=config.extra_fields,
        products=config.pnn.product if config.name == "pnn" else "",
        machine=config.name == "deepfm",
        crosses=crosses,
        ad_values=config.wide.ad_values,
        normalize=config.attention.normalize,
        position=config.attention.position,
        age=config.attention.age,
        match=config.attention.match,
        match_counts=config.match_counts,
        intensity=config.intensity,
        bias_fields=config.bias_fields,
    )


def buckets_of(name):
    """{table of a cross: its buckets}"""
    return {k: config_of(name).wide.buckets for k in model_of(name).tables if k.endswith("-cross")}


def _released_oracle(config, samples, variables):
    params = f64(variables["params"])
    kind = {"dice": "released_dice", "sigmoid": "sigmoid"}[config.activation]
    network = {k: params[k] for k in ("history_norm", "history_dense", "input_norm")}
    network["mlp"] = _layers_of(kind, params["mlp"], {})
    attention = config.name == "din"
    if attention:
        network["unit"] = _unit_layers_of("sigmoid", params["activation_unit"], {})
    expected = oracles.released(
        samples, RELEASED_SCHEMA, f64(variables["tables"]), network, attention=attention
    )
    z = expected["logit"]
    return {
        "logits": np.stack([np.zeros(len(z)), z], axis=1),
        "interest": {"history": expected["interest"]},
        "weights": {"history": expected["weights"]} if attention else {},
    }


def close(actual, expected, rtol=1e-4, atol=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def close_trees(actual, expected, **tolerance):
    jax.tree.map(functools.partial(close, **tolerance), actual, expected)
