"""Models with numeric fields: against the oracles, and what the fields add."""

import dataclasses
import functools

import jax
import numpy as np
import oracles
import pytest
from compiling import quick_jit
from model_batches import NUMERIC_SCHEMA, REAL, RELEASED_SCHEMA, make_batch
from model_cases import NUMERIC, apply, close, f64, model_of, oracle, setup, training

from din_jax.config import default_config
from din_jax.data.schema import NumericField
from din_jax.errors import DinError
from din_jax.models.registry import build_model

LEARNED = ("numeric deepfm", "numeric din")  # between them they have all parameters of numbers
numeric = pytest.mark.parametrize("name", NUMERIC)


@functools.cache
def program(name):
    """variables, batch → (logits, aux), and of `LEARNED` (loss, gradients), else nothing."""
    model = model_of(name)

    def run(variables, batch):
        if name not in LEARNED:
            return apply(model, variables, batch, train=False), ()
        (loss, (logits, aux, _)), gradients = training(model)(variables, batch)
        return (logits, aux), (loss, gradients)

    return quick_jit(run)


@numeric
@pytest.mark.parametrize("seed", range(2))
def test_models_of_numbers_match_the_oracle(name, seed):
    samples, batch, variables = setup(name, seed)
    (logits, aux), _ = program(name)(variables, batch)
    expected = oracle(name, samples, variables, train=False)
    close(logits[:REAL], expected["logits"])
    for sequence, interest in expected.get("interest", {}).items():
        close(aux["interest"][sequence][:REAL], interest)


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_with_missing_numbers_match_the_oracle(name):
    samples, batch, variables = setup(name, 2)
    assert any(s["fields"]["price"] is None for s in samples)
    _, (_, gradients) = program(name)(variables, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    labels = [s["label"] for s in samples]
    weights = f64({k: variables[k] for k in ("params", "tables")})
    rng = np.random.default_rng(3)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), weights)

    def loss_at(step):
        moved = jax.tree.map(lambda x, d: x + step * d, weights, direction)
        logits = oracle(name, samples, {**variables, **moved}, train=True)["logits"]
        return oracles.negative_log_likelihood(logits, labels)

    pairs = zip(*map(jax.tree.leaves, (gradients, direction)), strict=True)
    slope = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    np.testing.assert_allclose(sum(np.vdot(g, d) for g, d in pairs), slope, rtol=1e-3, atol=1e-4)


@numeric
def test_numbers_in_padding_change_nothing(name):
    samples, batch, variables = setup(name, 4)
    other = make_batch(samples, NUMERIC_SCHEMA, np.random.default_rng(5))
    ((one, _), learned), ((two, _), same) = (program(name)(variables, b) for b in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, (one[:REAL], learned), (two[:REAL], same))


def test_a_model_has_the_parameters_that_it_uses():
    """Of the context's and the user's numbers only products need a vector."""
    vectors = {"wide_deep": ["price", "rank"], "pnn": ["price", "rank", "wait", "years"]}
    for name, fields in vectors.items():
        _, _, variables = setup(f"numeric {name}", 0)
        found = {k: v.shape for k, v in variables["params"]["number_vectors"].items()}
        assert found == {f"of_{field}": (2, 3) for field in fields}
        assert ("number_weights" in variables["params"]) == (name == "wide_deep")
    _, _, variables = setup("numeric lr", 0)
    # Four numbers of a sample and three of behaviours.
    assert variables["params"]["number_weights"]["kernel"].shape == (2 * 7, 1)


def test_numbers_can_be_left_out():
    config = default_config().model
    config.without = ("price", "wait")
    schema = build_model(NUMERIC_SCHEMA, config).module.options.schema
    assert [n.name for n in schema.numbers] == ["rank", "years"]
    assert [[n.name for n in s.numbers] for s in schema.sequences] == [["rank"], []]
    config.without = ("cost",)
    with pytest.raises(DinError, match=r"'cost'; .* numeric fields are: wait, rank, years, price"):
        build_model(NUMERIC_SCHEMA, config)


def test_products_with_numbers_need_one_width():
    config = default_config().model
    config.name, config.table_dims = "deepfm", "goods=4,shop=4"
    with pytest.raises(DinError, match="goods=4, shop=4, numeric fields=12"):
        build_model(NUMERIC_SCHEMA, config)


def test_released_code_refuses_numbers():
    config = default_config().model
    config.update(preset="released_code", activation="sigmoid")
    schema = dataclasses.replace(RELEASED_SCHEMA, numbers=(NumericField("price", "ad"),))
    with pytest.raises(DinError, match="no numeric fields; the data set has: price"):
        build_model(schema, config)
    config.without = ("price",)
    build_model(schema, config)
