"""Weights of a multi-hot field's ids in the schema and the store."""

import dataclasses
import json

import numpy as np
import pytest
from small_stores import RAGGED, RAGGED_COLUMNS, write_ragged

from din_jax.data.schema import Field, Schema
from din_jax.data.store import Store
from din_jax.errors import DinError

ITEM, TAGS = RAGGED.fields
WEIGHTED = dataclasses.replace(RAGGED, fields=(ITEM, dataclasses.replace(TAGS, weighted=True)))


def test_a_store_with_weights_has_a_later_version(tmp_path):
    write_ragged(tmp_path / "plain")
    weights = np.float32([0.5, -2])
    write_ragged(tmp_path / "weighted", WEIGHTED, **{"fields/tags.weights": weights})
    np.testing.assert_array_equal(
        Store(tmp_path / "weighted").column("fields/tags.weights"), weights
    )
    assert Store(tmp_path / "weighted").schema == WEIGHTED
    texts = [(tmp_path / name / "schema.json").read_text() for name in ("plain", "weighted")]
    assert [json.loads(text)["version"] for text in texts] == [1, 2]
    assert "weighted" not in texts[0]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.float32([1]), "has 1 entries, expected 2"),
        (np.float32([1, np.nan]), r"tags.weights\[1\] is nan, expected a finite number$"),
        (np.array([1, 2]), "holds int64, expected float32$"),
        (None, "columns missing: fields/tags.weights"),
    ],
)
def test_weights_are_finite_numbers_of_each_id(tmp_path, weights, message):
    columns = {} if weights is None else {"fields/tags.weights": weights}
    assert len(RAGGED_COLUMNS["fields/tags"]) == 2
    with pytest.raises(DinError, match=message):
        write_ragged(tmp_path / "store", WEIGHTED, **columns)


def test_a_field_of_one_id_has_no_weight():
    with pytest.raises(DinError, match="'item' is weighted, but has one id"):
        Schema(RAGGED.tables, (Field("item", "item", "ad", weighted=True),), ())
