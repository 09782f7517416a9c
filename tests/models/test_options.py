"""What the options beyond the paper add to a model; `model_cases` has them against the oracles."""

import jax
import numpy as np
import pytest
from compiling import quick_jit
from model_batches import REAL, SCHEMA, draw_samples, make_batch
from option_oracles import has_id_of_ad

from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.models.din import _matches
from din_jax.models.features import bias_table
from din_jax.models.registry import build_model
from din_jax.nn.embedding import init_tables
from din_jax.optim.regularizer import decayed_tables, drop_ids

# The unit of "clicks" has two fields, that of "visits" one.
UNITS = ("activation_unit_clicks", "activation_unit_visits")
ADDED = {
    "match_counts": {"Head_0/mlp/products/kernel": (5 + 3, 6)},
    "intensity": {"Head_0/mlp/products/kernel": (2 + 2, 6)},
    "attention.position": {f"{unit}/code_0": (16, 5) for unit in UNITS},
    "attention.age": {f"{unit}/code_0": (32, 5) for unit in UNITS},
    "attention.match": {
        f"{UNITS[0]}/code_0": (1, 5),
        f"{UNITS[0]}/code_1": (1, 5),
        f"{UNITS[1]}/code_0": (1, 5),
    },
    "attention.normalize": {},
    "attention.bias_init": {},
    "embedding_init": {},
}
VALUES = {"attention.normalize": "softmax", "attention.bias_init": 1.0, "embedding_init": "width"}


def batch_and_samples(seed):
    """Of most samples the ad is the good that was visited first."""
    rng = np.random.default_rng(seed)
    samples = draw_samples(rng, SCHEMA)
    for sample in samples:
        for behavior in sample["sequences"]["clicks"][:1]:
            sample["fields"]["goods"] = behavior["goods"]
    return make_batch(samples, SCHEMA, rng), samples


def model_of(**options):
    config = default_config().model
    config.embedding_dim, config.hidden, config.attention.hidden = 3, (6,), (5,)
    config.update_from_flattened_dict(options)
    return build_model(SCHEMA, config)


def parameters(**options):
    """{path: shape} of a DIN with these options."""
    model, (batch, _) = model_of(**options), batch_and_samples(0)

    def init(key):
        tables = init_tables(model.tables, key)
        return model.module.init(key, tables, model.lookups(batch), batch, train=False)["params"]

    shapes = jax.eval_shape(init, jax.random.key(0))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def test_without_options_a_model_has_the_parameters_of_the_paper():
    unit = {"kernel": (3 * 6, 5), "bias": (5,), "activation_0/alpha": (5,)}
    unit |= {"output/kernel": (5, 1), "output/bias": (1,)}
    mlp = {"hidden_0/kernel": (9 * 3, 6), "hidden_0/bias": (6,), "activation_0/alpha": (6,)}
    mlp |= {"output/kernel": (6, 2), "output/bias": (2,)}
    expected = {f"{UNITS[0]}/{k}": v for k, v in unit.items()}
    expected |= {f"{UNITS[1]}/{k}": v for k, v in unit.items()} | {f"{UNITS[1]}/kernel": (9, 5)}
    expected |= {f"Head_0/mlp/{k}": v for k, v in mlp.items()}
    assert parameters() == expected
    assert model_of().tables.keys() == {"goods", "shop", "tag", "age", "hour"}


@pytest.mark.parametrize("key", ADDED)
def test_an_option_adds_its_parameters_and_no_others(key):
    assert parameters(**{key: VALUES.get(key, True)}) == parameters() | ADDED[key]


# Biases of fields


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bias_fields": ("good",)}, r"names 'good'; the data set's fields are: hour, goods, age"),
        (
            {"bias_fields": ("goods", "shop"), "without": ("shop",)},
            r"names 'shop'; .* fields that config.model.without leaves are: hour, goods, age, tags",
        ),
    ],
)
def test_a_bias_of_a_field_that_is_not_there_is_refused(keys, message):
    with pytest.raises(DinError, match=f"config.model.bias_fields {message}"):
        model_of(**keys)


def test_a_bias_needs_no_input_of_its_field_and_is_not_decayed():
    model = model_of(bias_fields=("user_id", "tags", "user_id"))
    assert model.module.options.bias_fields == ("user_id", "tags")
    assert "user" not in model.tables
    assert bias_table("user_id") in model.tables and bias_table("tags") in model.tables
    assert set(decayed_tables(model)) == {"goods", "shop", "tag", "age", "hour"}


def test_a_field_named_twice_has_one_bias():
    tables = {"user_id": 3.0, "tags": 5.0}
    batch, samples = batch_and_samples(3)

    @quick_jit
    def run(batch):
        logits = []
        for fields in (), ("user_id", "tags", "user_id"):
            model = model_of(name="base", bias_fields=fields)
            key = jax.random.key(0)
            values = init_tables(model.tables, key)
            for field in dict.fromkeys(fields):
                values[bias_table(field)] = values[bias_table(field)] + tables[field]
            variables = model.module.init(key, values, model.lookups(batch), batch, train=False)
            out, _ = model.module.apply(variables, values, model.lookups(batch), batch, train=False)
            logits.append(out)
        return logits

    without, with_biases = run(batch)
    expected = [[0, 3 + 5 * sum(s["fields"]["tags"].weights)] for s in samples]
    np.testing.assert_allclose((with_biases - without)[:REAL], expected, atol=1e-4)


# Dropout


def dropped_lookups(behaviors_only):
    model, (batch, samples) = model_of(bias_fields=("goods", "tags")), batch_and_samples(4)

    @quick_jit
    def run(key):
        before = model.lookups(batch)
        return before, [
            drop_ids(before, jax.random.fold_in(key, i), 0.5, behaviors_only=behaviors_only)
            for i in range(3)
        ]

    before, after = run(jax.random.key(5))
    return batch, samples, before, after


def test_an_id_is_dropped_with_its_bias():
    _, _, before, after = dropped_lookups(behaviors_only=False)
    for field, table in ("goods", "goods"), ("tags", "tag"):
        for lookups in after:
            of_bias, of_input = lookups[bias_table(field)][field], lookups[table][field]
            np.testing.assert_array_equal(of_bias.mask, of_input.mask)
        masks = [lookups[table][field].mask.sum() for lookups in after]
        assert 0 < sum(masks) < 3 * before[table][field].mask.sum()


@pytest.mark.parametrize("behaviors_only", [False, True])
def test_a_match_needs_both_ids_and_is_scaled_like_vectors(behaviors_only):
    """Of one-hot fields, whose masks tell which behaviour and which ad is left."""
    batch, samples, before, after = dropped_lookups(behaviors_only)
    scale = 2.0 if behaviors_only else 4.0
    changed = 0
    for sequence in SCHEMA.sequences:
        of_samples = [row for s in samples for row in has_id_of_ad(s, sequence)]
        owners = np.asarray(batch.sequences[sequence.name].segment_ids)[: len(of_samples)]
        for lookups, by in [(before, 1.0), *((lookups, scale) for lookups in after)]:
            found = _matches(sequence, batch, lookups)
            for i, field in enumerate(sequence.fields):
                if field.multi_hot:
                    continue
                visited = lookups[field.table][f"{sequence.name}.{field.name}"].mask
                kept = visited[: len(owners)] & lookups[field.table][field.ad].mask[owners]
                expected = by * np.array([row[i] for row in of_samples]) * kept
                np.testing.assert_array_equal(found[i][: len(owners)], expected)
                np.testing.assert_array_equal(found[i][len(owners) :], 0)
                changed += int(sum(row[i] for row in of_samples) > (expected > 0).sum())
    assert changed > 0
