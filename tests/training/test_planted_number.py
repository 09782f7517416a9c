"""Clicks that depend on one number alone, which is no id of any table."""

import itertools

import numpy as np
import polars as pl
import pytest

from din_jax.config import default_config
from din_jax.data.schema import (
    BehaviorField,
    Field,
    NumericBehaviorField,
    NumericField,
    Schema,
    Sequence,
    Table,
)
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.metrics import auc
from din_jax.training.loop import train

SCHEMA = Schema(
    (Table("item", 101),),
    (Field("item", "item", "ad"),),
    (
        Sequence(
            "history",
            (BehaviorField("item", "item", "item"),),
            numbers=(NumericBehaviorField("price", "price"),),
        ),
    ),
    (NumericField("wait", "context"), NumericField("price", "ad")),
)
TRAIN, VALIDATION, TEST = 36_000, 4_000, 5_000


def probability(wait):
    """Of a click: neither rising nor falling in the number; ½ where it is missing."""
    return np.where(np.isnan(wait), 0.5, 1 / (1 + np.exp(-3 * np.cos(2 * np.nan_to_num(wait)))))


def prepare(path, train=TRAIN, validation=VALIDATION, test=TEST):
    """A store of samples of 1,000 users, who each have up to 10 behaviours."""
    ends = train, train + validation, train + validation + test
    splits = dict(zip(("train", "validation", "test"), itertools.pairwise((0, *ends)), strict=True))
    rng, count, users, events = np.random.default_rng(0), ends[-1], 1000, 10_000
    wait = np.where(rng.random(count) < 0.1, np.nan, rng.normal(size=count)).astype(np.float32)
    user = rng.integers(users, size=count)
    with StoreWriter(path, SCHEMA) as writer:
        writer.append("samples/label", (rng.random(count) < probability(wait)).astype(np.uint8))
        writer.append("samples/user", user)
        writer.append("fields/item", rng.integers(1, 101, count))
        writer.append("fields/wait", wait)
        writer.append("fields/price", rng.normal(size=count).astype(np.float32))
        writer.append("sequences/history.start", 10 * user)
        writer.append("sequences/history.end", 10 * user + rng.integers(11, size=count))
        writer.append("events/history/item", rng.integers(1, 101, events))
        prices = rng.normal(size=events)
        prices[rng.random(events) < 0.2] = np.nan
        writer.append("events/history/price", prices.astype(np.float32))
        writer.vocabulary("item", pl.Series(range(1, 101)), np.ones(100, np.int64))
        writer.finish(splits, {})
    return path


@pytest.mark.long
@pytest.mark.parametrize("name", ["din", "base"])
def test_a_model_reaches_the_best_that_a_number_allows(tmp_path, name):
    planted = prepare(tmp_path / "store")
    config = default_config()
    config.data.store = str(planted)
    config.model.preset = "recommended"
    config.model.name = name
    config.train.batch_size = 128
    config.optimizer.learning_rate = 0.005
    config.train.select = "auc"
    found = train(config, tmp_path / "run").metrics["auc"]
    store = Store(planted)
    test = slice(TRAIN + VALIDATION, None)
    labels, wait = (store.column(name)[test] for name in ("samples/label", "fields/wait"))
    best = auc(labels, probability(wait))
    assert best > 0.8
    assert found > best - 0.01
