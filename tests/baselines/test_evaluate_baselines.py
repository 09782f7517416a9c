"""The cache of metrics, the choice of the best baseline, and stores that lack something."""

import numpy as np
import polars as pl
import pytest
from baseline_stores import random_store

from din_jax.baselines.evaluate import Baselines, best_baseline
from din_jax.data.schema import Field, Schema, Table
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.errors import DinError


def without_histories(path, labels, splits):
    """A store of one ad field."""
    schema = Schema((Table("item", 4),), (Field("item", "item", "ad"),), ())
    with StoreWriter(path, schema) as writer:
        writer.append("samples/label", np.array(labels))
        writer.append("samples/user", np.zeros(len(labels), np.uint8))
        writer.append("fields/item", np.arange(len(labels)) % 4)
        writer.vocabulary("item", pl.Series(["a", "b", "c"]), np.array([1, 1, 1]))
        writer.finish(splits, {})
    return Store(path)


def test_metrics_are_cached_in_the_store_and_a_damaged_file_is_written_again(tmp_path, monkeypatch):
    store = random_store(tmp_path / "store")
    expected = Baselines(store).metrics("test")
    calls = []
    metrics = Baselines.metrics
    monkeypatch.setattr(Baselines, "metrics", lambda *a: calls.append(a[1]) or metrics(*a))
    assert Baselines(store).cached_metrics("test") == expected and calls == ["test"]
    (file,) = (tmp_path / "store/baselines").iterdir()
    assert Baselines(store).cached_metrics("test") == expected and len(calls) == 1
    file.write_bytes(file.read_bytes()[:-1])
    assert Baselines(store).cached_metrics("test") == expected and len(calls) == 2
    for other in (
        Baselines(store, max_history=2).cached_metrics("test"),
        Baselines(store, "train+validation").cached_metrics("test"),
        Baselines(store).cached_metrics("validation"),
    ):
        assert other != expected
    assert len(calls) == 5
    assert len(list((tmp_path / "store/baselines").iterdir())) == 4


def test_a_store_that_cannot_be_written_to_is_measured_each_time(tmp_path):
    store = random_store(tmp_path / "store")
    (tmp_path / "store/baselines").write_text("a file in place of the folder")
    assert Baselines(store).cached_metrics("test") == Baselines(store).metrics("test")


def test_the_best_is_chosen_on_validation_and_measured_on_test(tmp_path):
    store = random_store(tmp_path / "store", seed=5, count=240)
    baselines, refitted = Baselines(store), Baselines(store, "train+validation")
    on = {split: baselines.cached_metrics(split) for split in ("validation", "test")}
    for select, best_of in (("user_weighted_auc", max), ("auc", max), ("log_loss", min)):
        values = {
            split: {name: m[select] for name, m in metrics.items() if select in m}
            for split, metrics in on.items()
        }
        best = best_baseline(store, select)
        assert values["validation"][best.name] == best_of(values["validation"].values())
        assert best.metrics == on["test"][best.name]
        on_test = best_of(values["test"].values())
        assert best.metrics[select] != on_test, "else this test does not tell the splits apart"
        again = best_baseline(store, select, fit="train+validation")
        assert again.name == best.name
        assert again.metrics == refitted.cached_metrics("test")[best.name]
    assert refitted.cached_metrics("test") != on["test"]


def test_without_validation_it_is_the_logistic_regression(tmp_path):
    splits = {"train": (0, 80), "validation": (80, 80), "test": (80, 100)}
    store = without_histories(tmp_path / "store", [0, 1, 1, 0] * 25, splits)
    best = best_baseline(store, "auc", fit="train+validation")
    assert best.name == "logistic regression"
    assert best.metrics["auc"] == 1.0  # by the item's click rate
    with pytest.raises(DinError, match="the split 'validation' has no samples"):
        Baselines(store).metrics("validation")
    with pytest.raises(DinError, match="no split 'tset'"):
        Baselines(store).cached_metrics("tset")


def test_what_one_class_gives(tmp_path):
    splits = {"train": (0, 4), "validation": (4, 8), "test": (8, 10)}
    store = without_histories(tmp_path / "store", [1, 1, 1, 1, 0, 0, 0, 0, 1, 0], splits)
    metrics = Baselines(store).metrics("test")
    assert metrics["logistic regression"]["auc"] == 0.5  # nothing to fit
    assert list(metrics) == [
        "click rate of the user",
        "click rate of item",
        "popularity of item by clicks",
        "logistic regression",
    ]
    with pytest.raises(DinError, match="store: auc can't be computed on validation"):
        best_baseline(store, "auc")
