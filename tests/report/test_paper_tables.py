"""The paper's tables: their lines, the figures beside them, and their command lines."""

import itertools
import json
import re
import runpy

import pytest
from ml_collections import ConfigDict
from runs import ROOT, command, commands

from din_jax.config import check
from din_jax.errors import DinError
from din_jax.report.__main__ import TABLES, _with_config_of_table
from din_jax.report.markdown import table_as_markdown


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
    for keys in lines.values():
        values = [value if isinstance(value, list) else [value] for value in keys.values()]
        settings = list(itertools.product(*values))
        budget.add(len(settings))
        for setting in settings:
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict(dict(zip(keys, setting, strict=True)))
            check(changed)
    assert budget == ({1} if protocol == "paper" else {6 if name == "table3" else 5})
    for facts, figures in module["PUBLISHED"]:
        # A store's origin has facts of these names.
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


def table3(store, workdir, *flags):
    given = (f"--store={store}", f"--workdir={workdir}", "--seeds=1", "--line=LR")
    return ["-m", "din_jax.report", "table3", *given, *flags]


def test_flags_of_a_table_choose_lines_or_are_refused(planted_store, tmp_path):
    expected = {
        "--config.model.name=din": "--config.model.name: each of the lines sets it (LR, BaseM",
        "--line=DINN": "--line=DINN: the lines are: 'LR', 'BaseModel'",
        "--models=din": "--models is no flag of `table3`, but of compare",
        # LR does not set it: the flag is accepted, and the next mistake is reported.
        "--config.model.activation=dice": "evaluate once an epoch",
    }
    mistake = "--config.train.evaluations_per_epoch=2"
    failed = commands(*(table3(planted_store, tmp_path / "x", flag, mistake) for flag in expected))
    for one, message in zip(failed, expected.values(), strict=True):
        assert one.returncode == 1, one.stderr
        assert re.search(f"^error: .*{re.escape(message)}", one.stderr, re.MULTILINE), one.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.long
def test_lines_of_a_table_are_trained_and_reported(planted_store, tmp_path):
    flags = ["--config.train.epochs=1", "--config.train.batch_size=2048"]
    flags += ["--config.model.activation=dice", "--config.model.hidden=(8,)"]
    flags += ["--config.model.without=('category','shop','age','hour')"]
    done = command(*table3(planted_store, tmp_path / "x", *flags))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "x" / "table3.json").read_text())
    assert [line["line"] for line in result["lines"]] == ["LR", "BaseModel"]
    assert (tmp_path / "x" / "table3.md").read_text().strip() in done.stdout
