"""Lines of an experiment: refits, lines that diverge, and the paper's tables."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from runs import command, small_config

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.config import check
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.report import experiments
from din_jax.report.__main__ import TABLES, _with_config_of_table
from din_jax.report.markdown import lines_as_markdown, table_as_markdown
from din_jax.training.evaluation import Scores

ROOT = Path(__file__).parents[2]


def test_refit_trains_on_all_for_as_many_epochs_as_validation_chose(planted_store, tmp_path):
    # So fast that validation is best after the first epoch or the second, never the last.
    config = small_config(
        planted_store,
        **{
            "model.name": "base",
            "train.epochs": 4,
            "train.batch_size": 256,
            "optimizer.learning_rate": 0.03,
        },
    )
    lines = {"a": {}, "b": {"optimizer.learning_rate": [0.03, 0.01]}}
    result = experiments.compare_lines(config, lines, 2, tmp_path, against="b", refit=True)
    samples = len(Store(planted_store).split("train"))
    for line, trials in zip(result["lines"], (["a"], ["b-0.03", "b-0.01"]), strict=True):
        values = []
        for trial in trials:
            log = (tmp_path / "trials" / trial / "metrics.jsonl").read_text().splitlines()
            scored = [json.loads(entry) for entry in log]
            by_epoch = [e["user_weighted_auc"] for e in scored if e["split"] == "validation"]
            assert len(by_epoch) == 4 and not any(e["split"] == "test" for e in scored)
            values.append((max(by_epoch), 1 + int(np.argmax(by_epoch))))
        best, epochs = max(values)
        assert line["epochs"] == epochs < 4
        assert max(t["validation"] for t in line["trials"]) == best
    for seed in range(2):
        meta = Checkpoints(tmp_path / f"a-{seed}").meta("last")
        assert meta["config"]["data"]["fit"] == "train+validation"
        both = samples + len(Store(planted_store).split("validation"))
        steps = -(-both // 256) * result["lines"][0]["epochs"]
        assert Checkpoints(tmp_path / f"a-{seed}").latest("last") == steps
    a, b = result["lines"]
    assert b["rela_impr"] == 0 and b["difference"]["mean"] == 0
    means = [np.mean(line["user_weighted_auc"]) for line in (a, b)]
    assert a["rela_impr"] == pytest.approx(100 * ((means[0] - 0.5) / (means[1] - 0.5) - 1))


def test_a_line_that_diverges_leaves_the_others_alone(planted_store, tmp_path):
    config = small_config(
        planted_store,
        **{"model.name": "base", "train.epochs": 1, "train.batch_size": 256},
    )
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
    scored = (tmp_path / "trials" / "searched-0.1" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(scored[-1])["auc"] == searched["auc"][0]
    assert first["diverged"] == 1 and first["auc"] == []
    assert tame["diverged"] == 0 and len(tame["auc"]) == 1
    assert tame["rela_impr"] is None  # there is nothing to compare it with
    assert searched["chosen"] == {"optimizer.learning_rate": 0.1}
    assert searched["trials"][0]["validation"] is None
    assert tame["difference"] is None
    # Also if it is the last step of an epoch that makes the weights infinite.
    lines = {"tame": {}, "late": wild | {"optimizer.learning_rate": 1e30}}
    config.train.batch_size = 6000  # all of an epoch
    late = experiments.compare_lines(config, lines, 1, tmp_path / "late")["lines"][1]
    assert late["diverged"] == 1
    for text in (lines_as_markdown(result), table_as_markdown(result, {})):
        assert re.search(r"\| wild \| diverged \|", text)
        assert "learning_rate 1e+12: diverged; learning_rate 0.1: 0." in text


def test_published_figures_stand_beside_ours_with_their_own_rela_impr():
    line = {
        "diverged": 0,
        "auc": [0.8],
        "log_loss": [0.5],
        "chosen": {},
        "trials": [],
        "rela_impr": 5.0,
        "difference": {"mean": 0.01, "low": 0.005, "high": 0.015},
        "epochs": 3,
    }
    result = {
        "against": "BaseModel",
        "lines": [
            {**line, "line": "BaseModel", "user_weighted_auc": [0.7], "diverged": 2},
            {**line, "line": "DIN", "user_weighted_auc": [0.71, 0.73]},
        ],
    }
    text = table_as_markdown(result, {"paper": {"BaseModel": 0.8624, "DIN": 0.8818}})
    base, din = text.splitlines()[2:]
    assert "| 0.8624 (+0.00 %) |" in base and "| 0.7000 (2 of 3 diverged) |" in base
    # The paper's own RelaImpr of DIN.
    assert din.startswith("| DIN | 0.7200 ± 0.0141 | +5.00 % | +0.0100 (+0.0050 to +0.0150) |")
    assert "| 0.8818 (+5.35 %) | 0.8000 | 0.5000 | 3 |" in din


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("protocol", ["paper", "tuned"])
def test_tables_are_defined(name, protocol, planted_store):
    """Every line of a table can be trained, and has as many trials as the others."""
    module = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))
    config = module["get_config"](f"{protocol}:{planted_store}")
    assert isinstance(config, ConfigDict) and config.data.store == str(planted_store)
    lines = module["PROTOCOLS"][protocol]
    assert module["AGAINST"] in lines
    budget = set()
    for line, keys in lines.items():
        settings = experiments._settings(line, keys)
        budget.add(len(settings))
        for setting in settings:
            check(experiments._with(config, setting))
    assert budget == ({1} if protocol == "paper" else {6 if name == "table3" else 5})
    for facts, figures in module["PUBLISHED"]:
        # What is asked of a store's origin is there under these names.
        source = (ROOT / "din_jax" / "prepare" / f"{facts['preparation']}.py").read_text()
        assert all(f'"{key}"' in source for key in facts)
        for column in figures.values():
            assert set(column) <= set(lines) and module["AGAINST"] in column


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["table3"], "table3 needs --store=…"),
        (["table3", "--store=nowhere"], "no store at nowhere"),
        (["table3", "--store={}", "--protocol=best"], "--protocol=best: expected paper or tuned"),
        (["table3", "--store={}", "--protocol="], "--protocol=: expected paper or tuned"),
        (["table3", "--store={}", "--config.data.store={}"], "a table's store is --store"),
        (["table3", "--store={}", "--config=configs/amazon.py"], "has a config of its own"),
    ],
)
def test_a_wrong_command_line_of_a_table_is_explained(flags, message, planted_store):
    with pytest.raises(DinError, match=re.escape(message)):
        _with_config_of_table(["report", *(f.format(planted_store) for f in flags)])


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.model.activation=dice", None),  # LR leaves it open
        ("--config.model.name=din", "--config.model.name: each of the lines sets it (LR, BaseM"),
        ("--line=DINN", "--line=DINN: the lines are: 'LR', 'BaseModel'"),
        ("--models=din", "--models is no flag of `table3`, but of compare"),
    ],
)
def test_flags_of_a_table_choose_lines_or_are_refused(flag, message, planted_store, tmp_path):
    arguments = [
        *("table3", f"--store={planted_store}", f"--workdir={tmp_path / 'x'}", "--seeds=1"),
        *("--config.train.epochs=1", "--config.train.batch_size=2048", "--line=LR", flag),
    ]
    done = command("-m", "din_jax.report", *arguments)
    if message is None:
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "x" / "table3.json").read_text())
        assert [line["line"] for line in result["lines"]] == ["LR", "BaseModel"]
    else:
        assert done.returncode == 1 and f"error: {message}" in done.stderr, done.stderr
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("keys", "lines", "message"),
    [
        ({"train.evaluations_per_epoch": 2}, {"a": {}}, "evaluate once an epoch"),
        ({}, {"a": {}, "b": {"model.name": "pnn", "model.table_dims": "age=2"}}, "one width"),
        ({}, {"a": {}, "b": {"model.name": "lr", "regularizer.name": "mba"}}, "no counts n_j"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_trained(
    planted_store, tmp_path, keys, lines, message
):
    config = small_config(planted_store, **keys)
    with pytest.raises(DinError, match=message):
        experiments.compare_lines(config, lines, 1, tmp_path / "runs", refit=True)
    assert not (tmp_path / "runs").exists()


def test_lines_are_compared_over_the_seeds_that_both_have(planted_store, tmp_path, monkeypatch):
    config = small_config(planted_store, **{"model.name": "base", "train.epochs": 1})
    scores = {("a", 0): 0.1, ("a", 1): 0.3, ("b", 1): 0.2}

    def tested(config, folder):
        name, _, seed = folder.name.partition("-")
        if (name, int(seed)) not in scores:
            raise experiments.Diverged("no number")
        users = np.repeat(np.arange(200), 2)
        labels = np.tile([0, 1], 200)
        right = np.arange(400) // 2 < 200 * (0.5 + scores[name, int(seed)])
        return Scores(
            0, dict.fromkeys(experiments.METRICS, 0.0), users, labels, np.where(right, labels, 0.5)
        )

    monkeypatch.setattr(experiments, "tested", tested)
    monkeypatch.setattr(experiments, "_curves", lambda folder: [])
    a, b = experiments.compare_lines(config, {"a": {}, "b": {}}, 2, tmp_path)["lines"]
    assert (a["diverged"], b["diverged"]) == (0, 1)
    # Of seed 1 alone: 0.2 of all users and 0.3 of all, each worth half a pair.
    assert b["difference"]["mean"] == pytest.approx((0.2 - 0.3) / 2)
    assert b["rela_impr"] == pytest.approx(100 * ((0.35 / 0.4) - 1))
