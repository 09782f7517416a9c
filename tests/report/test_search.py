"""Searches, with a stand-in for training: which trials they have, and how they end."""

import fcntl
import itertools
import math
import signal
import sys
import types

import pytest
from runs import tiny_config

from din_jax.errors import DinError, Diverged, Interrupted
from din_jax.report import __main__ as report
from din_jax.report.markdown import search_as_markdown
from din_jax.report.search_space import Choice, Range, as_flags, default_space, read_space

pytest.importorskip("optuna")
from din_jax.report import search as module
from din_jax.report.search import search

SPACE = {"optimizer.learning_rate": ("log", 1e-4, 1.0), "regularizer.rate": [0.0, 1.0]}


class StandIn:
    """A stand-in for `train`, `Checkpoints` and `open_run`.

    `curve(config)` has the metric on validation after each epoch; None: the training diverges.

    Attributes:
      trained: (folder, learning rate, epochs taken) of each call.
      stop_at: (call, epoch) at which a signal asks to stop; the epoch before is saved.
    """

    def __init__(self, monkeypatch):
        self.curve = lambda config: [peak(config), peak(config) + 0.01, peak(config)]
        self.trained, self.saved, self.best, self.stop_at = [], {}, {}, None
        monkeypatch.setattr(module, "train", self.train)
        monkeypatch.setattr(module, "Checkpoints", self.checkpoints)
        run = types.SimpleNamespace(store=types.SimpleNamespace(fingerprint="f"))
        monkeypatch.setattr(module, "open_run", lambda config: run)

    def train(self, config, folder, *, test, on_evaluation):
        assert not test and not config.eval.curves
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        self.trained.append([folder.name, config.optimizer.learning_rate, 0])
        call, done = self.trained[-1], self.saved.get(folder, 0)
        for epoch, value in enumerate(self.curve(config), 1):
            if value is None:
                raise Diverged("the loss is nan")
            if epoch <= done:
                continue
            if self.stop_at == (len(self.trained), epoch):
                raise Interrupted("stopped and saved", signal.SIGINT)
            self.saved[folder], call[2] = epoch, call[2] + 1
            better = min if config.train.select == "log_loss" else max
            self.best[folder] = better(self.best.get(folder, value), value)
            on_evaluation(float(epoch), {config.train.select: value, "other": 0.5})

    def checkpoints(self, folder):
        self.meta = lambda kind: {"best": self.best[folder]}
        return self


def peak(config):
    """A metric that is best at a learning rate of 0.01."""
    return 0.8 - 0.05 * abs(math.log10(config.optimizer.learning_rate) + 2)


@pytest.fixture
def stand_in(monkeypatch):
    return StandIn(monkeypatch)


@pytest.fixture
def config():
    keys = {"model.name": "lr", "train.epochs": 3, "eval.curves": True}
    return tiny_config("store", **keys)


def test_a_search_finds_the_best_value_and_keeps_its_weights_alone(config, tmp_path, stand_in):
    result = search(config, SPACE, 25, tmp_path)
    best = result["trials"][0]
    assert result["select"] == "user_weighted_auc" and len(result["trials"]) == 25
    assert abs(math.log10(best["setting"]["optimizer.learning_rate"]) + 2) < 0.2
    by_folder = {folder: rate for folder, rate, _ in stand_in.trained}
    for trial in result["trials"]:
        assert by_folder[trial["trial"]] == trial["setting"]["optimizer.learning_rate"]
    complete = [t for t in result["trials"] if t["state"] == "complete"]
    values = [trial["validation"] for trial in complete]
    assert values == sorted(values, reverse=True)
    # The best epoch of the three.
    config.optimizer.learning_rate = best["setting"]["optimizer.learning_rate"]
    assert values[0] == peak(config) + 0.01
    kept = [path.parent.name for path in tmp_path.glob("trials/*/checkpoints")]
    assert kept == [best["trial"]]


def test_trials_are_drawn_by_the_seed_and_the_scale(config, tmp_path, stand_in):
    rates = {}
    for seed, scale in ((0, "log"), (1, "log"), (0, "linear")):
        config.seed = seed
        space = {"optimizer.learning_rate": (scale, 1e-4, 1.0)}
        trials = search(config, space, 10, tmp_path / f"{seed}-{scale}")["trials"]
        rates[seed, scale] = sorted(t["setting"]["optimizer.learning_rate"] for t in trials)
    assert rates[0, "log"] != rates[1, "log"]
    assert rates[0, "log"][5] < 0.1 < rates[0, "linear"][5]
    for rate in itertools.chain.from_iterable(rates.values()):
        assert float(f"{rate:.3g}") == rate


def test_the_first_trial_has_the_configs_own_values(config, tmp_path, stand_in):
    config.optimizer.learning_rate, config.regularizer.rate = 0.0123, 0.5
    trials = search(config, SPACE, 1, tmp_path)["trials"]
    assert trials[0]["setting"]["optimizer.learning_rate"] == 0.0123
    assert trials[0]["setting"]["regularizer.rate"] in (0.0, 1.0)  # 0.5 is not in the space


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(config, tmp_path, stand_in, epoch):
    whole = search(config, SPACE, 12, tmp_path / "whole")
    taken = [(rate, epochs) for _, rate, epochs in stand_in.trained]
    stand_in.trained.clear()
    search(config, SPACE, 3, tmp_path / "parts")
    for _ in range(2):  # twice, in the same trial
        stand_in.stop_at = (len(stand_in.trained) + 1, epoch)
        with pytest.raises(Interrupted):
            search(config, SPACE, 12, tmp_path / "parts")
    stand_in.stop_at = (9, 1)
    with pytest.raises(Interrupted):
        search(config, SPACE, 12, tmp_path / "parts")
    parts = search(config, SPACE, 12, tmp_path / "parts")
    calls = [
        (folder, list(group))
        for folder, group in itertools.groupby(stand_in.trained, lambda c: c[0])
    ]
    assert [(group[0][1], sum(c[2] for c in group)) for _, group in calls] == taken
    assert len({folder for folder, _ in calls}) == len(calls)  # each trial has one folder
    without = [{**t, "trial": ""} for t in whole["trials"]]
    assert [{**t, "trial": ""} for t in parts["trials"]] == without
    # A complete search trains nothing more.
    stand_in.train = None
    assert search(config, SPACE, 12, tmp_path / "parts") == parts


@pytest.mark.parametrize("select", ["auc", "log_loss"])
def test_a_trial_that_is_worse_than_the_median_is_pruned(config, tmp_path, stand_in, select):
    config.train.select = select
    sign = -1 if select == "log_loss" else 1

    def curve(config):
        calls = len(stand_in.trained)
        if calls == 6:
            return [0.5 - 0.1 * sign, 0.5, 0.5]  # bad after one epoch
        if calls == 7:
            return [0.5 + 0.1 * sign, 0.5 - 0.1 * sign, 0.5]  # its best epoch is above the median
        if calls == 8:
            return [0.5 + 0.001 * sign, 0.5, 0.5 - 0.2 * sign]
        return [0.5 + 0.001 * calls * sign] * 3

    stand_in.curve = curve
    result = search(config, SPACE, 8, tmp_path)
    assert [epochs for _, _, epochs in stand_in.trained] == [3, 3, 3, 3, 3, 1, 3, 1]
    states = {trial["trial"]: trial["state"] for trial in result["trials"]}
    assert [states[str(i)] for i in range(8)] == ["complete"] * 5 + ["pruned", "complete", "pruned"]
    assert result["trials"][0]["trial"] == "6"
    assert result["trials"][0]["validation"] == 0.5 + 0.1 * sign
    text = search_as_markdown(result)
    assert "8 trials: 6 complete, 2 pruned" in text and f"validation {select}" in text
    assert text.count("\n| ") == 1 + 1 + 6  # the pruned ones are not in the table


def test_a_trial_that_is_bad_at_its_end_alone_is_complete(config, tmp_path, stand_in):
    stand_in.curve = lambda config: [0.5, 0.5, 0.6 - 0.01 * len(stand_in.trained)]
    states = [trial["state"] for trial in search(config, SPACE, 8, tmp_path)["trials"]]
    assert states == ["complete"] * 8


def test_a_trial_that_diverges_is_the_worst_and_the_search_goes_on(config, tmp_path, stand_in):
    def curve(config):
        diverges = config.optimizer.learning_rate > 0.02
        return [peak(config), None if diverges else peak(config), peak(config)]

    stand_in.curve = curve
    result = search(config, SPACE, 20, tmp_path)
    states = [trial["state"] for trial in result["trials"]]
    order = ["complete", "pruned", "diverged"]
    assert states == sorted(states, key=order.index) and "diverged" in states
    for trial in result["trials"]:
        if trial["state"] == "diverged":
            assert trial["setting"]["optimizer.learning_rate"] > 0.02
            assert trial["validation"] is None
    # The sampler knows them, as the worst.
    study = module._study(config, tmp_path)
    assert [t.value for t in study.trials].count(-math.inf) == states.count("diverged")


def test_values_that_cannot_be_combined_are_refused_and_the_search_goes_on(
    config, tmp_path, stand_in, capsys
):
    space = {
        "regularizer.name": ["none", "dropout"],
        "regularizer.behavior_dropout": [0.0, 0.5],
        "regularizer.rate": ("log", 0.1, 1.0),
    }
    for trials in (6, 20):  # and it resumes
        result = search(config, space, trials, tmp_path)
    assert len(result["trials"]) == 20
    refused = [trial for trial in result["trials"] if trial["state"] == "refused"]
    assert 0 < len(refused) < 20 and result["trials"][-1] in refused
    for trial in result["trials"]:
        both = [trial["setting"][key] for key in list(space)[:2]] == ["dropout", 0.5]
        assert both == (trial in refused) == (trial["validation"] is None)
    assert "refused: config.regularizer.behavior_dropout=0.5 is for" in capsys.readouterr().out
    assert f"{len(refused)} refused" in search_as_markdown(result)


def test_equal_settings_are_trained_once(config, tmp_path, stand_in):
    space = {"model.hidden": [(8,), (16,)]}
    result = search(config, space, 9, tmp_path)
    assert len(result["trials"]) == 9 and len(stand_in.trained) == 2
    assert {t["setting"]["model.hidden"] for t in result["trials"]} == {(8,), (16,)}
    assert (tmp_path / "trials" / result["trials"][0]["trial"] / "checkpoints").is_dir()


def test_another_search_in_the_same_folder_is_refused(config, tmp_path, stand_in):
    search(config, SPACE, 1, tmp_path)
    other = config.copy_and_resolve_references()
    other.model.embedding_dim = 5
    with pytest.raises(DinError, match=r"another search:\n  config.model.embedding_dim: 4 then, 5"):
        search(other, SPACE, 2, tmp_path)
    with pytest.raises(DinError, match=r"another search:\n(.*\n)*  SEARCH: .* then, .* now"):
        search(config, {**SPACE, "regularizer.rate": [0.0, 2.0]}, 2, tmp_path)
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DinError, match="another process is searching there"):
            search(config, SPACE, 2, tmp_path)
    search(config, SPACE, 2, tmp_path)


def test_a_search_does_not_train_on_validation(config, tmp_path, stand_in):
    config.data.fit = "train+validation"
    with pytest.raises(DinError, match="selects on validation"):
        search(config, SPACE, 1, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([], r"SEARCH is \[\]; expected {config key: values}"),
        ({}, "nothing to search"),
        ({"optimizer.learning_rate": 0.1}, "'optimizer.learning_rate': 0.1; expected a list of"),
        ({"optimizer.learning_rate": []}, r"\[\]; expected a list of values"),
        ({"optimizer.learning_rate": ("log", 0.0, 0.1)}, "above 0 if it is by the logarithm"),
        ({"optimizer.learning_rate": ("linear", 0.2, 0.1)}, "with low below high"),
        ({"optimizer.learning_rate": ("linear", 0.2, math.inf)}, "with low below high"),
        ({"optimizer.learning_rate": ("lin", 0.1, 0.2)}, r"\('linear', low, high\)"),
        ({"optimizer.learning_rat": [0.1]}, "can't set {'optimizer.learning_rat': 0.1}"),
        ({"model.embedding_dim": [8, "x"]}, "can't set {'model.embedding_dim': 'x'}"),
        ({"model.embedding_dim": ("log", 0.5, 8.0)}, "can't set {'model.embedding_dim': 0.5}"),
        ({"model.embedding_dim": ("linear", 0, 8)}, "embedding_dim=0: expected at least 1"),
        ({"model.name": ["din", "dni"]}, "did you mean 'din'"),
        ({"train.select": ["auc", "log_loss"]}, "would not be comparable"),
    ],
)
def test_a_space_that_cannot_be_used_is_named(config, space, message):
    with pytest.raises(DinError, match=message):
        read_space(config, space)


def test_a_range_is_of_the_keys_type(config):
    space = {"model.embedding_dim": ("log", 2, 64), "regularizer.dropout": ("linear", 0, 0.75)}
    dim, dropout = read_space(config, space)
    assert dim == Range("model.embedding_dim", 2, 64, True) and type(dim.low) is int
    assert dropout == Range("regularizer.dropout", 0.0, 0.75, False)
    assert type(dropout.low) is float
    assert read_space(config, {"model.hidden": [(4,)]}) == (Choice("model.hidden", ((4,),)),)


@pytest.mark.parametrize("name", ["din", "lr", "wide_deep", "base", "deepfm"])
def test_the_default_space_can_be_searched(config, name):
    config.model.name = name
    keys = {parameter.key for parameter in read_space(config, default_space(config))}
    assert {"optimizer.learning_rate", "model.hidden"} <= keys
    assert ("regularizer.name" in keys) == (name not in ("lr", "wide_deep"))
    assert ("model.attention.hidden" in keys) == (name == "din")
    assert "regularizer.behavior_dropout" in keys
    # The dropout of the paper has a probability of its own.
    config.regularizer.name = "dropout"
    keys = {parameter.key for parameter in read_space(config, default_space(config))}
    assert "regularizer.behavior_dropout" not in keys


@pytest.mark.parametrize(("bound", "values"), [(0, [0, 50]), (1000, [1000, 50]), (50, [0, 50])])
def test_the_configs_bound_of_histories_is_among_those_searched(config, bound, values):
    config.data.max_history = bound
    assert default_space(config)["data.max_history"] == values


def test_flags_are_quoted_for_a_shell():
    setting = {"model.hidden": (80, 40), "regularizer.name": "mba", "optimizer.lazy": False}
    assert as_flags(setting) == [
        "'--config.model.hidden=(80, 40)'",
        "--config.regularizer.name=mba",
        "--config.optimizer.lazy=False",
    ]


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "din_jax.report.search")
    with pytest.raises(DinError, match=r"needs Optuna.*pip install 'din_jax\[search\]'"):
        report._search(tmp_path)
