"""`python -m din_jax.report baselines`."""

import re

from runs import commands

from din_jax.baselines.evaluate import Baselines
from din_jax.data.store import Store
from din_jax.report.markdown import baselines_as_markdown


def test_the_best_come_first_and_what_cannot_be_computed_is_blank():
    nan = float("nan")
    metrics = {
        "a": {"user_weighted_auc": nan, "auc": 0.7},
        "b": {"user_weighted_auc": 0.6, "auc": 0.5, "log_loss": 0.69},
        "c": {"user_weighted_auc": nan, "auc": 0.8, "log_loss": 0.5},
    }
    assert baselines_as_markdown(metrics).splitlines()[2:] == [
        "| b | 0.6000 | 0.5000 | 0.6900 |",
        "| c |  | 0.8000 | 0.5000 |",
        "| a |  | 0.7000 |  |",
    ]


def test_the_command_prints_the_metrics_of_a_split_or_one_clear_error(planted_store):
    report = ["-m", "din_jax.report", "baselines"]
    mistakes = {
        "--store=/nowhere": "no store at /nowhere",
        "--split=tset": "no split 'tset'",
        "--max_history=-1": "max_history",
        "--workdir=x": "--workdir is no flag of `baselines`, but of table3",
        "--config=configs/quickstart.py": "--config is no flag of `baselines`, but of table3",
    }
    store = f"--store={planted_store}"
    done, without, *failed = commands(
        [*report, store, "--split=validation", "--max_history=4"],
        report,
        *([*report, store, flag] for flag in mistakes),
    )
    assert done.returncode == 0, done.stderr
    metrics = Baselines(Store(planted_store), max_history=4).cached_metrics("validation")
    title, _, *table = done.stdout.splitlines()
    assert title.startswith("simple baselines on validation, 1,200 samples; fitted on train, 6,000")
    assert "\n".join(table) == baselines_as_markdown(metrics)
    for one, message in zip((without, *failed), ("--store=…", *mistakes.values()), strict=True):
        assert one.returncode == 1, one.stdout
        assert re.search(f"^error: .*{message}", one.stderr, re.MULTILINE), one.stderr
        assert "Traceback" not in one.stderr
