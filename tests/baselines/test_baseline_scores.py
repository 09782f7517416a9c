"""The baselines' scores, and the metrics of these, against plain Python and scikit-learn."""

import numpy as np
import pytest
from baseline_oracles import Oracle
from baseline_stores import random_store
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from weighted_stores import with_weights

from din_jax.baselines import co_occurrence, evaluate, logistic_regression
from din_jax.baselines.evaluate import Baselines


def columns(baselines, samples, **options):
    found = list(evaluate._columns(baselines._fitted[0], np.array(samples), **options))
    return {column.name: column.values for column in found}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("seed", "max_history", "fit", "pairs", "recent"),
    [
        (0, 0, "train", None, 50),
        (1, 3, "train", None, 50),
        (2, 0, "train+validation", None, 2),
        (3, 0, "train", 150, 50),
    ],
)
def test_scores_are_those_of_plain_python(
    tmp_path, monkeypatch, seed, max_history, fit, pairs, recent
):
    store = random_store(tmp_path / "store", seed)
    monkeypatch.setattr(evaluate, "_SAMPLES_AT_ONCE", 50)
    monkeypatch.setattr(co_occurrence, "RECENT", recent)
    every = 1
    if pairs:
        monkeypatch.setattr(co_occurrence, "MOST_PAIRS", pairs)
        baskets = Oracle(store).baskets("clicks", store.schema.sequences[0].fields[0])
        every = -(-sum(len(ids) ** 2 for ids in baskets.values()) // pairs)
        assert every > 1
    baselines = Baselines(store, fit, max_history=max_history)
    oracle = Oracle(store, fit, max_history, every)
    everything = oracle.scores(range(len(store)))
    assert_equal(columns(baselines, range(len(store))), everything)
    few = list(store.split(fit))[::4]
    left_out = oracle.scores(few, left_out=True)
    assert_equal(columns(baselines, few, left_out=True), left_out)
    moving = [name for name in left_out if (left_out[name] != everything[name][few]).any()]
    assert all(name.startswith("click rate") or name.endswith("by clicks") for name in moving)
    assert len(moving) == 6


def test_the_logistic_regression_is_scikit_learns_on_transformed_scores(tmp_path, monkeypatch):
    store = random_store(tmp_path / "store")
    monkeypatch.setattr(logistic_regression, "MOST_SAMPLES", 40)
    monkeypatch.setattr(evaluate, "MOST_SAMPLES", 40)
    rows = [int(i * 2.5) for i in range(40)]  # evenly spaced in 100

    def transformed(scores):
        for name, values in scores.items():
            if name.startswith("click rate"):
                yield np.log(values / (1 - values))
            elif name.startswith(("share", "co-occurrence")):
                yield values
            else:
                yield np.log(1 + values)

    oracle = Oracle(store)
    inputs = np.stack(list(transformed(oracle.scores(rows, left_out=True))), axis=1)
    expected = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    expected.fit(inputs, store.column("samples/label")[rows])
    test = store.split("test")
    inputs = np.stack(list(transformed(oracle.scores(test))), axis=1)
    *_, found = Baselines(store).scores(np.array(test))
    assert found.name == "logistic regression"
    np.testing.assert_allclose(found.values, expected.predict_proba(inputs)[:, 1], rtol=1e-5)


def test_metrics_with_weights_follow_those_without(tmp_path):
    store = random_store(tmp_path / "store")
    weights = np.random.default_rng(0).choice([0, 0.5, 3], 120).astype(np.float32)
    plain = Baselines(store).metrics("validation")
    found = Baselines(with_weights(store, weights)).metrics("validation")
    own = np.array(store.split("validation"))
    label, w = store.column("samples/label")[own], weights[own]
    for column in Baselines(store).scores(own):
        metrics, values = found[column.name], column.values
        unweighted = {k: v for k, v in metrics.items() if not k.startswith("weighted_")}
        assert unweighted == pytest.approx(plain[column.name], nan_ok=True)
        expected = roc_auc_score(label, values, sample_weight=w)
        assert metrics["weighted_auc"] == pytest.approx(expected)
        assert "weighted_user_weighted_auc" in metrics
        if "log_loss" in metrics:
            expected = log_loss(label, values, sample_weight=w)
            assert metrics["weighted_log_loss"] == pytest.approx(expected)


def test_metrics_are_scikit_learns(tmp_path):
    store = random_store(tmp_path / "store")
    baselines = Baselines(store)
    metrics = baselines.metrics("train")
    scores = {column.name: column.values for column in baselines.scores(np.arange(100))}
    label, user = (store.column(f"samples/{name}")[:100] for name in ("label", "user"))
    assert list(metrics) == list(scores)
    users = [np.flatnonzero(user == u) for u in np.unique(user)]
    users = [own for own in users if label[own].min() != label[own].max()]
    for name, values in scores.items():
        aucs = [roc_auc_score(label[own], values[own]) for own in users]
        by_user = np.average(aucs, weights=[len(own) for own in users])
        assert metrics[name]["user_weighted_auc"] == pytest.approx(by_user)
        assert metrics[name]["auc"] == pytest.approx(roc_auc_score(label, values))
        if name.startswith(("click rate", "logistic")):
            assert metrics[name]["log_loss"] == pytest.approx(log_loss(label, values))
        else:
            assert "log_loss" not in metrics[name]
