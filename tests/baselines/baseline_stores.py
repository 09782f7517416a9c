"""A random store with every kind of column, small enough for plain Python."""

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter

SCHEMA = Schema(
    (Table("user", 9), Table("item", 7), Table("tag", 5), Table("hour", 3)),
    (
        Field("user_id", "user", "user", optional=True),
        Field("item", "item", "ad"),
        Field("tags", "tag", "ad", multi_hot=True),
        Field("hour", "hour", "context"),
    ),
    (
        Sequence(
            "clicks",
            (
                BehaviorField("item", "item", ad="item"),
                BehaviorField("tags", "tag", ad="tags", multi_hot=True),
            ),
        ),
        Sequence("seen", (BehaviorField("goods", "item", ad="item"),)),
    ),
)


UNSEEN = 6  # events at the end of each sequence that lie in no history


def random_store(path, seed=0, count=120):
    """Five sixths of the samples are training, the rest is validation and test.

    Histories of a user overlap, begin anywhere and may be empty; ids may be unknown.
    """
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 8, count)
    with StoreWriter(path, SCHEMA) as writer:
        writer.append("samples/label", rng.integers(0, 2, count))
        writer.append("samples/user", user * 1000 + 7)
        writer.append("fields/user_id", user + 1)
        writer.append("fields/item", rng.integers(0, 7, count))
        writer.append("fields/hour", rng.integers(0, 3, count))

        def append_tags(name, owners):
            n = rng.integers(0, 4, owners)
            writer.append(f"{name}.offsets", np.cumsum([0, *n]))
            writer.append(name, rng.integers(0, 5, n.sum()))

        append_tags("fields/tags", count)
        for name, field in (("clicks", "item"), ("seen", "goods")):
            begin = np.cumsum([0, *rng.integers(0, 9, 8)])
            start, end = np.sort(rng.integers(begin[user], begin[user + 1] + 1, (2, count)), axis=0)
            writer.append(f"sequences/{name}.start", start)
            writer.append(f"sequences/{name}.end", end)
            events = begin[-1] + UNSEEN
            writer.append(f"events/{name}/{field}", rng.integers(0, 7, events))
            if name == "clicks":
                append_tags("events/clicks/tags", events)
        for table in SCHEMA.tables:
            ids = pl.Series(range(1, table.rows))
            writer.vocabulary(table.name, ids, np.ones(table.rows - 1, np.int64))
        train, validation = count * 5 // 6, count * 11 // 12
        splits = {"train": (0, train), "validation": (train, validation)}
        writer.finish(splits | {"test": (validation, count)}, {})
    return Store(path)
