"""Numbers as baselines: their values, and what they add to the regression."""

import dataclasses

import numpy as np
import pytest
from baseline_stores import SCHEMA, random_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from din_jax.baselines.evaluate import Baselines
from din_jax.baselines.logistic_regression import _transformed
from din_jax.data.columns import column_names
from din_jax.data.schema import NumericField
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter


def with_numbers(store, path, **numbers):
    """The store with numeric fields of the context."""
    schema = dataclasses.replace(
        SCHEMA, numbers=tuple(NumericField(name, "context") for name in numbers)
    )
    with StoreWriter(path, schema) as writer:
        for name in column_names(SCHEMA):
            writer.append(name, store.column(name))
        for name, values in numbers.items():
            writer.append(f"fields/{name}", np.float32(values))
        for table in schema.tables:
            ids, counts = store.vocabulary(table.name)
            writer.vocabulary(table.name, ids[1:], counts[1:])
        splits = {name: store.split(name) for name in ("train", "validation", "test")}
        writer.finish({k: (s.start, s.stop) for k, s in splits.items()}, {})
    return Store(path)


def test_numbers_are_baselines_and_columns_of_the_regression(tmp_path):
    store, rng = random_store(tmp_path / "store"), np.random.default_rng(0)
    label = store.column("samples/label")
    price, wait = label + rng.normal(size=(2, len(label)))
    price[::3] = np.nan
    wait[-20:] = np.nan  # in training all are known
    numbers = with_numbers(store, tmp_path / "numbers", price=price, wait=wait)
    baselines, samples = Baselines(numbers), np.arange(len(label))
    found = list(baselines.scores(samples))
    known = np.nan_to_num(np.float32(price), nan=np.nanmean(np.float32(price)[:100], dtype=float))
    late = np.nan_to_num(np.float32(wait), nan=np.mean(np.float32(wait)[:100], dtype=float))
    expected = {"number price": known, "missing price": samples % 3 == 0, "number wait": late}
    # All others are those of the store without numbers; the regression is the last.
    others = [column.name for column in Baselines(store).scores(samples)][:-1]
    assert [c.name for c in found] == [*others, *expected, "logistic regression"]
    for column in found[len(others) : -1]:
        np.testing.assert_allclose(column.values, expected[column.name], rtol=1e-6)
    auc = baselines.metrics("train")["number price"]["auc"]
    assert auc == pytest.approx(roc_auc_score(label[:100], known[:100]))

    left_out = [
        column
        for fitted in baselines._fitted[0]
        for column in fitted.columns(samples[:100], left_out=True)
    ]
    inputs = np.stack([_transformed(column) for column in left_out], axis=1)
    mean, std = inputs.mean(axis=0), inputs.std(axis=0)
    regression = LogisticRegression(max_iter=1000).fit((inputs - mean) / std, label[:100])
    scored = np.stack([_transformed(column) for column in found[:-1]], axis=1)
    probabilities = regression.predict_proba((scored - mean) / std)[:, 1]
    np.testing.assert_allclose(found[-1].values, probabilities, rtol=1e-5)
