"""train.py, eval.py and the reports as commands."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import ROOT, command, commands

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.prepare import planted

QUICKSTART = "--config=configs/quickstart.py"
SMALL = (
    "--config.model.preset=paper",  # compiles faster
    "--config.train.epochs=1",
    "--config.model.embedding_dim=4",
    "--config.model.hidden=(8,)",
    "--config.data.max_history=4",
)


def assert_error(failed, message):
    """The command ended with one clear error."""
    assert failed.returncode == 1
    assert re.search(f"^error: .*{message}", failed.stderr, re.MULTILINE), failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()[-1]) < 400


def compare_flags(store):
    return ["-m", "din_jax.report", "compare", QUICKSTART, f"--config.data.store={store}", *SMALL]


@pytest.mark.long
def test_compare_agrees_with_its_runs(planted_store, tmp_path):
    done = command(*compare_flags(planted_store), "--seeds=2", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "compare.json").read_text())
    by_model = {line["model"]: line["user_weighted_auc"] for line in result["lines"]}
    for name, values in by_model.items():
        for seed, value in enumerate(values):
            lines = (tmp_path / f"{name}-dice-{seed}/metrics.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["user_weighted_auc"] == value
    (difference,) = result["differences"]
    gains = [d - b for d, b in zip(by_model["din"], by_model["base"], strict=True)]
    assert difference["by_seed"] == pytest.approx(gains)
    assert difference["mean"] == pytest.approx(np.mean(gains))
    assert difference["low"] < difference["mean"] < difference["high"]


def test_a_mistaken_comparison_is_one_clear_error(planted_store, tmp_path):
    mistakes = {
        "--models=base,dinn": "expected .* or 'din' .did you mean 'din'",
        "--models=din,din": "named twice",
        "--seeds=0": "seeds",
        "--config.model.nme=x": 'Did you mean "name"',
        "--config.model.name=din": "what is compared is named by --models",
        "--protocol=tuned": "--protocol is no flag of `compare`, but of table3, table4, table5",
    }
    flags = [*compare_flags(planted_store), f"--workdir={tmp_path / 'x'}"]
    failed = commands(*([*flags, flag] for flag in mistakes))
    for one, message in zip(failed, mistakes.values(), strict=True):
        assert_error(one, message)
    assert not (tmp_path / "x").exists()


def test_eval_prints_what_training_printed(planted_store, tmp_path):
    planted.prepare(tmp_path / "other", users=301)
    planted.prepare(tmp_path / "same", users=300, seed=1)
    workdir = f"--workdir={tmp_path / 'run'}"
    mistakes = {
        "--split=tset": "no split 'tset'; .* has: train, validation, test",
        f"--workdir={tmp_path / 'none'}": "no .*none; train first",
        "--store=/nowhere": "store /nowhere is not there .* with --store",
        "--devices=some": "--devices=some: expected a whole number from 1 on, or 'all'",
        "--wrokdir=x": "Unknown command line flag 'wrokdir'. Did you mean: workdir",
        f"--store={tmp_path / 'other'}": "of another schema than the store",
        f"--store={tmp_path / 'same'}": ".*",
    }
    trained, evaluated, *failed = commands(
        ["train.py", QUICKSTART, f"--config.data.store={planted_store}", *SMALL, workdir],
        ["eval.py", workdir, "--split=test"],
        *(["eval.py", workdir, flag] for flag in mistakes),
    )
    assert trained.returncode == 0, trained.stderr
    assert evaluated.returncode == 0, evaluated.stderr
    end = trained.stdout[trained.stdout.index("test metrics") :]
    table, best, baseline = end.partition("best simple baseline: ")
    assert table == evaluated.stdout
    assert best and re.search(r"^  auc +0\.\d+ +0\.\d+$", baseline, re.MULTILINE), trained.stdout
    for name in ("user_weighted_auc", "auc", "log_loss"):
        assert re.search(rf"^  {name} +0\.\d+$", table, re.MULTILINE)
    assert list((tmp_path / "run/tensorboard").iterdir())
    for one, message in zip(failed, mistakes.values(), strict=True):
        assert_error(one, message)
    assert "tables: user[301] in the checkpoint, user[302] in the store" in failed[-2].stderr
    assert "the same schema, other content" in failed[-1].stderr


def test_ctrl_c_saves_and_says_how_to_go_on(planted_store, tmp_path):
    arguments = [sys.executable, "train.py", QUICKSTART, f"--config.data.store={planted_store}"]
    arguments += [*SMALL, "--config.train.epochs=10000", f"--workdir={tmp_path}"]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "metrics.jsonl"
    give_up = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < give_up:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    step = re.search(r"stopped and saved at step ([\d,]+); run the same command again", out)
    assert step, out
    assert Checkpoints(tmp_path).latest("last") == int(step[1].replace(",", ""))


def test_a_mistaken_flag_is_one_clear_error(planted_store, tmp_path):
    (tmp_path / "file").write_text("")
    mistakes = {
        "--config.model.nme=base": 'Did you mean "name" instead of "nme"',
        "--config.model.embedding_dim=many": "invalid literal for int",
        "--config.model.name=dni": r"expected .* or 'din' \(did you mean 'din'\?\)",
        "--config.model.module=mine.py": "config.model.module='mine.py': .* FILE.py",
        "--config.devices=3": "config.devices=3: there is 1 cpu device",
        "--config.processes.coordinator=auto": "JAX found no Slurm, Open MPI or TPU pod here",
        "--config.data.store=/nowhere": "no store at /nowhere",
        "--config.train.epochs=0": "config.train.epochs=0: expected at least 1",
        "--config.model.extra_fields=('user',)": "optional fields are: user_id",
        "--config.model.preset=released_code": "one behaviour sequence and ad fields only",
        "--config.model.item_bias=itme": "no one-hot ad field 'itme'",
        "stray": "unexpected argument 'stray'",
        f"--workdir={tmp_path / 'file'}": "file.*(File exists|Not a directory)",
    }
    good = ["train.py", QUICKSTART, f"--config.data.store={planted_store}"]
    good += [f"--workdir={tmp_path / 'run'}"]
    name = {"--config.model.module=mine.py": ["--config.model.name=mine"]}
    failed = commands(*([*good, flag, *name.get(flag, [])] for flag in mistakes))
    for one, message in zip(failed, mistakes.values(), strict=True):
        assert_error(one, message)
    assert not (tmp_path / "run").exists()


def test_a_config_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "wrong.py").write_text(
        "from din_jax.config import default_config\n"
        "def get_config():\n    c = default_config()\n    c.modle = 3\n    return c\n"
    )
    (tmp_path / "nothing.py").write_text("def get_config():\n    pass\n")
    mistakes = {
        "--config=configs/nothing.py": "configs/nothing.py",
        "--notest": "--config=… is required",
        f"--config={tmp_path / 'broken.py'}": "broken.py: SyntaxError",
        f"--config={tmp_path / 'wrong.py'}": "wrong.py: .*modle",
        f"--config={tmp_path / 'nothing.py'}": "returned NoneType, not a ConfigDict",
    }
    failed = commands(*(["train.py", flag] for flag in mistakes))
    for one, message in zip(failed, mistakes.values(), strict=True):
        assert_error(one, message)


def test_help_lists_the_flags_and_a_traceback_is_shown_on_request():
    train, evaluate, failed = commands(
        ["train.py", "--help"],
        ["eval.py", "--help"],
        ["train.py", QUICKSTART, "--traceback", "stray"],
    )
    assert "--workdir" in train.stdout
    assert "--checkpoint" in evaluate.stdout
    assert "Traceback" not in train.stderr + evaluate.stderr
    assert "Traceback" in failed.stderr


def test_a_command_alone_ends_with_its_status():
    """Without the fork that the other tests use."""
    assert_error(command("train.py", "stray", QUICKSTART), "unexpected argument 'stray'")
