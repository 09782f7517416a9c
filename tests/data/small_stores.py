"""Writes stores of three samples."""

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store_writer import StoreWriter

SCHEMA = Schema((Table("item", 4),), (Field("item", "item", "ad"),), ())
SPLITS = {"train": (0, 1), "validation": (1, 2), "test": (2, 3)}
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


def add_vocabularies(writer):
    writer.vocabulary("item", pl.Series(["a", "b", "c"]), np.array([5, 6, 7]))
    if len(writer.schema.tables) > 1:
        writer.vocabulary("tag", pl.Series(["x", "y"]), np.array([5, 6]))


def write(path, ids=(1, 2, 3), labels=(0, 1, 1)):
    with StoreWriter(path, SCHEMA) as writer:
        writer.append("samples/label", np.array(labels, np.uint8))
        writer.append("samples/user", np.arange(len(labels), dtype=np.uint8))
        writer.append("fields/item", np.array(ids, np.uint8))
        add_vocabularies(writer)
        writer.finish(SPLITS, {"made": "here"})


def write_ragged(path, schema=RAGGED, **columns):
    with StoreWriter(path, schema) as writer:
        for name, values in (RAGGED_COLUMNS | columns).items():
            writer.append(name, np.array(values))
        add_vocabularies(writer)
        writer.finish(SPLITS, {})
