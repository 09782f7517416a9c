"""Killed with -9 anywhere and started again, all ends as if nothing had been."""

import json
import os
import signal

import numpy as np
import pytest
from damage import files_of
from runs import command

from din_jax.checkpoint.checkpoints import KINDS, Checkpoints

SCRIPT = "tests/faults/killed.py"


def run(epochs, kills):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(("tests", "."))}
    kills = [[str(folder), *kill] for folder, *kill in kills]
    done = command(SCRIPT, epochs, json.dumps(kills), env=environment)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(kills), done.stderr
    wrong = [status for status, *_ in results if status not in (0, -signal.SIGKILL)]
    assert not wrong, (kills, done.stderr)
    return results


def ends(folder):
    """All that must be the same: bytes of the store and the model, states, metrics."""
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text().splitlines())
    contents = {
        name: (folder / part / name).read_bytes()
        for part in ("store", "model")
        if (folder / part).exists()
        for name in files_of(folder / part)
        if name.endswith((".npy", ".parquet", ".bin")) or name == "probe.json"
    }
    checkpoints = Checkpoints(folder / "run")
    states = {kind: checkpoints.meta(kind) for kind in KINDS}
    for kind, meta in states.items():
        for step in checkpoints.steps(kind):
            checkpoints.verify(kind, step)
        states[kind] = (meta["step"], meta["best"], meta["checksums"])
    logged = [line for line in lines if line["split"] != "train"]
    return contents, states, logged


def points(folder, count, rng, events, seconds):
    """Random kills, and then none. Early ones are likelier: what is done is not done again."""
    for _ in range(count):
        if rng.integers(2):
            yield folder, "event", int(np.exp(rng.uniform(0, np.log(events))))
        else:
            yield folder, "seconds", float(rng.uniform(0, seconds))
    yield folder, None, 0


@pytest.mark.long
def test_killed_at_a_few_points_all_ends_bit_identical(tmp_path):
    rng = np.random.default_rng(3)
    kills = list(points(tmp_path / "killed", 4, rng, events=300, seconds=1))
    results = run(1, [(tmp_path / "whole", None, 0), *kills])
    assert [status for status, *_ in results].count(-signal.SIGKILL) >= 3
    assert ends(tmp_path / "killed") == ends(tmp_path / "whole")


@pytest.mark.long
def test_killed_at_a_hundred_points_all_ends_bit_identical(tmp_path):
    ((_, events, seconds),) = run(2, [(tmp_path / "whole", None, 0)])
    expected = ends(tmp_path / "whole")
    rng, killed = np.random.default_rng(2), 0
    for i in range(20):
        kills = list(points(tmp_path / str(i), 7, rng, events, seconds / 2))
        killed += [status for status, *_ in run(2, kills)].count(-signal.SIGKILL)
        assert ends(tmp_path / str(i)) == expected, kills
    assert killed >= 100
