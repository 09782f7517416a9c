"""Stores and checkpoints of released versions are read.

`version_0_1_0.tar.xz` was written by version 0.1.0: a planted store of 60 users in data/planted, a
run of one epoch in runs/old (batches of 32, MBA), and in went_on.jsonl the metrics that version
0.1.0 logged for the same run when it went on to a second epoch.
"""

import json
import tarfile
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from din_jax import evaluate, train
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.checkpoint.compatibility import completed
from din_jax.data.source import BatchSource
from din_jax.data.store import Store
from din_jax.errors import DinError


@pytest.fixture
def old(tmp_path, monkeypatch):
    with tarfile.open(Path(__file__).parent / "version_0_1_0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    lines = (tmp_path / "went_on.jsonl").read_text().splitlines()
    return {(line["step"], line["split"]): line for line in map(json.loads, lines)}


def metrics_of(line):
    return {name: value for name, value in line.items() if name not in ("step", "split")}


def test_a_run_of_version_0_1_0_is_evaluated(old):
    scores = evaluate("runs/old")
    assert scores.step == 38
    assert scores.metrics == pytest.approx(metrics_of(old[38, "test"]), rel=1e-4)


@pytest.mark.long
def test_a_run_of_version_0_1_0_goes_on(old):
    config = completed(ConfigDict(Checkpoints("runs/old").meta("last")["config"]), "runs/old")
    config.train.epochs = 2
    train(config, "runs/old")
    logged = [json.loads(line) for line in Path("runs/old/metrics.jsonl").read_text().splitlines()]
    (found,) = (line for line in logged if (line["step"], line["split"]) == (76, "validation"))
    assert metrics_of(found) == pytest.approx(metrics_of(old[76, "validation"]), rel=1e-3)


def test_a_store_of_version_0_1_0_has_no_times(old):
    store = Store("data/planted")
    assert [s.times for s in store.schema.sequences] == [False]
    with pytest.raises(DinError, match=r"data/planted: the store has no times of: history; "):
        BatchSource(store, "train", 8, ages=True)


def test_a_config_without_a_key_that_it_had_then_is_refused():
    config = ConfigDict({"seed": 0})
    with pytest.raises(DinError, match=r"another version of din_jax: its config lacks data\.fit, "):
        completed(config, "runs/old")
