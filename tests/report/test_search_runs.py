"""A search as a command: its flags and output, and with runs that are really trained."""

import json
import re
import shlex
import sys

import pytest
from absl import flags
from runs import commands

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.errors import DinError
from din_jax.report import __main__ as report

pytest.importorskip("optuna")
from din_jax.report import search as module

CONFIG = """
from configs import quickstart

SEARCH = {"optimizer.learning_rate": ("log", 1e-3, 1e-1), "train.epochs": [1, 2], "seed": [3]}


def get_config():
    c = quickstart.get_config()
    c.data.prepare = ""
    c.eval.baselines = False
    c.model.name = "lr"
    c.model.without = ("category", "shop", "age", "hour")
    c.train.batch_size = 2048
    return c
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in this process."""
    (tmp_path / "mine.py").write_text(CONFIG)
    argv = ["report", "search", "--config", str(tmp_path / "mine.py"), f"--workdir={tmp_path}"]
    flags.FLAGS.unparse_flags()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [*argv, *arguments])
        report.main()

    yield run
    for name in ("config", "workdir", "trials", "seeds"):
        flags.FLAGS[name].unparse()
    flags.FLAGS.unparse_flags()


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
def test_flags_set_keys_for_all_trials_and_are_in_the_command(run, tmp_path, monkeypatch, capsys):
    called = []

    def search(config, space, trials, workdir):
        called.append((config, space, trials))
        setting = {"optimizer.learning_rate": 0.002, "model.hidden": (8, 4)}
        best = {"trial": "7", "state": "complete", "validation": 0.7, "setting": setting}
        diverged = {"trial": "1", "state": "diverged", "validation": None, "setting": setting}
        return {"select": "auc", "trials": [best, diverged] if trials > 5 else [diverged]}

    monkeypatch.setattr(module, "search", search)
    run("--trials=6", "--config.train.epochs=1", "--config.data.store=a b", "--config.seed=3")
    ((config, space, trials),) = called
    assert (config.train.epochs, config.data.store, trials) == (1, "a b", 6)
    assert list(space) == ["optimizer.learning_rate"]
    train, evaluate = [
        shlex.split(line) for line in capsys.readouterr().out.splitlines() if "    python" in line
    ]
    assert train == [
        *("python", "train.py", "--config", str(tmp_path / "mine.py")),
        *("--config.train.epochs=1", "--config.data.store=a b", "--config.seed=3"),
        *("--config.optimizer.learning_rate=0.002", "--config.model.hidden=(8, 4)"),
        *("--workdir", str(tmp_path / "best")),
    ]
    assert evaluate == ["python", "eval.py", "--workdir", str(tmp_path / "trials/7")]
    assert json.loads((tmp_path / "search.json").read_text())["flags"] == {
        "train.epochs": 1,
        "data.store": "a b",
        "seed": 3,
        "optimizer.learning_rate": 0.002,
        "model.hidden": [8, 4],
    }

    run("--trials=5")
    assert "No trial is complete" in capsys.readouterr().out
    with pytest.raises(DinError, match="--seeds is no flag of `search`, but of table3"):
        run("--seeds=2")


def splits_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["split"] for line in lines]


@pytest.mark.long
def test_the_best_of_a_search_is_trained_again_by_its_command(planted_store, tmp_path):
    (tmp_path / "mine.py").write_text(CONFIG)
    workdir = tmp_path / "search"
    search = ["-m", "din_jax.report", "search", f"--config={tmp_path / 'mine.py'}"]
    search += [f"--config.data.store={planted_store}", f"--workdir={workdir}"]
    first, done, *failed = commands(
        [*search, "--config.seed=1", "--trials=1"],
        [*search, "--config.seed=1", "--trials=3"],
        [*search, "--config.seed=2", "--trials=3"],
        [*search, "--config.data.fit=train+validation"],
    )
    assert first.returncode == 0 and "1 trial: 1 complete" in first.stdout, first.stderr
    assert done.returncode == 0, done.stderr
    assert "trials/0:" not in done.stdout and "trials/2:" in done.stdout
    for one, message in zip(failed, ("another search", "data.fit"), strict=True):
        assert one.returncode == 1 and re.search(f"^error: .*{message}", one.stderr), one.stderr
    for folder in (workdir / "trials").iterdir():
        assert set(splits_of(folder)) == {"train", "validation"}
    result = json.loads((workdir / "search.json").read_text())
    best = result["trials"][0]
    assert {"seed": 1, **best["setting"]}.items() <= result["flags"].items()

    pasted = [shlex.split(line)[1:] for line in done.stdout.splitlines() if "    python " in line]
    again, evaluated = commands(*pasted)
    assert again.returncode == 0 and evaluated.returncode == 0, again.stderr + evaluated.stderr
    assert Checkpoints(workdir / "best").meta("last")["best"] == best["validation"]
    assert evaluated.stdout == again.stdout[again.stdout.index("test metrics") :]
