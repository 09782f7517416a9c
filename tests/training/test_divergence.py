"""Numbers that are not finite stop training, are named, and are never saved."""

import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import command, tiny_config

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.errors import DinError, Diverged
from din_jax.training import run as run_module
from din_jax.training.loop import train
from din_jax.training.replay import replay
from din_jax.training.run import open_run

WILD = {
    "model.name": "base",
    "model.activation": "prelu",
    "optimizer.name": "sgd",
    "train.epochs": 2,
}


def poisoned(monkeypatch, at, change, then=lambda: None):
    """Changes the state after step `at`, or in the call that takes it."""
    original = run_module.train_steps

    def stepping(*arguments, **options):
        steps = original(*arguments, **options)

        def taken(state, batches):
            state, losses = steps(state, batches)
            if int(state.step) >= at:
                then()
                state = change(state)
            return state, losses

        return taken

    monkeypatch.setattr(run_module, "train_steps", stepping)


def nan_in_a_table(state):
    item = state.tables["item"].at[5, 1].set(jnp.nan)
    return state.replace(tables=state.tables | {"item": item})


def nan_in_all_tables(state):
    return state.replace(tables={name: table + jnp.nan for name, table in state.tables.items()})


def files_of(folder):
    return {
        f.relative_to(folder): f.read_bytes()
        for f in (folder / "checkpoints").rglob("*")
        if f.is_file()
    }


def test_the_step_its_samples_and_the_array_are_named_and_nothing_is_saved(
    planted_store, tmp_path, monkeypatch
):
    """The learning rate is fine for an epoch; then a weight is NaN."""
    config = tiny_config(planted_store, **WILD)
    config.optimizer.learning_rate = 0.01
    source = open_run(config).source
    with monkeypatch.context() as patched:
        poisoned(patched, 120, nan_in_all_tables)
        with pytest.raises(Diverged) as error:
            train(config, tmp_path)
    message = str(error.value)
    samples = source.samples_of(122).tolist()  # by calls of four steps: 94 + 28, then NaN
    assert f"the loss of step 123 is nan (samples {', '.join(map(str, samples[:8]))}, …" in message
    assert "then .params" in message or "then .tables" in message
    assert f"python -m din_jax.replay --workdir {tmp_path}" in message
    assert Checkpoints(tmp_path).steps("last") == [94]
    record = json.loads((tmp_path / "diverged.json").read_text())
    assert (record["step"], record["samples"]) == (123, samples)


@pytest.mark.parametrize("signum", [None, signal.SIGINT])
def test_a_state_that_is_not_finite_is_never_saved(planted_store, tmp_path, monkeypatch, signum):
    """The losses are finite until the state is saved: at an evaluation, or at a stop."""
    config = tiny_config(planted_store, **WILD | {"train.epochs": 3})
    config.optimizer.learning_rate = 0.01
    train(tiny_config(planted_store, **WILD | {"optimizer.learning_rate": 0.01}), tmp_path)
    before = files_of(tmp_path)
    assert len(before) > 10
    with monkeypatch.context() as patched:
        stop = (lambda: os.kill(os.getpid(), signum)) if signum else lambda: None
        poisoned(patched, 200 if signum else 282, nan_in_a_table, stop)
        with pytest.raises(Diverged, match=r"not saved: \.tables\['item'\] has NaN or an infinite"):
            train(config, tmp_path)
    assert files_of(tmp_path) == before


@pytest.mark.long
def test_the_step_is_taken_again_bit_by_bit(planted_store, tmp_path):
    """With a learning rate that is too high."""
    config = tiny_config(planted_store, **WILD | {"optimizer.learning_rate": 1e9})
    with pytest.raises(Diverged):
        train(config, tmp_path / "run")
    step = json.loads((tmp_path / "run/diverged.json").read_text())["step"]
    assert 1 < step < 94
    found = replay(tmp_path / "run")
    assert found.step == step and not np.isfinite(found.loss)
    np.testing.assert_array_equal(found.samples, open_run(config).source.samples_of(step - 1))
    run = open_run(config)
    state, steps = run.init(), run.steps()
    for i in range(step - 1):
        state, losses = steps(state, [run.source[i]])
        assert np.isfinite(losses).all()
    greatest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(state.tables | state.params))
    assert next(iter(found.largest.values())) == greatest > 1e5
    _, losses = steps(state, [run.source[step - 1]])
    np.testing.assert_array_equal(found.loss, losses[0])
    assert set(found.not_finite) <= set(found.samples.tolist())
    assert not (tmp_path / "run/checkpoints").exists()

    printed = command("-m", "din_jax.replay", f"--workdir={tmp_path / 'run'}")
    assert printed.returncode == 0, printed.stderr
    assert re.match(rf"step {step}: the loss is (nan|inf)\n", printed.stdout)
    assert "greatest absolute values before the step:\n  ." in printed.stdout


def test_a_folder_in_which_nothing_diverged_has_nothing_to_replay(tmp_path):
    with pytest.raises(DinError, match="no run there has diverged"):
        replay(tmp_path)
    (tmp_path / "diverged.json").write_text("{")
    with pytest.raises(DinError, match=r"diverged.json: missing or damaged"):
        replay(tmp_path)
