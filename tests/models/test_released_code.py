import re

import jax
import numpy as np
import pytest
from compiling import quick_jit
from model_batches import RELEASED_SCHEMA, SCHEMA
from model_cases import model_of

from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.models.features import ITEM_BIAS
from din_jax.models.registry import build_model
from din_jax.nn.embedding import init_tables


def test_released_tables_begin_uniform_and_with_a_zero_row():
    specs = model_of("released din dice").tables
    tables = quick_jit(lambda key: init_tables(specs, key))(jax.random.key(0))
    assert tables.keys() == {"item", "category", ITEM_BIAS}
    np.testing.assert_array_equal(tables.pop(ITEM_BIAS), 0)
    for name, table in tables.items():
        rows, dim = specs[name].rows, specs[name].dim
        assert table.shape == (rows, dim) == (RELEASED_SCHEMA.rows(name), 3)
        np.testing.assert_array_equal(table[0], 0)
        # Glorot's bound; a table this small comes near it, and no normal draw would stay within.
        largest = np.abs(table[1:]).max() / np.sqrt(6 / (rows + dim))
        assert 0.8 < largest <= 1


@pytest.mark.parametrize("activation", ["prelu", "relu"])
def test_released_code_names_the_activations_it_has(activation):
    config = default_config().model
    config.update(preset="released_code", activation=activation)
    with pytest.raises(DinError, match="'sigmoid' or 'dice'"):
        build_model(RELEASED_SCHEMA, config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pooling", "mean"),
        ("item_bias", "item"),
        ("bias_fields", ("item",)),
        ("match_counts", True),
        ("intensity", True),
        ("embedding_init", "width"),
        ("attention.outer", True),
        ("attention.normalize", "softmax"),
        ("attention.bias_init", 1.0),
        ("attention.position", True),
        ("attention.age", True),
        ("attention.match", True),
    ],
)
def test_released_code_names_what_it_has_no_choice_of(key, value):
    config = default_config().model
    config.update(preset="released_code", activation="sigmoid")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(DinError, match=rf"config.model.{key}={re.escape(repr(value))}: .* fixes"):
        build_model(RELEASED_SCHEMA, config)


def test_released_code_refuses_a_schema_with_more_than_ads_and_one_history():
    config = default_config().model
    config.update(preset="released_code", activation="sigmoid")
    with pytest.raises(DinError, match="one behaviour sequence"):
        build_model(SCHEMA, config)
