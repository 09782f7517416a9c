import jax
import numpy as np
import pytest
from compiling import quick_jit
from model_batches import SCHEMA, draw_samples, make_batch

from din_jax.config import default_config
from din_jax.data.schema import Field, Schema, Table
from din_jax.models.features import ITEM_BIAS, bias_table
from din_jax.models.registry import build_model
from din_jax.nn.embedding import init_tables


@pytest.mark.parametrize(("how", "power"), [("constant", 0), ("width", 0.5)])
def test_tables_begin_normal_and_with_a_zero_row(how, power):
    config = default_config().model
    config.update_from_flattened_dict(
        {"embedding_dim": 7, "embedding_stddev": 0.25, "embedding_init": how, "item_bias": "a"}
    )
    config.bias_fields = ("b", "b")
    config.table_dims = "big=3"
    schema = Schema(
        (Table("big", 4000), Table("small", 600)),
        (Field("a", "big", "ad"), Field("b", "small", "user")),
        (),
    )
    specs = build_model(schema, config).tables
    tables = quick_jit(lambda key: init_tables(specs, key))(jax.random.key(1))
    shapes = {"big": (4000, 3), "small": (600, 7), ITEM_BIAS: (4000, 1), bias_table("b"): (600, 1)}
    assert {k: v.shape for k, v in tables.items()} == shapes
    for bias in (ITEM_BIAS, bias_table("b")):
        assert not specs[bias].decayed
        np.testing.assert_array_equal(tables.pop(bias), 0)
    for table in tables.values():
        np.testing.assert_array_equal(table[0], 0)
        assert np.all(table[1:] != 0)
        width = table.shape[1] ** power
        assert abs(np.std(table[1:]) * width - 0.25) < 0.02


@pytest.mark.parametrize("extra", [False, True])
def test_optional_field_has_a_table_only_where_it_is_an_input(extra):
    config = default_config().model
    config.extra_fields = ("user_id",) if extra else ()
    model = build_model(SCHEMA, config)
    rng = np.random.default_rng(19)
    batch = make_batch(draw_samples(rng, SCHEMA), SCHEMA, rng)
    assert ("user" in model.tables) == extra
    assert ("user" in model.lookups(batch)) == extra
