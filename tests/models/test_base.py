"""Models that add a part to the base model are the base model without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_batches import REAL, SCHEMA, draw_samples, make_batch
from model_cases import forward

from din_jax.config import default_config
from din_jax.models import deepfm
from din_jax.models.registry import build_model

PARTS = {
    "wide_deep": {"name": "wide_deep", "wide.buckets": 40},
    "pnn inner": {"name": "pnn"},
    "pnn outer": {"name": "pnn", "pnn.product": "outer"},
    "deepfm": {"name": "deepfm"},
}


def build(options):
    config = default_config().model
    config.embedding_dim = 3
    config.hidden = (6, 4)
    config.update_from_flattened_dict(options)
    return build_model(SCHEMA, config)


@pytest.fixture(scope="module")
def base():
    return forward(build({"name": "base"}))


def draw_variables(model, batch, rng):
    tables = {
        k: rng.standard_normal((s.rows, s.dim)).astype(np.float32) for k, s in model.tables.items()
    }
    shapes = jax.eval_shape(
        lambda key, tables, batch: model.module.init(
            key, tables, model.lookups(batch), batch, train=False
        ),
        jax.random.key(0),
        tables,
        batch,
    )
    weights = jax.tree.map(
        lambda x: np.abs(rng.standard_normal(x.shape)).astype(np.float32) + 0.1, shapes
    )
    return {**weights, "tables": tables}


@pytest.mark.parametrize("name", PARTS)
def test_model_without_its_part_is_base_bit_for_bit(name, base, monkeypatch):
    rng = np.random.default_rng(21)
    batch = make_batch(draw_samples(rng, SCHEMA), SCHEMA, rng)
    model = build(PARTS[name])
    variables = draw_variables(model, batch, rng)
    without = jax.tree.map(np.array, variables)
    if name.startswith("pnn"):
        without["params"]["Head_0"]["mlp"]["products"]["kernel"] *= 0
    for table in without["tables"]:
        if table.endswith(("-weight", "-cross")):
            without["tables"][table] *= 0
    if name == "deepfm":  # its products have no parameters of their own
        monkeypatch.setattr(deepfm, "pairwise", lambda vectors: jnp.zeros(len(vectors[0])))
    run = forward(model)
    without_part, expected = run(without, batch), base(without, batch)
    for mode in "train", "eval":
        np.testing.assert_array_equal(without_part[mode][0], expected[mode][0])
    # It is there: with other weights the logits are others.
    with_part = run(variables, batch)["eval"][0]
    assert (with_part != without_part["eval"][0])[:REAL, 1].all()
