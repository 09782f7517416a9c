"""A store is trusted only after its files were compared with their checksums."""

import contextlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_stores import RAGGED_COLUMNS, SCHEMA, SPLITS, add_vocabularies, write_ragged

from din_jax.data import verification
from din_jax.data.columns import column_names
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.errors import DinError

OLD = Path(__file__).parent.parent / "checkpoint/version_0_1_0.tar.xz"
PRESENT = Path(__file__).parent / "store_with_checksums.tar.xz"


def flip(path, at=-1, bit=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def edit(path, **changes):
    """Changes schema.json, with the checksum that belongs to it."""
    file = path / "schema.json"
    description = json.loads(file.read_text()) | changes
    description["checksum"] = verification.json_checksum(description)
    file.write_text(json.dumps(description))


@pytest.fixture
def store(tmp_path):
    write_ragged(tmp_path / "s")
    return tmp_path / "s"


@pytest.fixture
def old(tmp_path):
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old/data/planted"


def test_a_flipped_bit_of_any_file_is_noticed_and_named(store):
    names = [f"{name}.npy" for name in RAGGED_COLUMNS]
    for name in [*names, "vocab/item.parquet", "vocab/tag.parquet"]:
        for at in (-1, 7):  # of the values, and of the header
            flip(store / name, at)
            with pytest.raises(DinError, match=rf"{name}: its content has changed") as error:
                Store(store)
            assert "prepare it again" in str(error.value)
            flip(store / name, at)
    Store(store)


def test_a_flipped_bit_of_the_manifest_is_noticed(store):
    file = store / "schema.json"
    whole = file.read_bytes()
    unnoticed = []
    for at in range(0, len(whole), 5):
        flip(file, at, 1 << at % 8)
        with contextlib.suppress(DinError):
            Store(store)
            unnoticed.append(at)
        file.write_bytes(whole)
    layout = {at for at, byte in enumerate(whole) if chr(byte) in " \n"}
    assert set(unnoticed) <= layout  # a blank for another is the same manifest


def test_swapped_files_and_missing_ones_are_noticed(store):
    start, end = store / "sequences/history.start.npy", store / "sequences/history.end.npy"
    start.rename(store / "x")
    with pytest.raises(DinError, match=r"start.npy: missing"):
        Store(store)
    end.rename(start)
    (store / "x").rename(end)
    with pytest.raises(DinError, match=r"start.npy: its content .*\n.*end.npy: its content"):
        Store(store)
    with pytest.raises(DinError, match="verify='twice': expected 'once' or 'full' or 'none'"):
        Store(store, verify="twice")
    assert Store(store, verify="none").column("sequences/history.start").tolist() == [0, 2, 4]


@pytest.fixture
def reads(monkeypatch):
    """The files that are read to be verified; changes of a moment ago count as old."""
    files = []
    original = verification.checksum
    monkeypatch.setattr(verification, "checksum", lambda f: files.append(f.name) or original(f))
    monkeypatch.setattr(verification, "RECENT_NS", -(10**12))
    return files


def test_a_verified_store_is_not_read_again_until_a_file_changes(store, reads):
    Store(store)
    assert len(reads) == len(RAGGED_COLUMNS) + 2
    Store(store)
    assert len(reads) == len(RAGGED_COLUMNS) + 2
    Store(store, verify="full")
    assert len(reads) == 2 * (len(RAGGED_COLUMNS) + 2)
    reads.clear()
    file = store / "samples/user.npy"
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time of change remains
    with pytest.raises(DinError, match=r"user.npy"):
        Store(store)
    with pytest.raises(DinError, match=r"user.npy"):
        Store(store)  # damage is not remembered
    assert len(reads) == 2 * (len(RAGGED_COLUMNS) + 2)


def test_what_changed_a_moment_ago_is_not_remembered(store, reads, monkeypatch):
    monkeypatch.undo()
    Store(store)
    assert not (store / "verified.json").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, -10),
        lambda file: file.write_text(file.read_text().replace('"samples/user.npy"', '"x"')),
        lambda file: file.write_text("[]"),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
        lambda file: file.write_text(file.read_text().replace('"checks": 1', '"checks": 0')),
    ],
)
def test_a_damaged_memory_is_not_trusted(store, reads, damage):
    Store(store)
    damage(store / "verified.json")
    reads.clear()
    Store(store)
    assert reads
    reads.clear()
    Store(store)
    assert not reads


def test_a_copy_of_a_store_is_verified_for_itself(store, reads):
    Store(store)
    shutil.copytree(store, store.parent / "copy")  # with the memory, and the times of change
    reads.clear()
    Store(store.parent / "copy")
    assert reads


def test_where_nothing_can_be_written_the_store_is_verified_each_time(store, reads, monkeypatch):
    def refuse(path, content):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(verification, "replace_file", refuse)
    Store(store)
    reads.clear()
    Store(store)
    assert reads


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("fields/item", [1, 2, 9], "fields/item holds values from 1 to 9, expected 0 to 3"),
        ("fields/tags.offsets", [0, 2, 1, 2], r"tags.offsets must rise from 0 to 2"),
        ("sequences/history.end", [0, 2, 5], r"history.end holds values from 0 to 5"),
        ("samples/user", [0, -1, 2], r"samples/user holds values from -1 to 2"),
    ],
)
def test_the_content_is_checked_as_well(store, column, values, message):
    """A program of somebody's own may write files with right checksums and wrong content."""
    file = store / f"{column}.npy"
    old = np.load(file)
    np.save(file, np.array(values, np.int8 if min(values) < 0 else old.dtype))
    files = json.loads((store / "schema.json").read_text())["files"]
    edit(store, files=files | {f"{column}.npy": verification.checksum(file)})
    with pytest.raises(DinError, match=message):
        Store(store)


def test_titles_are_verified_too_and_nothing_outside_is_read(tmp_path):
    with StoreWriter(tmp_path / "s", SCHEMA) as writer:
        for name in ("samples/label", "samples/user", "fields/item"):
            writer.append(name, np.array([0, 1, 1], np.uint8))
        add_vocabularies(writer)
        writer.titles("item", pl.Series(["A", "B", "C"]))
        writer.finish(SPLITS, {})
    Store(tmp_path / "s")
    flip(tmp_path / "s/titles/item.parquet")
    with pytest.raises(DinError, match=r"titles/item.parquet: its content has changed"):
        Store(tmp_path / "s")
    for outside in ("../x", str(tmp_path / "x")):
        edit(tmp_path / "s", files={outside: [0, "00000000"]})
        with pytest.raises(DinError, match="x, which is outside of the store"):
            Store(tmp_path / "s")


def test_a_strange_manifest_is_one_clear_error(store):
    for splits in ({"train": [0, 1]}, 7, {"train": "ab", "validation": [1, 2], "test": [2, 3]}):
        edit(store, splits=splits)
        with pytest.raises(DinError, match=r"schema.json|the splits"):
            Store(store)


# Stores of older versions ------------------------------------------------------------------------


def test_a_store_of_an_older_version_is_read_with_a_note_once(old, capsys, monkeypatch):
    monkeypatch.setattr(verification, "RECENT_NS", -(10**12))
    Store(old)
    assert "made by an older version of din_jax and has no checksums" in capsys.readouterr().err
    Store(old)
    assert capsys.readouterr().err == ""


def test_damage_to_a_store_of_an_older_version_is_noticed_too(old):
    store = Store(old)
    for name in column_names(store.schema):
        flip(old / f"{name}.npy")
        with pytest.raises(DinError, match=r"fingerprint is|holds values|must rise|is \d+, after"):
            Store(old)
        flip(old / f"{name}.npy")
    vocabulary = old / "vocab/item.parquet"
    frame = pl.read_parquet(vocabulary)
    frame.with_columns(pl.col("count").reverse()).write_parquet(vocabulary)
    with pytest.raises(DinError, match="its content has changed: the fingerprint is"):
        Store(old)
    vocabulary.write_bytes(b"no table")
    with pytest.raises(DinError, match=r"item.parquet: missing or damaged"):
        Store(old)


def test_a_store_of_the_present_version_is_read(tmp_path):
    """The archive holds what `write_ragged` wrote when checksums were introduced."""
    with tarfile.open(PRESENT) as archive:
        archive.extractall(tmp_path, filter="data")
    store = Store(tmp_path / "store", verify="full")
    for name, values in RAGGED_COLUMNS.items():
        assert store.column(name).tolist() == values
    assert store.vocabulary("tag").ids.to_list() == [None, "x", "y"]
    write_ragged(tmp_path / "again")
    assert Store(tmp_path / "again").fingerprint == store.fingerprint
