"""Runs on a store with sample weights."""

import json
import types

import numpy as np
import pytest
from runs import tiny_config
from sklearn.metrics import log_loss, roc_auc_score
from weighted_stores import with_weights, write_with_weights

from din_jax import evaluate, train
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.training.evaluation import Evaluator, metrics_table
from din_jax.training.run import open_run


def test_samples_of_weight_0_are_scored_and_measured_beside(rich):
    weights = np.random.default_rng(0).choice([0, 0.3, 2], 90).astype(np.float32)
    logits = np.random.default_rng(1).standard_normal(90)

    def score(_, calls):
        (batch,) = calls
        assert batch.weight.tolist() in ([1] * 32, [1] * 28 + [0] * 4)
        i = score.done
        score.done += 32
        return np.pad(logits[i : min(i + 32, 60)], (0, max(0, i + 32 - 60)))

    score.done = 0
    store = with_weights(rich[0], weights)
    evaluator = Evaluator(score, store, "train", batch_size=32, max_history=3)
    scores = evaluator.scores(types.SimpleNamespace(step=7))
    p = 1 / (1 + np.exp(-logits[:60]))
    np.testing.assert_allclose(scores.probabilities, p)
    assert scores.weights.tolist() == weights[:60].tolist()
    plain = Evaluator(score, rich[0], "train", batch_size=32, max_history=3)
    assert plain.weights is None
    unweighted = plain.metrics(p)
    assert {k: scores.metrics[k] for k in unweighted} == pytest.approx(unweighted)
    options = {"sample_weight": weights[:60]}
    expected = roc_auc_score(scores.labels, p, **options)
    assert scores.metrics["weighted_auc"] == pytest.approx(expected)
    expected = log_loss(scores.labels, p, **options)
    assert scores.metrics["weighted_log_loss"] == pytest.approx(expected)
    table = metrics_table("test", scores.metrics)
    assert f"weighted_log_loss           {expected:>12.6f}" in table
    assert table.splitlines()[-1].split() == [
        "weighted_users_skipped",
        str(scores.metrics["weighted_users_skipped"]),
    ]


def test_a_metric_with_weights_needs_a_store_with_weights(planted_store):
    keys = {"train.select": "weighted_auc"}
    with pytest.raises(DinError, match=r"has no sample weights .* use 'auc', or prepare it with"):
        open_run(tiny_config(planted_store, **keys))


@pytest.mark.long
def test_a_run_follows_weights_and_selects_by_them(planted_store, tmp_path, capsys):
    count = len(Store(planted_store))
    rng = np.random.default_rng(0)
    weights = {"ones": np.ones(count), "drawn": rng.choice([0, 0.05, 1, 2], count)}
    keys = {"model.name": "base", "regularizer.name": "mba", "train.epochs": 2}
    config = tiny_config(planted_store, **keys, **{"train.select": "log_loss"})
    plain = train(config, tmp_path / "plain")
    found = {}
    for name, drawn in weights.items():
        write_with_weights(tmp_path / name, planted_store, drawn)
        config = tiny_config(tmp_path / name, **keys)
        config.train.select = "weighted_log_loss"
        config.eval.baselines = True
        capsys.readouterr()
        found[name] = train(config, tmp_path / f"{name}-run")
        printed = capsys.readouterr().out
        # At both evaluations, in the test table, and beside the baseline's.
        assert printed.count("  weighted_log_loss ") == 4
        lines = (tmp_path / f"{name}-run/metrics.jsonl").read_text().splitlines()
        validation = [m for m in map(json.loads, lines) if m["split"] == "validation"]
        best = min(validation, key=lambda m: m["weighted_log_loss"])
        assert found[name].step == best["step"]
        again = evaluate(tmp_path / f"{name}-run", "test")
        assert again.metrics == pytest.approx(found[name].metrics, rel=1e-6)
        assert (again.weights == drawn[-len(again.weights) :].astype(np.float32)).all()
    ones = found["ones"].metrics
    assert {k: ones[k] for k in plain.metrics} == pytest.approx(plain.metrics, rel=1e-6)
    assert ones["weighted_auc"] == pytest.approx(ones["auc"])
    drawn = found["drawn"].metrics
    assert abs(drawn["auc"] - ones["auc"]) > 1e-4 and drawn["samples"] == ones["samples"]
