"""What other libraries train on is what the store holds."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import SPLITS, Store
from din_jax.data.store_writer import StoreWriter
from din_jax.errors import DinError

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(PEERS)
    import export_samples

    return export_samples


def test_ids_are_rows_plus_one_and_histories_are_padded_at_the_end(tmp_path, peers):
    schema = Schema(
        tables=(Table("item", 300), Table("kind", 3), Table("hour", 4)),
        fields=(
            Field("good", "item", "ad"),
            Field("kind", "kind", "ad"),
            Field("hour", "hour", "context", optional=True),
        ),
        sequences=(
            Sequence(
                "seen",
                (BehaviorField("id", "item", ad="good"), BehaviorField("sort", "kind", ad="kind")),
            ),
        ),
    )
    columns = {
        "samples/label": [1, 0, 1, 0],
        "samples/user": [7, 7, 2, 9],
        "fields/good": [255, 0, 12, 299],
        "fields/kind": [2, 1, 0, 2],
        "fields/hour": [3, 0, 1, 2],
        "sequences/seen.start": [0, 1, 3, 0],
        "sequences/seen.end": [4, 3, 3, 1],
        "events/seen/id": [255, 0, 31, 299],
        "events/seen/sort": [2, 0, 0, 1],
    }
    with StoreWriter(tmp_path / "store", schema) as writer:
        for name, values in columns.items():
            writer.append(name, np.array(values, np.uint16))
        for table in schema.tables:
            rows = table.rows - 1
            writer.vocabulary(table.name, pl.Series(range(rows)), np.ones(rows, np.int64))
        writer.finish({"train": (0, 2), "validation": (2, 3), "test": (3, 4)}, {})

    arrays = peers.exported(Store(tmp_path / "store"), 3)

    described = json.loads(str(arrays.pop("described")))
    assert Schema.from_json(described["schema"]) == schema
    assert described["max_history"] == 3
    exported = {name: values.tolist() for name, values in arrays.items()}
    assert exported == {
        "train/label": [1, 0],
        "train/user": [7, 7],
        "train/fields/good": [256, 1],
        "train/fields/kind": [3, 2],
        "train/fields/hour": [4, 1],
        "train/history/good": [[1, 32, 300], [1, 32, 0]],  # the oldest of four is cut
        "train/history/kind": [[1, 1, 2], [1, 1, 0]],
        "train/length": [3, 2],
        "validation/label": [1],
        "validation/user": [2],
        "validation/fields/good": [13],
        "validation/fields/kind": [1],
        "validation/fields/hour": [2],
        "validation/history/good": [[0, 0, 0]],
        "validation/history/kind": [[0, 0, 0]],
        "validation/length": [0],
        "test/label": [0],
        "test/user": [9],
        "test/fields/good": [300],
        "test/fields/kind": [3],
        "test/fields/hour": [3],
        "test/history/good": [[256, 0, 0]],
        "test/history/kind": [[3, 0, 0]],
        "test/length": [1],
    }


@pytest.mark.parametrize("max_history", [0, 5])
def test_the_file_holds_every_split(tmp_path, planted_store, peers, monkeypatch, max_history):
    out = tmp_path / "samples.npz"
    flags = ["--store", planted_store, "--out", out, "--max-history", max_history]
    monkeypatch.setattr("sys.argv", ["export_samples.py", *map(str, flags)])
    peers.main()
    store = Store(planted_store)
    start, end = (
        store.column(f"sequences/history.{name}").astype(int) for name in ("start", "end")
    )
    file = np.load(out)
    for split in SPLITS:
        samples = len(store.split(split))
        assert len(file[f"{split}/label"]) == samples
        longest = max_history or (end - start).max()
        assert file[f"{split}/history/shop"].shape == (samples, longest)
    with pytest.raises(DinError, match="exists already"):
        peers.main()
    assert list(tmp_path.iterdir()) == [out]


def test_the_comparison_notices_a_wrong_id(planted_store, peers):
    store = Store(planted_store)
    arrays = peers.exported(store, 5)
    peers.compare(arrays, store, 5)
    for name in ("test/history/shop", "train/fields/hour", "validation/length", "test/user"):
        wrong = arrays | {name: arrays[name] + 1}
        with pytest.raises(AssertionError):
            peers.compare(wrong, store, 5)


def test_what_cannot_be_padded_is_an_error(rich, peers):
    store, _ = rich
    with pytest.raises(DinError, match="one sequence to export, it has: views, likes"):
        peers.exported(store, 5)
