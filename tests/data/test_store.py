import json
import os
import shutil

import numpy as np
import pytest
from small_stores import SCHEMA, write

from din_jax.data.store import Store
from din_jax.errors import DinError


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


def test_the_fingerprint_is_of_the_content(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    write(tmp_path / "c", ids=(1, 2, 2))
    a, b, c = (Store(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def truncate_column(path):
    column = path / "fields/item.npy"
    os.truncate(column, column.stat().st_size - 1)


def set_version(path):
    description = json.loads((path / "schema.json").read_text())
    (path / "schema.json").write_text(json.dumps(description | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate_column, r"item.npy: 130 bytes, expected 131\ncopy the store again"),
        (lambda p: (p / "fields/item.npy").unlink(), "item.npy: missing"),
        (set_version, r"version 99, this din_jax reads version 1"),
        (lambda p: (p / "schema.json").write_text("{"), "is not a din_jax store"),
        (lambda p: (p / "schema.json").unlink(), "is not a din_jax store"),
        (lambda p: (p / "fields/item.npy").write_bytes(b""), "item.npy: 0 bytes, expected 131"),
        (
            lambda p: (p / "schema.json").write_text(
                (p / "schema.json").read_text().replace('"splits"', '"slpits"')
            ),
            r"schema.json is damaged: its checksum is",
        ),
        (shutil.rmtree, r"no store at .*; make one with `python -m din_jax.prepare"),
    ],
)
def test_a_damaged_store_is_refused_with_the_reason(tmp_path, damage, message):
    write(tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(DinError, match=message):
        Store(tmp_path / "s")


def test_a_damaged_vocabulary_is_refused(tmp_path):
    write(tmp_path / "s")
    store = Store(tmp_path / "s")
    (tmp_path / "s/vocab/item.parquet").write_bytes(b"no table")
    with pytest.raises(DinError, match=r"item.parquet: missing or damaged"):
        store.vocabulary("item")


def test_splits_are_named_in_order(tmp_path):
    write(tmp_path / "s")
    store = Store(tmp_path / "s")
    with pytest.raises(DinError, match="has: train, validation, test"):
        store.split("tset")
    with pytest.raises(DinError, match="join splits in their order"):
        store.split("test+train")


def test_columns_in_memory_leave_the_store_unchanged(planted_store):
    store = Store(planted_store)
    label = store.column("samples/label")
    other = store.with_columns({"samples/label": 1 - label})
    np.testing.assert_array_equal(other.column("samples/label"), 1 - label)
    np.testing.assert_array_equal(store.column("samples/label"), label)
    assert other.column("samples/user") is store.column("samples/user")
