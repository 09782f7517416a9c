"""Lines of an experiment, with a stand-in for training: what is searched, trained and compared."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from runs import tiny_config

from din_jax.errors import DinError, Diverged
from din_jax.report import experiments
from din_jax.report.compare import compare
from din_jax.report.markdown import lines_as_markdown, table_as_markdown
from din_jax.training.evaluation import Scores

BATCHES = -(-300 * 20 // 64)  # of an epoch of `planted_store`


def scores(excess):
    """Scores of 200 users, of whom a fraction of 0.5 + `excess` is ranked right, the rest tied."""
    labels = np.tile([0, 1], 200)
    right = np.arange(400) // 2 < 200 * (0.5 + excess)
    metrics = {"user_weighted_auc": 0.75 + excess / 2, "auc": 0.75 + excess / 2, "log_loss": 0.5}
    return Scores(0, metrics, labels.cumsum() - labels, labels, np.where(right, labels, 0.5))


class StandIn:
    """A stand-in for `train` and `Checkpoints`.

    Attributes:
      validation: {folder: validation metric by epoch} of trials.
      test: {folder: the test scores' excess, see `scores`} of runs.
      trained: (folder, config, whether test was scored) of each call. A folder that has no value
        diverges.
    """

    def __init__(self):
        self.validation, self.test, self.trained = {}, {}, []

    def train(self, config, folder, *, test=True):
        self.trained.append((folder.name, config, test))
        values = self.test if test else self.validation
        if folder.name not in values:
            raise Diverged(f"{folder.name} has diverged")
        folder.mkdir(parents=True, exist_ok=True)
        epochs = [{"step": step, "split": "train", "epoch": step / 10} for step in (10, 20)]
        curves = [
            {"step": line["step"], "split": f"{split}_curve"}
            | dict.fromkeys(experiments.METRICS, line["step"] / 100 + config.seed)
            for line in epochs
            for split in ("train", "test")
            if config.eval.curves
        ]
        log = "".join(json.dumps(line) + "\n" for line in epochs + curves)
        (folder / "metrics.jsonl").write_text(log)
        return scores(self.test[folder.name]) if test else None

    def checkpoints(self, folder):
        return StandInCheckpoints(self.validation[Path(folder).name])


class StandInCheckpoints:
    def __init__(self, values):
        self.values = values

    def meta(self, kind):
        assert kind == "last"
        return {"best": max(self.values)}

    def latest(self, kind):
        assert kind == "best"
        return BATCHES * (1 + int(np.argmax(self.values)))


@pytest.fixture
def stand_in(monkeypatch):
    made = StandIn()
    monkeypatch.setattr(experiments, "train", made.train)
    monkeypatch.setattr(experiments, "Checkpoints", made.checkpoints)
    return made


def config_of(store, **keys):
    few = {"model.name": "lr", "model.without": ("category", "shop", "age", "hour")}
    return tiny_config(store, **few | keys)


RATES = {"optimizer.learning_rate": [0.5, 0.25], "regularizer.rate": [1.0, 2.0]}


def test_a_line_is_searched_on_validation_and_its_best_setting_is_run(
    planted_store, tmp_path, stand_in
):
    stand_in.validation = {
        "b-0.5-1": [0.6],
        "b-0.5-2": [0.7],
        "b-0.25-1": [0.9],
        "b-0.25-2": [0.8],
    }
    stand_in.test = {"a-3": 0.1, "a-4": 0.2, "b-0.25-1": 0.3, "b-0.25-1-4": 0.4}
    config = config_of(planted_store, seed=3)
    lines = {"a": {"optimizer.learning_rate": 0.125}, "b": RATES}
    result = experiments.compare_lines(config, lines, 2, tmp_path)
    a, b = result["lines"]
    called = {
        (folder, config.seed): (config.optimizer.learning_rate, config.regularizer.rate, test)
        for folder, config, test in stand_in.trained
    }
    # The chosen trial is the first seed's run, and is scored on test only then.
    assert len(stand_in.trained) == 8
    assert called == {
        ("a-3", 3): (0.125, 0.01, True),
        ("a-4", 4): (0.125, 0.01, True),
        ("b-0.5-1", 3): (0.5, 1.0, False),
        ("b-0.5-2", 3): (0.5, 2.0, False),
        ("b-0.25-2", 3): (0.25, 2.0, False),
        ("b-0.25-1", 3): (0.25, 1.0, True),
        ("b-0.25-1-4", 4): (0.25, 1.0, True),
    }
    assert {path.name for path in (tmp_path / "trials").iterdir()} == set(stand_in.validation)
    assert (a["chosen"], a["trials"]) == ({}, [])
    assert b["chosen"] == {"optimizer.learning_rate": 0.25, "regularizer.rate": 1.0}
    assert [trial["validation"] for trial in b["trials"]] == [0.6, 0.7, 0.9, 0.8]
    assert b["trials"][1] | b["chosen"] == b["chosen"] | {"validation": 0.7}
    assert b["user_weighted_auc"] == [0.75 + 0.15, 0.75 + 0.2]
    assert (a["rela_impr"], a["difference"]["mean"]) == (0, 0)
    assert b["rela_impr"] == pytest.approx(100 * (0.425 / 0.325 - 1))
    assert b["difference"]["mean"] == pytest.approx(0.1)
    text = lines_as_markdown(result)
    assert "| b | 0.9250 ± 0.0354 | +30.77 % | +0.1000 (" in text
    assert "| learning_rate 0.25, rate 1 |" in text
    assert "learning_rate 0.5, rate 2: 0.7000; learning_rate 0.25, rate 1: 0.9000;" in text


def test_the_smallest_log_loss_is_chosen(planted_store, tmp_path, stand_in):
    stand_in.validation = {"a-0.5": [0.6], "a-0.25": [0.7]}
    stand_in.test = {"a-0.5": 0.1}
    config = config_of(planted_store, **{"train.select": "log_loss"})
    lines = {"a": {"optimizer.learning_rate": [0.5, 0.25]}}
    (line,) = experiments.compare_lines(config, lines, 1, tmp_path)["lines"]
    assert line["chosen"] == {"optimizer.learning_rate": 0.5}


def test_a_refit_trains_on_all_for_as_many_epochs_as_validation_chose(
    planted_store, tmp_path, stand_in
):
    stand_in.validation = {"a": [0.6, 0.8, 0.7], "b-0.5": [0.9, 0.8, 0.7], "b-0.25": [0.6, 0.7, 0]}
    stand_in.test = {"a-0": 0.1, "a-1": 0.2, "b-0.5-0": 0.3, "b-0.5-1": 0.4}
    config = config_of(planted_store, **{"train.epochs": 3})
    lines = {"a": {}, "b": {"optimizer.learning_rate": [0.5, 0.25]}}
    result = experiments.compare_lines(config, lines, 2, tmp_path, against="b", refit=True)
    a, b = result["lines"]
    assert (a["epochs"], b["epochs"]) == (2, 1)
    for folder, config, test in stand_in.trained:
        fit = (config.data.fit, config.train.epochs, test)
        if folder in stand_in.validation:
            assert fit == ("train", 3, False)
        else:
            assert fit == ("train+validation", {"a": 2, "b": 1}[folder[0]], True)
    assert [folder for folder, *_ in stand_in.trained if folder in stand_in.test] == [
        *stand_in.test
    ]
    assert (b["rela_impr"], b["difference"]["mean"]) == (0, 0)
    assert a["rela_impr"] == pytest.approx(100 * (0.325 / 0.425 - 1))


def test_a_line_that_diverges_leaves_the_others_alone(planted_store, tmp_path, stand_in):
    stand_in.validation = {"searched-0.1": [0.7]}
    stand_in.test = {"tame-0": 0.1, "searched-0.1": 0.2}
    rates = {"optimizer.learning_rate": [1e12, 0.1]}
    lines = {"wild": {}, "tame": {}, "searched": rates, "lost": {"seed": [7, 8]}}
    result = experiments.compare_lines(config_of(planted_store), lines, 1, tmp_path)
    wild, tame, searched, lost = result["lines"]
    assert (wild["diverged"], wild["auc"]) == (1, [])
    assert (tame["diverged"], tame["auc"]) == (0, [0.8])
    assert tame["rela_impr"] is None and tame["difference"] is None  # nothing to compare with
    assert searched["chosen"] == {"optimizer.learning_rate": 0.1}
    assert [trial["validation"] for trial in searched["trials"]] == [None, 0.7]
    assert lost["diverged"] == 1
    called = [folder for folder, *_ in stand_in.trained]
    assert called.count("lost-7") + called.count("lost-8") == 2, "trials, and no run"
    for text in (lines_as_markdown(result), table_as_markdown(result, {})):
        assert re.search(r"\| wild \| diverged \|", text)
        assert "learning_rate 1e+12: diverged; learning_rate 0.1: 0.7000" in text


def test_lines_are_compared_over_the_seeds_that_both_have(planted_store, tmp_path, stand_in):
    stand_in.test = {"a-0": 0.1, "a-1": 0.3, "b-1": 0.2}
    lines = {"a": {}, "b": {}}
    result = experiments.compare_lines(config_of(planted_store), lines, 2, tmp_path)
    a, b = result["lines"]
    assert (a["diverged"], b["diverged"]) == (0, 1)
    # Of seed 1 alone: 0.2 of all users and 0.3 of all, each worth half a pair.
    assert b["difference"]["mean"] == pytest.approx((0.2 - 0.3) / 2)
    assert b["rela_impr"] == pytest.approx(100 * ((0.35 / 0.4) - 1))


def test_curves_are_means_over_the_seeds(planted_store, tmp_path, stand_in):
    stand_in.validation = {"b-0.5": [0.6], "b-0.25": [0.7]}
    stand_in.test = dict.fromkeys(("a-0", "a-1", "b-0.25-0", "b-0.25-1"), 0.1)
    config = config_of(planted_store, **{"eval.curves": True})
    lines = {"a": {}, "b": {"optimizer.learning_rate": [0.5, 0.25]}}
    result = experiments.compare_lines(config, lines, 2, tmp_path)
    for line in result["lines"]:
        assert [point["epoch"] for point in line["curves"]] == [1, 2]
        assert line["curves"][1]["test_user_weighted_auc"] == pytest.approx(0.2 + 0.5)
    # Trials have none, so that the first seed's run is trained beside them.
    trials = {folder: config.eval.curves for folder, config, test in stand_in.trained if not test}
    assert trials == {"b-0.5": False, "b-0.25": False}
    assert "| a | 2.00 | 0.7000 | 0.7000 | 0.7000 | 0.7000 | 0.7000 |" in lines_as_markdown(result)


def test_models_are_compared_by_activation(planted_store, tmp_path, stand_in):
    stand_in.test = {"base-dice-0": 0.1, "base-dice-1": 0.2, "din-dice-0": 0.2, "din-dice-1": 0.4}
    stand_in.test |= {f"{model}-prelu-{seed}": 0.3 for model in ("base", "din") for seed in (0, 1)}
    result = compare(config_of(planted_store), ["base", "din"], ["dice", "prelu"], 2, tmp_path)
    dice, prelu = result["differences"]
    assert (dice["model"], dice["minus"], dice["activation"]) == ("din", "base", "dice")
    assert dice["by_seed"] == pytest.approx([0.05, 0.1])
    assert dice["mean"] == pytest.approx(0.075)
    assert dice["low"] < dice["mean"] < dice["high"]
    assert dice["rela_impr"] == pytest.approx(100 * (0.4 / 0.325 - 1))
    assert prelu["by_seed"] == [0, 0]
    assert {line["model"] + "-" + line["activation"] for line in result["lines"]} == {
        "base-dice",
        "din-dice",
        "base-prelu",
        "din-prelu",
    }
    for folder, config, test in stand_in.trained:
        assert folder == f"{config.model.name}-{config.model.activation}-{config.seed}" and test


def test_lines_and_models_that_are_compared_follow_the_preset(planted_store, tmp_path, stand_in):
    config = config_of(planted_store)
    stand_in.test = {"a-0": 0.1, "b-0": 0.2, "din-dice-0": 0.1, "lr-dice-0": 0.2}
    experiments.compare_lines(config, {"a": {}, "b": {"model.preset": "recommended"}}, 1, tmp_path)
    config.model.preset = "recommended"
    compare(config, ["din", "lr"], ["dice"], 1, tmp_path)
    trained = {folder: (c.model.pooling, c.regularizer.name) for folder, c, _ in stand_in.trained}
    assert trained == {
        "a-0": ("sum", "none"),
        "b-0": ("mean", "none"),  # logistic regression has no n_j
        "din-dice-0": ("mean", "mba"),
        "lr-dice-0": ("mean", "none"),
    }


def test_a_line_sets_a_key_of_several_types(planted_store):
    config = tiny_config(planted_store)
    setting = {"optimizer.lazy": "catch_up", "devices": "all"}
    updated = experiments.updated(config, setting)
    assert (updated.optimizer.lazy, updated.devices) == ("catch_up", "all")
    assert (config.optimizer.lazy, config.devices) == (True, 1)


@pytest.mark.parametrize(
    ("lines", "keys", "message"),
    [
        ({"a": {"regularizer.rat": 1.0}}, {}, "can't set {'regularizer.rat': 1.0}"),
        ({"a": {"regularizer.rate": "much"}}, {}, "can't set {'regularizer.rate': 'much'}"),
        ({"a": {"regularizer.rate": []}}, {}, "the list of values of regularizer.rate is empty"),
        ({"a": {"regularizer.rate": [0.1, 0.1]}}, {}, "would share the folder 'a-0.1'"),
        (
            {"a": {"regularizer.rate": [0.1, 0.2]}},
            {"data.fit": "train+validation"},
            "a line is searched on validation",
        ),
        (
            {"a": {}, "b": {"model.name": "pnn", "model.table_dims": "shop=2"}},
            {"model.without": ("category", "age", "hour")},
            "one width",
        ),
        ({"a": {}, "b": {"model.name": "lr", "regularizer.name": "mba"}}, {}, "no counts n_j"),
    ],
)
def test_wrong_lines_are_explained_before_anything_is_trained(
    planted_store, tmp_path, stand_in, lines, keys, message
):
    config = config_of(planted_store, **keys)
    with pytest.raises(DinError, match=re.escape(message)):
        experiments.compare_lines(config, lines, 1, tmp_path / "runs")
    assert not (tmp_path / "runs").exists() and not stand_in.trained


@pytest.mark.parametrize(
    ("keys", "how", "message"),
    [
        ({"train.evaluations_per_epoch": 2}, {"refit": True}, "evaluate once an epoch"),
        ({"data.fit": "train+validation"}, {"refit": True}, "searched on validation"),
        ({}, {"against": "c"}, "no line 'c' to compare with; the lines are: a, b"),
    ],
)
def test_an_impossible_comparison_is_refused(planted_store, tmp_path, stand_in, keys, how, message):
    config = config_of(planted_store, **keys)
    with pytest.raises(DinError, match=message):
        experiments.compare_lines(config, {"a": {}, "b": {}}, 1, tmp_path / "runs", **how)
    assert not (tmp_path / "runs").exists() and not stand_in.trained
