import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import polars as pl
import pytest

from din_jax.data import store_writer
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.errors import DinError

SCHEMA = Schema((Table("item", 4),), (Field("item", "item", "ad"),), ())


def write(path, ids=(1, 2, 3), labels=(0, 1, 1)):
    with StoreWriter(path, SCHEMA) as writer:
        writer.append("samples/label", np.array(labels, np.uint8))
        writer.append("samples/user", np.arange(len(labels), dtype=np.uint8))
        writer.append("fields/item", np.array(ids, np.uint8))
        writer.vocabulary("item", pl.Series(["a", "b", "c"]), np.array([5, 6, 7]))
        writer.finish({"train": (0, 1), "validation": (1, 2), "test": (2, 3)}, {"made": "here"})


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "s")
    store = Store(tmp_path / "s")
    assert store.schema == SCHEMA
    assert store.origin == {"made": "here"}
    assert len(store) == 3
    assert store.column("fields/item").tolist() == [1, 2, 3]
    assert list(store.split("train+validation")) == [0, 1]
    ids, counts = store.vocabulary("item")
    assert ids.to_list() == [None, "a", "b", "c"]
    assert counts.tolist() == [0, 5, 6, 7]


def test_columns_are_mapped_and_not_read(tmp_path):
    write(tmp_path / "s")
    column = Store(tmp_path / "s").column("fields/item")
    base = column
    while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not column.flags.writeable


def test_columns_grow_by_appending(tmp_path):
    whole, parts = tmp_path / "whole.npy", tmp_path / "s"
    with StoreWriter(parts, SCHEMA) as writer:
        for start in range(0, 1000, 100):
            writer.append("fields/item", np.arange(start, start + 100, dtype=np.int64))
        np.save(whole, np.arange(1000))
        writer._columns["fields/item"].close()
        path = next(tmp_path.glob(".s.partial*/fields/item.npy"))
        np.testing.assert_array_equal(np.load(path), np.load(whole))


def test_the_fingerprint_is_of_the_content(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    write(tmp_path / "c", ids=(1, 2, 2))
    a, b, c = (Store(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


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
        writer.vocabulary("item", pl.Series(["a", "b", "c"]), np.array([5, 6, 7]))
        with pytest.raises(DinError, match=message):
            writer.finish({"train": (0, 1), "validation": (1, 2), "test": (2, 3)}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("splits", [((0, 1), (1, 2), (2, 2)), ((0, 2), (1, 2), (2, 3))])
def test_splits_must_cover_the_samples_without_overlap(tmp_path, splits):
    with StoreWriter(tmp_path / "s", SCHEMA) as writer:
        for name in ("samples/label", "samples/user", "fields/item"):
            writer.append(name, np.zeros(3, np.uint8))
        writer.vocabulary("item", pl.Series(["a", "b", "c"]), np.array([5, 6, 7]))
        with pytest.raises(DinError, match="do not follow"):
            writer.finish(dict(zip(("train", "validation", "test"), splits, strict=True)), {})


RAGGED = Schema(
    (Table("item", 4), Table("tag", 3)),
    (Field("item", "item", "ad"), Field("tags", "tag", "ad", multi_hot=True)),
    (Sequence("history", (BehaviorField("item", "item", ad="item"),)),),
)
RAGGED_COLUMNS = {
    "samples/label": [0, 1, 1],
    "samples/user": [0, 1, 2],
    "fields/item": [1, 2, 3],
    "fields/tags": [1, 2],
    "fields/tags.offsets": [0, 0, 1, 2],
    "events/history/item": [1, 2, 3, 0],
    "sequences/history.start": [0, 0, 2],
    "sequences/history.end": [0, 2, 4],
}


def write_ragged(path, **columns):
    with StoreWriter(path, RAGGED) as writer:
        for name, values in (RAGGED_COLUMNS | columns).items():
            writer.append(name, np.array(values))
        writer.vocabulary("item", pl.Series(["a", "b", "c"]), np.array([5, 6, 7]))
        writer.vocabulary("tag", pl.Series(["x", "y"]), np.array([5, 6]))
        writer.finish({"train": (0, 1), "validation": (1, 2), "test": (2, 3)}, {})


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("samples/label", [0, 1, 2], "from 0 to 2, expected 0 to 1"),
        ("samples/label", [0, 1, 0.5], "holds float64, expected integers"),
        ("samples/user", [0, 1, 2**31], "expected 0 to 2147483647"),
        ("fields/item", [1, 4, 0], "fields/item holds values from 0 to 4, expected 0 to 3"),
        ("fields/item", [1, -3, 0], "from -3 to 1"),
        ("fields/tags", [1, 3], "expected 0 to 2"),
        ("fields/tags.offsets", [0, 1, 0, 2], "must rise from 0 to 2"),
        ("fields/tags.offsets", [0, 0, 1, 1], "must rise from 0 to 2"),
        ("events/history/item", [1, 2, 3, 9], "from 1 to 9, expected 0 to 3"),
        ("sequences/history.end", [0, 2, 5], "from 0 to 5, expected 0 to 4"),
        ("sequences/history.start", [0, 3, 2], r"start\[1\] is 3, after .*end\[1\], 2"),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 1 << 20])
def test_values_that_cannot_be_trained_on_are_refused(
    tmp_path, monkeypatch, at_once, column, values, message
):
    monkeypatch.setattr(store_writer, "_CHECKED_AT_ONCE", at_once)
    with pytest.raises(DinError, match=message):
        write_ragged(tmp_path / "s", **{column: values})
    assert list(tmp_path.iterdir()) == []
    write_ragged(tmp_path / "s")


def write_tagged(path, starts):
    """Behaviours of a multi-hot field first, then a one-hot one."""
    schema = Schema(
        (Table("item", 4), Table("tag", 3)),
        (Field("item", "item", "ad"), Field("tags", "tag", "ad", multi_hot=True)),
        (
            Sequence(
                "history",
                (
                    BehaviorField("tags", "tag", ad="tags", multi_hot=True),
                    BehaviorField("item", "item", ad="item"),
                ),
            ),
        ),
    )
    columns = RAGGED_COLUMNS | {
        "events/history/tags": [1, 2, 1],
        "events/history/tags.offsets": [0, 1, 1, 3, 3],
        "sequences/history.start": starts,
    }
    with StoreWriter(path, schema) as writer:
        for name, values in columns.items():
            writer.append(name, np.array(values))
        writer.vocabulary("item", pl.Series(["a", "b", "c"]), np.array([5, 6, 7]))
        writer.vocabulary("tag", pl.Series(["x", "y"]), np.array([5, 6]))
        writer.finish({"train": (0, 1), "validation": (1, 2), "test": (2, 3)}, {})


def test_a_sequence_may_begin_with_a_multi_hot_field(tmp_path):
    write_tagged(tmp_path / "s", [0, 0, 2])
    assert Store(tmp_path / "s").column("events/history/tags.offsets").tolist() == [0, 1, 1, 3, 3]
    with pytest.raises(DinError, match="from 0 to 5, expected 0 to 4"):
        write_tagged(tmp_path / "t", [0, 0, 5])


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


def test_a_place_where_no_store_can_be_is_noticed_first(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file/s", "/proc/s"):  # the latter denies even whom permissions allow
        with pytest.raises(DinError, match="can't be made"):
            StoreWriter(place, SCHEMA)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    write(tmp_path / "s")
    with pytest.raises(DinError, match="exists already"):
        write(tmp_path / "s")


def cut_column(path):
    column = path / "fields/item.npy"
    os.truncate(column, column.stat().st_size - 1)


def other_version(path):
    described = json.loads((path / "schema.json").read_text())
    (path / "schema.json").write_text(json.dumps(described | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_column, r"item.npy: missing or cut short .*prepare the store again"),
        (lambda p: (p / "fields/item.npy").unlink(), "item.npy: missing or cut short"),
        (other_version, r"version 99, this din_jax reads version 1"),
        (lambda p: (p / "schema.json").write_text("{"), "is not a din_jax store"),
        (lambda p: (p / "schema.json").unlink(), "is not a din_jax store"),
        (lambda p: (p / "fields/item.npy").write_bytes(b""), "item.npy: missing or cut short"),
        (
            lambda p: (p / "schema.json").write_text(
                (p / "schema.json").read_text().replace('"splits"', '"slpits"')
            ),
            r"schema.json lacks 'splits': it is damaged",
        ),
        (shutil.rmtree, r"no store at .*; make one with `python -m din_jax.prepare"),
    ],
)
def test_a_damaged_store_is_refused_with_the_reason(tmp_path, damage, message):
    write(tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(DinError, match=message):
        Store(tmp_path / "s")


def test_splits_are_named_in_order(tmp_path):
    write(tmp_path / "s")
    store = Store(tmp_path / "s")
    with pytest.raises(DinError, match="has: train, validation, test"):
        store.split("tset")
    with pytest.raises(DinError, match="join splits in their order"):
        store.split("test+train")


def test_a_schema_survives_json(rich):
    schema = rich[0].schema
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    assert hash(schema) == hash(Schema.from_json(schema.to_json()))


ITEM = Field("item", "item", "ad")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schema((Table("item", 0),), (), ()), "0 rows"),
        (lambda: Schema((Table("item", 2), Table("item", 2)), (), ()), "'item' is defined twice"),
        (lambda: Schema((Table("a/b", 2),), (), ()), "only letters"),
        (lambda: Schema((Table("item", 2),), (Field("x", "itme", "ad"),), ()), "tables are: item"),
        (lambda: Schema((Table("item", 2),), (Field("x", "item", "da"),), ()), "one of user, ad"),
        (
            lambda: Schema(
                (Table("item", 2), Table("shop", 2)),
                (ITEM,),
                (Sequence("h", (BehaviorField("shop", "shop", ad="item"),)),),
            ),
            r"not an ad field of table 'shop' that is always an input; ad fields: item \(item\)",
        ),
        (lambda: Schema((Table("item", 2),), (ITEM,), (Sequence("h", ()),)), "no fields"),
        (lambda: Schema.from_json({"tables": []}), "missing or unknown key"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(make, message):
    with pytest.raises(DinError, match=message):
        make()


def test_optional_fields_are_inputs_only_where_named():
    schema = Schema(
        (Table("item", 2), Table("user", 2)),
        (ITEM, Field("user_id", "user", "user", optional=True)),
        (),
    )
    assert [f.name for f in schema.inputs()] == ["item"]
    assert [f.name for f in schema.inputs(["user_id"])] == ["item", "user_id"]
    with pytest.raises(DinError, match="optional fields are: user_id"):
        schema.inputs(["item"])


def test_other_columns_leave_the_store_alone(planted_store):
    store = Store(planted_store)
    label = store.column("samples/label")
    other = store.with_columns({"samples/label": 1 - label})
    np.testing.assert_array_equal(other.column("samples/label"), 1 - label)
    np.testing.assert_array_equal(store.column("samples/label"), label)
    assert other.column("samples/user") is store.column("samples/user")
