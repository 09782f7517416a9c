import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given, settings, strategies as st

from din_jax.config import default_config
from din_jax.data.packing import Batch, Behaviors, Packed
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.errors import DinError
from din_jax.models import deepfm, pnn
from din_jax.models.features import ITEM_BIAS
from din_jax.models.registry import build, notes
from din_jax.nn.embedding import Lookup, init_tables, lookup
from din_jax.nn.losses import negative_log_likelihood, weighted_mean
from din_jax.optim.regularizer import drop_ids

# Each table has a width of its own, so that vectors in a wrong order don't fit or give other sums.
DIMS = {"age": 2, "goods": 4, "hour": 1, "shop": 3, "tag": 2, "user": 5}
SCHEMA = Schema(
    tables=(
        Table("goods", 11),
        Table("shop", 6),
        Table("tag", 7),
        Table("age", 4),
        Table("hour", 5),
        Table("user", 9),
    ),
    fields=(
        Field("hour", "hour", "context"),
        Field("goods", "goods", "ad"),
        Field("age", "age", "user"),
        Field("tags", "tag", "ad", multi_hot=True),
        Field("user_id", "user", "user", optional=True),
        Field("shop", "shop", "ad"),
        Field("likes", "tag", "user", multi_hot=True),
    ),
    sequences=(
        Sequence(
            "clicks",
            (
                BehaviorField("tags", "tag", "tags", multi_hot=True),
                BehaviorField("goods", "goods", "goods"),
            ),
        ),
        Sequence("visits", (BehaviorField("shop", "shop", "shop"),)),
    ),
)
RELEASED_SCHEMA = Schema(
    tables=(Table("item", 11), Table("category", 5), Table("user", 4)),
    fields=(
        Field("category", "category", "ad"),
        Field("item", "item", "ad"),
        Field("user_id", "user", "user", optional=True),
    ),
    sequences=(
        Sequence(
            "history",
            (
                BehaviorField("item", "item", "item"),
                BehaviorField("category", "category", "category"),
            ),
        ),
    ),
)


class Sizes(NamedTuple):
    """Capacities of a packed batch: samples, and entries of the packed axes."""

    samples: int = 8
    clicks: int = 24
    visits: int = 24
    nested: int = 48  # ids of a behaviour's multi-hot field
    multi_hot: int = 24  # ids of a sample's

    def of(self, sequence):
        return self.visits if sequence == "visits" else self.clicks


SIZES = Sizes()
LARGER = Sizes(samples=11, clicks=40, visits=64, nested=56, multi_hot=32)
REAL = 6  # samples; the rest of a batch is padding

examples = settings(max_examples=20, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


# Samples, batches and parameters


def draw_samples(rng, schema, empty=False):
    """Random samples, as the oracles take them; one history of each sequence, or all, are empty."""

    def ids(field):
        rows = schema.rows(field.table)
        if field.multi_hot:
            return rng.integers(0, rows, rng.integers(0, 4)).tolist()
        return int(rng.integers(0, rows))

    samples = []
    without = rng.permutation(REAL)
    for i in range(REAL):
        sequences = {}
        for place, sequence in enumerate(schema.sequences):
            n = 0 if empty or i == without[place] else rng.integers(1, 5)
            sequences[sequence.name] = [{f.name: ids(f) for f in sequence.fields} for _ in range(n)]
        samples.append(
            {
                "label": float(rng.integers(0, 2)),
                "fields": {f.name: ids(f) for f in schema.fields},
                "sequences": sequences,
            }
        )
    return samples


def garbage(rng, n):
    """Ids that no table has, and ids that all have: padding may hold either."""
    wild = rng.integers(-(2**31), 2**31, n)
    return np.where(rng.random(n) < 0.5, wild, rng.integers(0, 4, n)).astype(np.int32)


def padded(rng, values, capacity):
    assert len(values) <= capacity
    return np.concatenate([np.int32(values), garbage(rng, capacity - len(values))])


def segment_ids_of(segments, capacity, beyond):
    """Which segment each entry is of; padding has the segment id `beyond`."""
    owners = [at for at, segment in enumerate(segments) for _ in segment]
    return np.array(owners + [beyond] * (capacity - len(owners)), np.int32)


def packed(rng, segments, capacity, beyond):
    values = [i for segment in segments for i in segment]
    return Packed(padded(rng, values, capacity), segment_ids_of(segments, capacity, beyond))


def make_batch(samples, schema, rng, sizes=SIZES):
    """The samples as a packed batch, whose padding is drawn from `rng`."""
    b = sizes.samples
    fields = {}
    for field in schema.fields:
        values = [s["fields"][field.name] for s in samples]
        if field.multi_hot:
            fields[field.name] = packed(rng, values, sizes.multi_hot, b)
        else:
            fields[field.name] = padded(rng, values, b)
    sequences = {}
    for sequence in schema.sequences:
        t = sizes.of(sequence.name)
        histories = [s["sequences"][sequence.name] for s in samples]
        behaviors = [behavior for history in histories for behavior in history]
        values = {}
        for field in sequence.fields:
            column = [behavior[field.name] for behavior in behaviors]
            if field.multi_hot:
                values[field.name] = packed(rng, column, sizes.nested, t)
            else:
                values[field.name] = padded(rng, column, t)
        sequences[sequence.name] = Behaviors(values, segment_ids_of(histories, t, b))
    return Batch(
        label=np.float32([s["label"] for s in samples] + [1] * (b - len(samples))),
        weight=np.float32([1] * len(samples) + [0] * (b - len(samples))),
        user=garbage(rng, b),
        fields=fields,
        sequences=sequences,
    )


class Case(NamedTuple):
    """A model as built from a config, and compiled functions of it."""

    options: dict
    config: object
    model: object
    forward: object  # variables, batch → {train: (logits, aux)}
    trains: object  # variables, batch → ((loss, (logits, batch_stats)), gradients)


def schema_of(name):
    return RELEASED_SCHEMA if name.startswith("released") else SCHEMA


def config_of(name):
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
def case(name, axis_name=None, config=None):
    schema = schema_of(name)
    options = CASES[name]
    config = config or config_of(name)
    model = build(schema, config, axis_name)

    def apply(variables, batch, **how):
        return model.module.apply(
            {k: variables[k] for k in ("params", "batch_stats")},
            variables["tables"],
            model.lookups(batch),
            batch,
            **how,
        )

    def forward(variables, batch):
        # Both in one compilation, of which the two share most.
        in_training, _ = apply(variables, batch, train=True, mutable=["batch_stats"])
        return {True: in_training, False: apply(variables, batch, train=False)}

    def loss_of(trained, variables, batch):
        (logits, _), updated = apply(
            variables | trained, batch, train=True, mutable=["batch_stats"]
        )
        losses = negative_log_likelihood(logits, batch.label)
        if axis_name is None:
            loss = weighted_mean(losses, batch.weight)
        else:
            all_weights = jax.lax.psum(batch.weight.sum(), axis_name)
            loss = (losses * batch.weight).sum() / all_weights
        return loss, (logits, updated.get("batch_stats", {}))

    def trains(variables, batch):
        trained = {k: variables[k] for k in ("params", "tables")}
        return jax.value_and_grad(loss_of, has_aux=True)(trained, variables, batch)

    if axis_name is not None:
        trains = jax.vmap(trains, in_axes=(None, 0), axis_name=axis_name)
    return Case(options, config, model, jax.jit(forward), jax.jit(trains))


# Every option of the config is in one of these.
CASES = {
    "base sum": {"name": "base", "activation": "prelu"},
    "base mean": {"name": "base", "activation": "dice", "pooling": "mean"},
    "base extras": {
        "name": "base",
        "activation": "sigmoid",
        "item_bias": "goods",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "din dice": {"name": "din", "activation": "dice"},
    "din prelu": {"name": "din", "activation": "prelu", "attention.difference": True},
    "din sigmoid": {"name": "din", "activation": "sigmoid", "attention.outer": True},
    "din relu": {
        "name": "din",
        "activation": "relu",
        "attention.activation": "prelu",
        "attention.hidden": (5, 3),
    },
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
    "din blocks": {
        "name": "din",
        "activation": "dice",
        "attention.hidden": (5, 3),
        "attention.difference": True,
        "attention.block": 7,
    },
    "lr": {"name": "lr"},
    "lr mean": {"name": "lr", "pooling": "mean", "extra_fields": ("user_id",)},
    # Of 100 pairs of goods some share one of 40 buckets; pairs of shops and of tags have room.
    "wide_deep": {
        "name": "wide_deep",
        "activation": "prelu",
        "wide.buckets": 40,
        "wide.ad_values": 2,
    },
    "wide_deep extras": {
        "name": "wide_deep",
        "activation": "dice",
        "pooling": "mean",
        "item_bias": "goods",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "pnn inner": {"name": "pnn", "activation": "dice"},
    "pnn outer": {
        "name": "pnn",
        "activation": "sigmoid",
        "pnn.product": "outer",
        "pooling": "mean",
        "item_bias": "shop",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "deepfm": {"name": "deepfm", "activation": "dice"},
    "deepfm extras": {
        "name": "deepfm",
        "activation": "relu",
        "pooling": "mean",
        "item_bias": "shop",
        "interest_product": True,
        "extra_fields": ("user_id",),
    },
    "released din sigmoid": {
        "preset": "released_code",
        "name": "din",
        "activation": "sigmoid",
        "attention.hidden": (7, 5),
    },
    "released din dice": {
        "preset": "released_code",
        "name": "din",
        "activation": "dice",
        "attention.hidden": (7, 5),
    },
    "released base sigmoid": {"preset": "released_code", "name": "base", "activation": "sigmoid"},
    "released base dice": {"preset": "released_code", "name": "base", "activation": "dice"},
}
PAPER = [name for name in CASES if not name.startswith(("released", "lr"))]
LR = [name for name in CASES if name.startswith("lr")]
RELEASED = [name for name in CASES if name.startswith("released")]


def draw_variables(name, rng, batch):
    """Random parameters, averages and tables in place of the initial ones, many of which are 0."""
    model = case(name).model
    shapes = jax.eval_shape(
        functools.partial(model.module.init, train=False),
        jax.random.key(0),
        {k: jax.ShapeDtypeStruct((s.rows, s.dim), jnp.float32) for k, s in model.tables.items()},
        model.lookups(batch),
        batch,
    )

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape) * (0.5 if leaf.ndim == 2 else 1)
        return np.float32(np.abs(x) + 0.3 if path[-1].key == "variance" else x)

    variables = jax.tree_util.tree_map_with_path(draw, dict(shapes))
    tables = {
        k: rng.standard_normal((s.rows, s.dim)).astype(np.float32) for k, s in model.tables.items()
    }
    return {"batch_stats": {}, **variables, "tables": tables}


@functools.cache
def setup(name, seed, empty=False):
    """(samples, batch, variables) of a seed; with `empty`, all histories are."""
    rng = np.random.default_rng(seed)
    samples = draw_samples(rng, schema_of(name), empty)
    batch = make_batch(samples, schema_of(name), rng)
    return samples, batch, draw_variables(name, rng, batch)


# The oracles' view of the parameters


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def layers_of(kind, params, stats):
    """An oracle's layers of a hidden stack: hidden_0, activation_0, hidden_1, …, output."""
    layers = []
    for i in range(sum(key.startswith("hidden") for key in params)):
        activation = {"kind": kind, **params.get(f"activation_{i}", {})}
        if kind == "dice":
            activation |= {**stats[f"activation_{i}"], "epsilon": np.float64(1e-8)}
        layers.append({**params[f"hidden_{i}"], "activation": activation})
    return [*layers, {**params["output"], "activation": None}]


def unit_layers_of(kind, params, stats):
    """As `layers_of`, for an activation unit, which holds its first layer's weights itself."""
    first = {k: params[k] for k in ("kernel", "bias")}
    return layers_of(kind, {**params, "hidden_0": first}, stats)


def paper_oracle(name, samples, variables, train):
    options, config = case(name).options, case(name).config
    params, stats = f64(variables["params"]), f64(variables["batch_stats"])
    kind, unit_kind = config.activation, config.attention.activation or config.activation
    units = {}
    if config.name == "din":
        for sequence in SCHEMA.sequences:
            part = f"activation_unit_{sequence.name}"
            units[sequence.name] = unit_layers_of(unit_kind, params[part], stats.get(part, {}))
    mlp = layers_of(kind, params["Head_0"]["mlp"], stats.get("Head_0", {}).get("mlp", {}))
    if config.name == "pnn":
        beside = params["Head_0"]["mlp"]["products"]["kernel"]
        mlp[0]["kernel"] = np.concatenate([mlp[0]["kernel"], beside])
    return oracles.paper(
        samples,
        SCHEMA,
        f64(variables["tables"]),
        {"mlp": mlp, "units": units},
        attention=config.name == "din",
        train=train,
        mean=options.get("pooling") == "mean",
        difference=options.get("attention.difference", False),
        outer=options.get("attention.outer", False),
        interest_product=options.get("interest_product", False),
        item_bias=options.get("item_bias", ""),
        extra_fields=options.get("extra_fields", ()),
        products=config.pnn.product if config.name == "pnn" else "",
        machine=config.name == "deepfm",
        crosses=crosses_of(name),
        ad_values=config.wide.ad_values,
    )


def crosses_of(name):
    """{table of a cross: its buckets}"""
    model = case(name).model
    return {k: case(name).config.wide.buckets for k in model.tables if k.endswith("-cross")}


def lr_logits(name, samples, variables):
    tables, params = f64(variables["tables"]), f64(variables["params"])
    config = case(name).config
    how = (config.pooling == "mean", config.extra_fields)
    z = [oracles.linear(s, SCHEMA, tables, *how) + float(params["bias"]) for s in samples]
    return np.stack([np.zeros(len(z)), z], axis=1)


def released_oracle(name, samples, variables):
    config, params = case(name).config, f64(variables["params"])
    kind = {"dice": "released_dice", "sigmoid": "sigmoid"}[config.activation]
    network = {k: params[k] for k in ("history_norm", "history_dense", "input_norm")}
    network["mlp"] = layers_of(kind, params["mlp"], {})
    attention = config.name == "din"
    if attention:
        network["unit"] = unit_layers_of("sigmoid", params["activation_unit"], {})
    return oracles.released(
        samples, RELEASED_SCHEMA, f64(variables["tables"]), network, attention=attention
    )


def close(found, expected, rtol=1e-4, atol=2e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def check_activation_weights(aux, batch, expected):
    for name, weights in expected.items():
        flat = [w for of_sample in weights for w in of_sample]
        found = np.asarray(aux["activation_weights"][name])
        close(found[: len(flat)], flat)
        np.testing.assert_array_equal(found[len(flat) :], 0)
        assert len(found) == len(batch.sequences[name].segment_ids)


# Against the oracles


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("train", [True, False])
def test_paper_models_match_the_oracle(name, train):
    for seed in range(3):
        samples, batch, variables = setup(name, seed)
        logits, aux = case(name).forward(variables, batch)[train]
        expected = paper_oracle(name, samples, variables, train)
        assert logits.shape == (SIZES.samples, 2)
        close(logits[:REAL], expected["logits"])
        for sequence in SCHEMA.sequences:
            found = aux["interest"][sequence.name][:REAL]
            close(found, expected["interest"][sequence.name])
        check_activation_weights(aux, batch, expected["weights"])


@pytest.mark.parametrize("name", LR)
def test_logistic_regression_matches_the_oracle(name):
    for seed in range(3):
        samples, batch, variables = setup(name, seed)
        for logits, _ in case(name).forward(variables, batch).values():
            close(logits[:REAL], lr_logits(name, samples, variables))


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("train", [True, False])
def test_released_code_matches_the_oracle(name, train):
    for seed in range(3):
        samples, batch, variables = setup(name, seed)
        logits, aux = case(name).forward(variables, batch)[train]
        expected = released_oracle(name, samples, variables)
        close(logits[:REAL, 1], expected["logit"])
        np.testing.assert_array_equal(logits[:, 0], 0)
        close(aux["interest"]["history"][:REAL], expected["interest"])
        if case(name).config.name == "din":
            check_activation_weights(aux, batch, {"history": expected["weights"]})


@pytest.mark.parametrize("name", ["base mean", "din extras"])
def test_moving_averages_match_the_oracle(name):
    samples, batch, variables = setup(name, 3)
    (_, (_, stats)), _ = case(name).trains(variables, batch)
    entered = paper_oracle(name, samples, variables, train=True)["entered"]
    compared = 0
    for part, layers in entered.items():
        path = ("Head_0", "mlp") if part == "mlp" else (f"activation_unit_{part}",)
        old, new = variables["batch_stats"], stats
        for key in path:
            old, new = old.get(key, {}), new.get(key, {})
        for i, rows in enumerate(layers if new else []):
            mean, variance = oracles.mean_and_variance(rows)
            for statistic, batch_value in ("mean", mean), ("variance", variance):
                before = f64(old[f"activation_{i}"][statistic])
                after = new[f"activation_{i}"][statistic]
                close(after, 0.8 * before + 0.2 * batch_value)
                compared += 1
    assert compared == len(jax.tree.leaves(stats)) > 0


GRADIENTS = [
    "base mean",
    "din extras",
    "din blocks",
    "lr mean",
    "wide_deep",
    "pnn inner",
    "pnn outer",
    "deepfm",
    "deepfm extras",
]


@pytest.mark.parametrize("name", GRADIENTS)
def test_loss_and_gradient_match_the_oracle(name):
    # Every parameter and table moves at once in random directions; what the oracle's loss changes
    # by is the gradient's product with the direction.
    samples, batch, variables = setup(name, 4)
    (loss, _), grads = case(name).trains(variables, batch)
    labels = [s["label"] for s in samples]

    def oracle_loss(trained):
        if name in LR:
            logits = lr_logits(name, samples, {**variables, **trained})
        else:
            logits = paper_oracle(name, samples, {**variables, **trained}, train=True)["logits"]
        return oracles.negative_log_likelihood(logits, labels)

    trained = f64({k: variables[k] for k in ("params", "tables")})
    np.testing.assert_allclose(loss, oracle_loss(trained), rtol=1e-5)
    rng = np.random.default_rng(5)
    for _ in range(4):
        way = jax.tree.map(lambda x: rng.standard_normal(x.shape), trained)
        up, down = (
            oracle_loss(jax.tree.map(lambda x, d, h=h: x + h * d, trained, way))
            for h in (1e-6, -1e-6)
        )
        found = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, way)), strict=True))
        np.testing.assert_allclose(found, (up - down) / 2e-6, rtol=1e-3, atol=1e-4)


def test_item_bias_adds_to_the_click_alone():
    _, batch, variables = setup("din extras", 6)
    shifted = {**variables, "tables": {**variables["tables"]}}
    shifted["tables"][ITEM_BIAS] = variables["tables"][ITEM_BIAS] + np.float32(1)
    before = scores("din extras", variables, batch)
    after = scores("din extras", shifted, batch)
    close(after[:REAL] - before[:REAL], np.tile([0, 1], (REAL, 1)))


# What is left without a model's own part


@pytest.mark.parametrize("name", ["wide_deep", "pnn inner", "pnn outer", "deepfm"])
def test_model_without_its_part_is_base_bit_for_bit(name, monkeypatch):
    if name == "deepfm":  # its products have no parameters of their own
        monkeypatch.setattr(deepfm, "pairwise", lambda vectors: jnp.zeros(len(vectors[0])))
    # A case of its own: compiled after the part was taken out.
    alone = case.__wrapped__(name)
    config = alone.config.copy_and_resolve_references()
    config.name = "base"
    base = case.__wrapped__(name, config=config)
    _, batch, variables = setup(name, 21)
    params, tables = jax.tree.map(np.array, (variables["params"], variables["tables"]))
    if name.startswith("pnn"):
        params["Head_0"]["mlp"]["products"]["kernel"] *= 0
    for table in tables:
        if table.endswith(("-weight", "-cross")):
            tables[table] *= 0
    variables = {**variables, "params": params, "tables": tables}
    one, two = alone.forward(variables, batch), base.forward(variables, batch)
    for train in (True, False):
        np.testing.assert_array_equal(one[train][0], two[train][0])
    # It is there: with other weights the logits are others.
    with_part = case(name).forward(setup(name, 21)[2], batch)[False][0]
    assert (np.asarray(with_part) != np.asarray(one[False][0]))[:REAL].any()


@examples
@given(seeds, st.integers(2, 6), st.integers(1, 5))
def test_pairwise_products_in_f_steps_are_those_of_all_pairs(seed, groups, dim):
    rng = np.random.default_rng(seed)
    vectors = [rng.standard_normal((4, dim)).astype(np.float32) for _ in range(groups)]
    expected = [oracles.pair_products([v[i] for v in f64(vectors)]) for i in range(4)]
    close(deepfm.pairwise(vectors), [sum(products) for products in expected], atol=1e-5)
    close(pnn.inner_products(vectors), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["pnn", "deepfm"])
def test_products_need_one_width(name):
    config = default_config().model
    config.name, config.table_dims = name, "goods=4"
    with pytest.raises(DinError, match=r"all tables need one width; found .*goods=4, hour=12"):
        build(SCHEMA, config)


def test_logistic_regression_ranks_ads_alike_whatever_the_history():
    samples, _, variables = setup("lr", 24)
    histories = samples[1]["sequences"], samples[2]["sequences"]
    assert histories[0] != histories[1]
    found = [
        scores(
            "lr",
            variables,
            make_batch([{**s, "sequences": h} for s in samples], SCHEMA, np.random.default_rng(0)),
        )[:REAL, 1]
        for h in histories
    ]
    moved = found[1] - found[0]
    assert abs(moved[0]) > 0.01
    close(moved, np.full(REAL, moved[0]), atol=1e-5)


@pytest.mark.parametrize("key", ["item_bias", "interest_product"])
def test_logistic_regression_names_what_it_does_not_have(key):
    config = default_config().model
    config.name = "lr"
    config[key] = {"item_bias": "goods", "interest_product": True}[key]
    with pytest.raises(DinError, match=f"config.model.{key}"):
        build(SCHEMA, config)


def test_dropped_pairs_depend_on_no_padding():
    samples = draw_samples(np.random.default_rng(25), SCHEMA)
    kept = []
    for sizes in SIZES, LARGER:
        batch = make_batch(samples, SCHEMA, np.random.default_rng(26), sizes)
        found = case("wide_deep").model.lookups(batch)
        dropped = drop_ids(found, jax.random.key(27), 0.5)
        of_sizes = {}
        for table, lookups in found.items():
            for name, at in lookups.items():
                mask = np.asarray(at.mask)
                of_sizes[name] = np.asarray(dropped[table][name].mask)[mask].tolist()
        kept.append(of_sizes)
    assert kept[0] == kept[1]
    assert 0 < np.mean(kept[0]["clicks.tags-cross"]) < 1


def test_shared_buckets_are_counted():
    """A cross of goods in 40 buckets against the pairs of these samples, one by one."""
    parts = [draw_samples(np.random.default_rng(seed), SCHEMA) for seed in range(5)]
    some = [make_batch(part, SCHEMA, np.random.default_rng(22)) for part in parts]
    samples = [sample for part in parts for sample in part]
    config = case("wide_deep").config
    pairs = {
        (b["goods"], s["fields"]["goods"])
        for s in samples
        for b in s["sequences"]["clicks"]
        if b["goods"] and s["fields"]["goods"]
    }
    held = [oracles.bucket(v, a, 11, 40) for v, a in pairs]
    shared = sum(held.count(i) > 1 for i in held)
    assert shared > 0
    tags, shops, goods = notes(some, SCHEMA, config)
    assert tags == "clicks-tags-cross: every pair of ids has a weight of its own"
    assert shops == "visits-shop-cross: every pair of ids has a weight of its own"
    assert f"of {len(pairs)} distinct pairs" in goods
    assert f" {100 * shared / len(pairs):.1f} % share one of 40 buckets" in goods


# Padding, buckets, order


def learns(name, variables, batch):
    """What a train step is made of, and the real samples' logits."""
    (loss, (logits, stats)), grads = case(name).trains(variables, batch)
    return jax.tree.map(
        np.asarray, {"loss": loss, "stats": stats, "grads": grads, "logits": logits[:REAL]}
    )


def scores(name, variables, batch):
    return np.asarray(case(name).forward(variables, batch)[False][0])


SOME = [
    "base mean",
    "din extras",
    "din blocks",
    "lr mean",
    "wide_deep",
    "pnn inner",
    "deepfm",
    "released din dice",
]


@pytest.mark.parametrize("name", SOME)
@examples
@given(seeds)
def test_content_of_padding_changes_nothing(name, seed):
    samples, batch, variables = setup(name, 7)
    schema = schema_of(name)
    other = make_batch(samples, schema, np.random.default_rng(seed))
    one, two = learns(name, variables, batch), learns(name, variables, other)
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SOME)
def test_bucket_size_changes_nothing_but_rounding(name):
    for seed in 8, 9:
        samples, batch, variables = setup(name, seed)
        schema = schema_of(name)
        other = make_batch(samples, schema, np.random.default_rng(seed), LARGER)
        one, two = learns(name, variables, batch), learns(name, variables, other)
        for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
            close(a, b, atol=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_rows_outside_the_batch_have_no_gradient(name):
    samples, batch, variables = setup(name, 10)
    schema = schema_of(name)
    grads = learns(name, variables, batch)["grads"]["tables"]
    present = {table: set() for table in grads}
    for sample in samples:
        behaviors = [(s, b) for s in schema.sequences for b in sample["sequences"][s.name]]
        found = [(f.table, sample["fields"][f.name]) for f in schema.fields if f.table in grads]
        found += [(f.table, b[f.name]) for s, b in behaviors for f in s.fields]
        found += [
            (f"{f.name}-weight", sample["fields"][f.name])
            for f in schema.fields
            if f"{f.name}-weight" in grads
        ]
        found += [
            (f"{s.name}-{f.name}-weight", b[f.name])
            for s, b in behaviors
            for f in s.fields
            if f"{s.name}-{f.name}-weight" in grads
        ]
        most = case(name).config.wide.ad_values
        found += [
            (table, oracles.crossed(sample, schema, table, buckets, most))
            for table, buckets in crosses_of(name).items()
        ]
        for table, ids in found:
            if table in grads:
                present[table] |= {ids} if isinstance(ids, int) else set(ids)
    if ITEM_BIAS in grads:
        bias = case(name).config.item_bias or schema.sequences[0].fields[0].ad
        present[ITEM_BIAS] = {s["fields"][bias] for s in samples}
    absent = 0
    for table, grad in grads.items():
        for row in range(len(grad)):
            assert (row in present[table]) == bool(grad[row].any()), (table, row)
            absent += row not in present[table]
    assert absent > 0


@pytest.mark.parametrize("name", SOME)
def test_batch_of_empty_histories_is_finite(name):
    samples, batch, variables = setup(name, 11, empty=True)
    found = learns(name, variables, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    if name.startswith("released"):
        close(found["logits"][:, 1], released_oracle(name, samples, variables)["logit"])
        return
    if name in LR:
        close(found["logits"], lr_logits(name, samples, variables))
        return
    close(found["logits"], paper_oracle(name, samples, variables, train=True)["logits"])
    for part in found["stats"]:
        if part != "Head_0":  # no behaviour, nothing to average
            for a, b in zip(
                *map(jax.tree.leaves, (found["stats"][part], variables["batch_stats"][part])),
                strict=True,
            ):
                np.testing.assert_array_equal(a, b)


def test_batch_without_a_real_sample_is_finite():
    samples, _, variables = setup("din extras", 12)
    batch = make_batch(samples[:0], SCHEMA, np.random.default_rng(12))
    found = learns("din extras", variables, batch)
    assert found["loss"] == 0
    assert all((x == 0).all() for x in jax.tree.leaves(found["grads"]))
    for a, b in zip(*map(jax.tree.leaves, (found["stats"], variables["batch_stats"])), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SOME)
@examples
@given(st.permutations(range(REAL)))
def test_order_of_samples_permutes_the_logits(name, order):
    samples, batch, variables = setup(name, 13)
    schema = schema_of(name)
    rng = np.random.default_rng(14)
    other = make_batch([samples[i] for i in order], schema, rng)
    one, two = learns(name, variables, batch), learns(name, variables, other)
    close(two.pop("logits"), one.pop("logits")[list(order)], atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        close(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["base sum", "din prelu", "released din sigmoid"])
@examples
@given(st.integers(0, REAL - 1), seeds)
def test_order_of_behaviours_changes_nothing(name, which, seed):
    samples, batch, variables = setup(name, 15)
    schema = schema_of(name)
    rng = np.random.default_rng(seed)
    shuffled = {
        k: [history[i] for i in rng.permutation(len(history))]
        for k, history in samples[which]["sequences"].items()
    }
    other = [*samples[:which], {**samples[which], "sequences": shuffled}, *samples[which + 1 :]]
    one = scores(name, variables, batch)
    two = scores(name, variables, make_batch(other, schema, rng))
    close(two[:REAL], one[:REAL], atol=1e-5)


@pytest.mark.parametrize("name", ["din extras", "released din dice"])
def test_score_of_a_sample_does_not_depend_on_the_others(name):
    samples, batch, variables = setup(name, 16)
    schema = schema_of(name)
    together = scores(name, variables, batch)
    for i, sample in enumerate(samples):
        alone = make_batch([sample], schema, np.random.default_rng(i))
        close(scores(name, variables, alone)[0], together[i], atol=1e-5)


def test_model_over_mapped_axis_is_the_model_over_all_samples():
    # Four samples and two, and in the second part no behaviour at all in one sequence.
    samples, _, variables = setup("din extras", 17)
    samples = [
        {**s, "sequences": {**s["sequences"], "visits": s["sequences"]["visits"] if i < 4 else []}}
        for i, s in enumerate(samples)
    ]
    rng = np.random.default_rng(18)
    together = learns("din extras", variables, make_batch(samples, SCHEMA, rng))
    parts = [make_batch(part, SCHEMA, rng) for part in (samples[:4], samples[4:])]
    mapped = case("din extras", "devices").trains(
        variables, jax.tree.map(lambda *x: np.stack(x), *parts)
    )
    (loss, (logits, stats)), grads = mapped
    close(loss.sum(), together["loss"])
    close(np.concatenate([logits[0, :4], logits[1, :2]]), together["logits"])
    for a, b in zip(*map(jax.tree.leaves, (stats, together["stats"])), strict=True):
        close(a, np.stack([b, b]))
    for a, b in zip(*map(jax.tree.leaves, (grads, together["grads"])), strict=True):
        close(a.sum(0), b)


# Tables and lookups


def test_paper_tables_begin_normal_and_with_a_zero_row():
    config = default_config().model
    config.update_from_flattened_dict(
        {"embedding_dim": 7, "embedding_stddev": 0.25, "item_bias": "a"}
    )
    config.table_dims = "big=3"
    schema = Schema(
        (Table("big", 4000), Table("small", 600)),
        (Field("a", "big", "ad"), Field("b", "small", "user")),
        (),
    )
    tables = init_tables(build(schema, config).tables, jax.random.key(1))
    shapes = {"big": (4000, 3), "small": (600, 7), ITEM_BIAS: (4000, 1)}
    assert {k: v.shape for k, v in tables.items()} == shapes
    np.testing.assert_array_equal(tables.pop(ITEM_BIAS), 0)
    for table in tables.values():
        np.testing.assert_array_equal(table[0], 0)
        assert np.all(np.asarray(table[1:]) != 0)
        assert abs(np.std(table[1:]) - 0.25) < 0.02


def test_released_tables_begin_uniform_and_with_a_zero_row():
    specs = case("released din dice").model.tables
    tables = init_tables(specs, jax.random.key(0))
    assert tables.keys() == {"item", "category", ITEM_BIAS}
    np.testing.assert_array_equal(tables.pop(ITEM_BIAS), 0)
    for name, table in tables.items():
        rows, dim = specs[name].rows, specs[name].dim
        assert table.shape == (rows, dim) == (RELEASED_SCHEMA.rows(name), 3)
        np.testing.assert_array_equal(table[0], 0)
        # Glorot's bound; a table this small comes near it, and no normal draw would stay within.
        largest = np.abs(table[1:]).max() / np.sqrt(6 / (rows + dim))
        assert 0.8 < largest <= 1


@pytest.mark.parametrize("extra", [False, True])
def test_optional_field_has_a_table_only_where_it_is_an_input(extra):
    config = default_config().model
    config.extra_fields = ("user_id",) if extra else ()
    model = build(SCHEMA, config)
    _, batch, _ = setup("din dice", 19)
    assert ("user" in model.tables) == extra
    assert ("user" in model.lookups(batch)) == extra


@examples
@given(seeds)
def test_masked_ids_give_nothing_to_the_table(seed):
    rng = np.random.default_rng(seed)
    table, g = (rng.standard_normal((n, 3)).astype(np.float32) for n in (6, 16))
    mask = rng.random(16) < 0.6
    ids = np.where(mask, rng.integers(0, 6, 16), garbage(rng, 16)).astype(np.int32)
    out, pull = jax.vjp(lambda t: lookup(t, Lookup(ids, mask)), jnp.asarray(table))
    expected, gradient = np.zeros((16, 3)), np.zeros((6, 3))
    for i in range(16):
        if mask[i]:
            expected[i] = table[ids[i]]
            gradient[ids[i]] += g[i]
    np.testing.assert_array_equal(out, expected.astype(np.float32))
    close(pull(jnp.asarray(g))[0], gradient, atol=1e-6)


@pytest.mark.parametrize("name", ["din extras", "base sum"])
def test_lookups_mask_all_padding(name):
    samples, batch, _ = setup(name, 20)
    for lookups in case(name).model.lookups(batch).values():
        for where, found in lookups.items():
            assert found.ids.shape == found.mask.shape
            name_of, _, inner = where.partition(".")
            if inner:
                ids = [b[inner] for s in samples for b in s["sequences"][name_of]]
            else:
                bias = case(name).config.item_bias
                ids = [s["fields"][bias if where == ITEM_BIAS else where] for s in samples]
            if isinstance(ids[0], list):
                ids = [i for several in ids for i in several]
            assert np.asarray(found.ids)[np.asarray(found.mask)].tolist() == ids


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_released_code_names_the_activations_it_has(activation):
    config = default_config().model
    config.update(preset="released_code", activation=activation)
    with pytest.raises(DinError, match="'sigmoid' or 'dice'"):
        build(RELEASED_SCHEMA, config)


def test_released_code_refuses_a_schema_with_more_than_ads_and_one_history():
    config = default_config().model
    config.update(preset="released_code", activation="sigmoid")
    with pytest.raises(DinError, match="one behaviour sequence"):
        build(SCHEMA, config)
