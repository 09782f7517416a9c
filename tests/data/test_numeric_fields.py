"""Numeric fields in the schema, the store and packed batches."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from small_stores import RAGGED, write_ragged

from din_jax.data import columns as columns_module
from din_jax.data.columns import column_names
from din_jax.data.schema import NumericBehaviorField, NumericField, Schema
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.errors import DinError

NUMERIC = dataclasses.replace(
    RAGGED,
    sequences=(
        dataclasses.replace(
            RAGGED.sequences[0], numbers=(NumericBehaviorField("paid", ad="price"),)
        ),
    ),
    numbers=(NumericField("price", "ad"), NumericField("wait", "context")),
)
NUMBERS = {
    "fields/price": np.float32([0.5, np.nan, -3e38]),
    "fields/wait": np.float32([1, 2, 3]),
    "events/history/paid": np.float32([np.nan, 4, 5, 6]),
}


@pytest.fixture(scope="module")
def rich_numbers(rich, tmp_path_factory):
    """The store of `rich` with numbers, a third of them missing."""
    store, rng = rich[0], np.random.default_rng(7)
    views, likes = store.schema.sequences
    paid = NumericBehaviorField("paid", ad="price")
    schema = dataclasses.replace(
        store.schema,
        sequences=(dataclasses.replace(views, numbers=(paid,)), likes),
        numbers=(NumericField("years", "user"), NumericField("price", "ad")),
    )
    path = tmp_path_factory.mktemp("numbers") / "store"
    lengths = {"events/views/paid": len(store.column("events/views/film"))}
    with StoreWriter(path, schema) as writer:
        for name in column_names(store.schema):
            writer.append(name, store.column(name))
        for name in set(column_names(schema)) - set(column_names(store.schema)):
            values = rng.normal(size=lengths.get(name, len(store))).astype(np.float32)
            writer.append(name, np.where(rng.random(len(values)) < 0.3, np.float32("nan"), values))
        for table in schema.tables:
            ids, counts = store.vocabulary(table.name)
            writer.vocabulary(table.name, ids[1:], counts[1:])
        writer.finish({"train": (0, 60), "validation": (60, 75), "test": (75, 90)}, {})
    return Store(path)


def numbers_of(store, samples, max_history=0):
    """(years, price, what was paid in the views) of samples, by the store's columns."""
    paid = []
    for i in samples:
        start, end = (int(store.column(f"sequences/views.{at}")[i]) for at in ("start", "end"))
        start = max(start, end - max_history) if max_history else start
        paid += store.column("events/views/paid")[start:end].tolist()
    return [store.column(f"fields/{name}")[samples] for name in ("years", "price")] + [paid]


def assert_numbers(batch, expected):
    """A batch, of one device, has these numbers, and zeros as padding."""
    held = batch.fields["years"], batch.fields["price"], batch.sequences["views"].fields["paid"]
    for values, numbers in zip(held, expected, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values[: len(numbers)], np.float32(numbers))
        assert not values[len(numbers) :].any()


@pytest.mark.parametrize("max_history", [0, 3])
def test_batches_on_any_devices_have_the_numbers_of_their_samples(rich_numbers, max_history):
    store, options = rich_numbers, {"max_history": max_history, "seed": 2, "steps_per_call": 3}
    one = BatchSource(store, "train", 8, **options)
    two = BatchSource(store, "train", 8, shards=Shards(2, range(2)), **options)
    assert len(one) == 8  # the last has four samples
    for i in range(len(one)):
        samples = one.samples_of(i)
        assert_numbers(one[i], numbers_of(store, samples, max_history))
        for m in (0, 1):
            local = jax.tree.map(lambda leaf, m=m: leaf[m], two[i])
            of_device = samples[4 * m : 4 * m + 4]
            assert_numbers(local, numbers_of(store, of_device, max_history))


def test_all_else_of_a_batch_is_that_of_a_store_without_numbers(rich, rich_numbers):
    without, batch = (BatchSource(store, "train", 8)[0] for store in (rich[0], rich_numbers))
    for name in ("years", "price"):
        batch.fields.pop(name)
    batch.sequences["views"].fields.pop("paid")
    jax.tree.map(np.testing.assert_array_equal, batch, without)


# The schema


def test_a_schema_with_numbers_survives_json():
    assert Schema.from_json(json.loads(json.dumps(NUMERIC.to_json()))) == NUMERIC
    assert "numbers" not in json.dumps(RAGGED.to_json())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numbers": (NumericField("item", "ad"),)}, "'item' is defined twice"),
        ({"numbers": (NumericField("price", "da"),)}, "'price' has group 'da'; expected one of"),
        (
            {"numbers": (NumericField("price", "user"), NumericField("cost", "ad"))},
            r"'paid' of sequence 'history' is compared with 'price', which .* ad fields: cost",
        ),
        (
            {
                "sequences": (
                    dataclasses.replace(
                        NUMERIC.sequences[0], numbers=(NumericBehaviorField("item", "price"),)
                    ),
                )
            },
            "field of sequence 'history' 'item' is defined twice",
        ),
    ],
)
def test_numbers_that_do_not_fit_the_schema_are_refused(changes, message):
    with pytest.raises(DinError, match=message):
        dataclasses.replace(NUMERIC, **changes)


# The store


def test_numbers_are_written_and_read(tmp_path):
    write_ragged(tmp_path / "s", NUMERIC, **NUMBERS)
    store = Store(tmp_path / "s")
    assert store.schema == NUMERIC
    for name, values in NUMBERS.items():
        assert store.column(name).dtype == np.float32
        np.testing.assert_array_equal(store.column(name), values)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"fields/wait": [1, 2, 3]}, "fields/wait holds int64, expected float32"),
        ({"events/history/paid": [1.0, 2, 3, 4]}, "paid holds float64, expected float32"),
        ({"fields/wait": np.float32([1, 2])}, "fields/wait has 2 entries, expected 3"),
        (
            {"fields/price": np.float32([0, np.nan, np.inf])},
            r"fields/price\[2\] is inf, expected a finite number, or NaN",
        ),
        (
            {"events/history/paid": np.float32([0, 1, 2, -np.inf])},
            r"events/history/paid\[3\] is -inf",
        ),
    ],
)
@pytest.mark.parametrize("at_once", [2, 1 << 20])
def test_columns_that_are_no_numbers_are_refused(tmp_path, monkeypatch, columns, message, at_once):
    monkeypatch.setattr(columns_module, "CHUNK", at_once)
    with pytest.raises(DinError, match=message):
        write_ragged(tmp_path / "s", NUMERIC, **NUMBERS | columns)


def test_missing_columns_of_numbers_are_named(tmp_path):
    with pytest.raises(DinError, match="missing: events/history/paid, fields/price, fields/wait;"):
        write_ragged(tmp_path / "s", NUMERIC)
