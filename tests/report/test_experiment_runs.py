"""Experiments end to end: lines that are really trained."""

import json
import re

import numpy as np
import pytest
from runs import tiny_config

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.data.store import Store
from din_jax.report import experiments
from din_jax.report.markdown import lines_as_markdown, table_as_markdown


def log_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def few_tables(store, **keys):
    few = {"model.without": ("category", "shop", "age", "hour"), "model.activation": "prelu"}
    return tiny_config(store, **few, **{"train.batch_size": 2048, **keys})


@pytest.mark.long
def test_lines_are_searched_on_validation_and_compared_on_test(planted_store, tmp_path):
    config = few_tables(planted_store, **{"model.name": "lr", "eval.curves": True})
    # The searched values do not change the programs: they compile once.
    lines = {"none": {}, "searched": {"train.epochs": [1, 2]}}
    result = experiments.compare_lines(config, lines, 1, tmp_path)
    none, searched = result["lines"]
    assert none["trials"] == [] and none["rela_impr"] == 0 and none["difference"]["mean"] == 0
    validation = [trial["validation"] for trial in searched["trials"]]
    assert searched["chosen"]["train.epochs"] == 1 + np.argmax(validation)
    for epochs, best in zip([1, 2], validation, strict=True):
        trial = tmp_path / "trials" / f"searched-{epochs}"
        log = log_of(trial)
        assert not any(line["split"].startswith("test") for line in log)
        scored = [line["user_weighted_auc"] for line in log if line["split"] == "validation"]
        assert max(scored) == best == Checkpoints(trial).meta("last")["best"]
    base, own = (np.mean(line["user_weighted_auc"]) for line in (none, searched))
    assert searched["rela_impr"] == pytest.approx(100 * ((own - 0.5) / (base - 0.5) - 1))
    assert searched["difference"]["mean"] == pytest.approx(own - base)
    (point,) = none["curves"]
    assert point["epoch"] == 1
    assert point["test_user_weighted_auc"] == pytest.approx(base)
    text = lines_as_markdown(result)
    assert f"| searched | {own:.4f}" in text and "| none | 1.00 |" in text
    # Nothing is trained again.
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("checkpoints/*/*")}
    assert experiments.compare_lines(config, lines, 1, tmp_path) == result
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("checkpoints/*/*")}


@pytest.mark.long
def test_refit_trains_on_all_for_as_many_epochs_as_validation_chose(planted_store, tmp_path):
    # So fast that the loss on validation is smallest before the last epoch.
    keys = {"model.name": "base", "train.epochs": 4, "train.select": "log_loss"}
    config = few_tables(planted_store, **keys, **{"optimizer.learning_rate": 0.1})
    lines = {"a": {}, "b": {"optimizer.learning_rate": [0.1, 0.03]}}
    result = experiments.compare_lines(config, lines, 2, tmp_path, against="b", refit=True)
    samples = len(Store(planted_store).split("train"))
    for line, trials in zip(result["lines"], (["a"], ["b-0.1", "b-0.03"]), strict=True):
        values = []
        for trial in trials:
            scored = log_of(tmp_path / "trials" / trial)
            by_epoch = [e["log_loss"] for e in scored if e["split"] == "validation"]
            assert len(by_epoch) == 4 and not any(e["split"] == "test" for e in scored)
            values.append((min(by_epoch), 1 + int(np.argmin(by_epoch))))
        best, epochs = min(values)
        assert line["epochs"] == epochs < 4
        assert min(t["validation"] for t in line["trials"]) == best
    for seed in range(2):
        meta = Checkpoints(tmp_path / f"a-{seed}").meta("last")
        assert meta["config"]["data"]["fit"] == "train+validation"
        both = samples + len(Store(planted_store).split("validation"))
        steps = -(-both // 2048) * result["lines"][0]["epochs"]
        assert Checkpoints(tmp_path / f"a-{seed}").latest("last") == steps
    a, b = result["lines"]
    assert b["rela_impr"] == 0 and b["difference"]["mean"] == 0
    means = [np.mean(line["user_weighted_auc"]) for line in (a, b)]
    assert a["rela_impr"] == pytest.approx(100 * ((means[0] - 0.5) / (means[1] - 0.5) - 1))


@pytest.mark.long
def test_a_training_that_diverges_leaves_the_other_lines_alone(planted_store, tmp_path):
    config = few_tables(planted_store, **{"model.name": "base"})
    wild = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e12}
    lines = {
        "wild": wild,
        "tame": {},
        "searched": {"optimizer.name": "sgd", "optimizer.learning_rate": [1e12, 0.1]},
    }
    result = experiments.compare_lines(config, lines, 1, tmp_path)
    first, tame, searched = result["lines"]
    # The chosen trial is the first seed's run, not trained a second time.
    assert len(searched["auc"]) == 1 and not list(tmp_path.glob("searched*"))
    assert log_of(tmp_path / "trials" / "searched-0.1")[-1]["auc"] == searched["auc"][0]
    assert first["diverged"] == 1 and first["auc"] == []
    assert tame["diverged"] == 0 and len(tame["auc"]) == 1
    assert searched["chosen"] == {"optimizer.learning_rate": 0.1}
    assert searched["trials"][0]["validation"] is None
    # Also if it is the last step of an epoch that makes the weights infinite.
    lines = {"late": wild | {"optimizer.learning_rate": 1e30}}
    config.train.batch_size = 6000  # all of an epoch
    (late,) = experiments.compare_lines(config, lines, 1, tmp_path / "late")["lines"]
    assert late["diverged"] == 1
    for text in (lines_as_markdown(result), table_as_markdown(result, {})):
        assert re.search(r"\| wild \| diverged \|", text)
        assert "learning_rate 1e+12: diverged; learning_rate 0.1: 0." in text
