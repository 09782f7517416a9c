import signal
import subprocess
import sys
import textwrap

import numpy as np
import polars as pl
import pytest
from small_stores import RAGGED_COLUMNS, SCHEMA, SPLITS, add_vocabularies, write, write_ragged

from din_jax.data import columns as columns_module
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.errors import DinError


def test_columns_grow_by_appending(tmp_path):
    whole, parts = tmp_path / "whole.npy", tmp_path / "s"
    with StoreWriter(parts, SCHEMA) as writer:
        for start in range(0, 1000, 100):
            writer.append("fields/item", np.arange(start, start + 100, dtype=np.int64))
        np.save(whole, np.arange(1000))
        writer._columns["fields/item"].close()
        path = next(tmp_path.glob(".s.partial*/fields/item.npy"))
        np.testing.assert_array_equal(np.load(path), np.load(whole))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"fields/item": 4}, "fields/item has 4 entries, expected 3"),
        ({"fields/item": 3, "fields/other": 3}, "does not know: fields/other"),
        ({}, "columns missing: fields/item"),
    ],
)
def test_a_store_with_wrong_columns_is_not_finished(tmp_path, columns, message):
    with StoreWriter(tmp_path / "s", SCHEMA) as writer:
        for name, length in ({"samples/label": 3, "samples/user": 3} | columns).items():
            writer.append(name, np.zeros(length, np.uint8))
        add_vocabularies(writer)
        with pytest.raises(DinError, match=message):
            writer.finish(SPLITS, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("splits", [((0, 1), (1, 2), (2, 2)), ((0, 2), (1, 2), (2, 3))])
def test_splits_must_cover_the_samples_without_overlap(tmp_path, splits):
    with StoreWriter(tmp_path / "s", SCHEMA) as writer:
        for name in ("samples/label", "samples/user", "fields/item"):
            writer.append(name, np.zeros(3, np.uint8))
        add_vocabularies(writer)
        with pytest.raises(DinError, match="do not follow"):
            writer.finish(dict(zip(SPLITS, splits, strict=True)), {})


@pytest.mark.parametrize(
    ("table", "ids", "message"),
    [
        ("itme", ["a", "b", "c"], "the schema has no such table"),
        ("item", ["a", "b"], "2 ids and 2 counts; the schema has 3 rows besides row 0"),
        ("item", ["a", "b", "a"], "an id occurs twice"),
    ],
)
def test_a_vocabulary_has_one_id_for_each_row(tmp_path, table, ids, message):
    with StoreWriter(tmp_path / "s", SCHEMA) as writer, pytest.raises(DinError, match=message):
        writer.vocabulary(table, pl.Series(ids), np.ones(len(ids), np.int64))


def test_a_table_without_a_vocabulary_is_named(tmp_path):
    with StoreWriter(tmp_path / "s", SCHEMA) as writer:
        for name in ("samples/label", "samples/user", "fields/item"):
            writer.append(name, np.zeros(3, np.uint8))
        with pytest.raises(DinError, match="no vocabulary for: item"):
            writer.finish(SPLITS, {})


INVALID_VALUES = [
    ("samples/label", [0, 1, 2], "from 0 to 2, expected 0 to 1"),
    ("samples/label", [0, 1, 0.5], "holds float64, expected integers"),
    ("samples/user", [0, 1, 2**31], "expected 0 to 2147483647"),
    ("fields/item", [1, 4, 0], "fields/item holds values from 0 to 4, expected 0 to 3"),
    ("fields/item", [1, -3, 0], "from -3 to 1"),
    ("fields/tags", [1, 3], "expected 0 to 2"),
    ("events/history/item", [1, 2, 3, 9], "from 1 to 9, expected 0 to 3"),
    ("sequences/history.end", [0, 2, 5], "from 0 to 5, expected 0 to 4"),
]
INVALID_IN_CHUNKS = [  # what is checked by reading the column again
    ("fields/tags.offsets", [0, 1, 0, 2], "must rise from 0 to 2"),
    ("fields/tags.offsets", [0, 0, 1, 1], "must rise from 0 to 2"),
    ("sequences/history.start", [0, 3, 2], r"start\[1\] is 3, after .*end\[1\], 2"),
]


@pytest.mark.parametrize(
    ("at_once", "column", "values", "message"),
    [(2, *case) for case in INVALID_VALUES]
    + [(at_once, *case) for at_once in (1, 2, 1 << 20) for case in INVALID_IN_CHUNKS],
)
def test_values_that_cannot_be_trained_on_are_refused(
    tmp_path, monkeypatch, at_once, column, values, message
):
    monkeypatch.setattr(columns_module, "CHUNK", at_once)
    with pytest.raises(DinError, match=message):
        write_ragged(tmp_path / "s", **{column: values})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at_once", [1, 2, 1 << 20])
def test_values_are_checked_in_chunks_of_any_size(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(columns_module, "CHUNK", at_once)
    write_ragged(tmp_path / "s")
    for name, values in RAGGED_COLUMNS.items():
        assert Store(tmp_path / "s").column(name).tolist() == values


def test_a_sequence_may_begin_with_a_multi_hot_field(tmp_path):
    tags = BehaviorField("tags", "tag", ad="tags", multi_hot=True)
    schema = Schema(
        (Table("item", 4), Table("tag", 3)),
        (Field("item", "item", "ad"), Field("tags", "tag", "ad", multi_hot=True)),
        (Sequence("history", (tags, BehaviorField("item", "item", ad="item"))),),
    )
    columns = {
        "events/history/tags": [1, 2, 1],
        "events/history/tags.offsets": [0, 1, 1, 3, 3],
    }
    write_ragged(tmp_path / "s", schema, **columns)
    assert Store(tmp_path / "s").column("events/history/tags.offsets").tolist() == [0, 1, 1, 3, 3]
    columns["sequences/history.start"] = [0, 0, 5]
    with pytest.raises(DinError, match="from 0 to 5, expected 0 to 4"):
        write_ragged(tmp_path / "t", schema, **columns)


def test_a_value_that_does_not_fit_its_column_is_not_wrapped(tmp_path):
    with StoreWriter(tmp_path / "s", SCHEMA) as writer:
        writer.append("fields/item", np.array([1], np.uint8))
        with pytest.raises(ValueError, match="int64"):
            writer.append("fields/item", np.array([300]))


def test_a_killed_preparation_leaves_nothing_under_the_final_name(tmp_path):
    script = textwrap.dedent(
        f"""
        import time, numpy as np
        from din_jax.data.schema import *
        from din_jax.data.store_writer import StoreWriter
        schema = Schema((Table("item", 4),), (Field("item", "item", "ad"),), ())
        with StoreWriter({str(tmp_path / "s")!r}, schema) as writer:
            writer.append("fields/item", np.zeros(1000))
            print("writing", flush=True)
            time.sleep(60)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "s").exists()
    write(tmp_path / "s")
    assert len(Store(tmp_path / "s")) == 3


def test_a_path_where_no_store_can_be_made_is_noticed_first(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/s", "/proc/s"):  # the latter denies even whom permissions allow
        with pytest.raises(DinError, match="can't be made"):
            StoreWriter(path, SCHEMA)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(DinError, match="exists already"):
        write(tmp_path / "s")
