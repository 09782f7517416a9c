"""A run goes on from its newest checkpoint that is whole, and nothing else takes its place."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from runs import ROOT, tiny_config

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.errors import Damaged, DinError, Interrupted
from din_jax.training import loop as loop_module, run as run_module
from din_jax.training.loop import train
from din_jax.training.run import open_run
from din_jax.training.trained import evaluate


def config_of(store, **keys):
    """Four evaluations of 47 steps each; the last is the best."""
    fast = {"model.name": "base", "train.epochs": 2, "train.select": "log_loss"}
    fast |= {"train.evaluations_per_epoch": 2, "optimizer.learning_rate": 0.0005}
    return tiny_config(store, **fast | keys)


@pytest.fixture(scope="module")
def whole(planted_store, tmp_path_factory):
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(config_of(planted_store), folder, test=False)
    assert Checkpoints(folder).steps("last") == [188, 141]
    assert Checkpoints(folder).steps("best") == [188]
    return folder


@pytest.fixture
def run(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def meta_file(folder, kind, step):
    return folder / f"checkpoints/{kind}/{step}/meta/metadata"


def data_file(folder, kind, step):
    """The largest file of a checkpoint: its arrays."""
    files = (folder / f"checkpoints/{kind}/{step}").rglob("*")
    return max((f for f in files if f.is_file()), key=lambda f: f.stat().st_size)


def flip(path, at=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def leaves_of(folder, kind, config):
    state = Checkpoints(folder).restore(kind, open_run(config).state_shapes())[0]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def logged(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] != "train"]


def assert_ends_alike(folder, whole, config):
    for kind in ("best", "last"):
        assert Checkpoints(folder).latest(kind) == Checkpoints(whole).latest(kind)
        pairs = zip(leaves_of(folder, kind, config), leaves_of(whole, kind, config), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert logged(folder) == logged(whole)


def test_a_flipped_bit_of_the_metadata_is_damage_of_the_metadata(run):
    file = meta_file(run, "last", 188)
    whole = file.read_bytes()
    checkpoints = Checkpoints(run)
    honest, rest = checkpoints.meta("last"), []
    for at in range(0, len(whole), 71):
        flip(file, at)
        try:
            rest.append(checkpoints.meta("last"))
        except Damaged:
            continue
        finally:
            file.write_bytes(whole)
    for meta in rest:  # a blank for another, or the name of the checksum itself
        assert {**meta, "meta_checksum": honest["meta_checksum"]} == honest or len(meta) == len(
            honest
        ), meta
    file.write_bytes(whole.replace(b'"best": 0.', b'"best": 1.'))
    with pytest.raises(Damaged, match=r"last: the metadata of step 188 is damaged \(its checksum"):
        checkpoints.meta("last")


@pytest.mark.long
def test_a_damaged_last_checkpoint_is_set_aside_and_the_one_before_it_taken(
    run, whole, planted_store, capsys
):
    config = config_of(planted_store)
    flip(meta_file(run, "last", 188))
    flip(data_file(run, "best", 188))
    with pytest.raises(Damaged, match="best: the"):
        evaluate(run)
    train(config, run, test=False)
    error = capsys.readouterr().err
    assert "warning: " in error and "the run goes on from its last checkpoint of step 141" in error
    assert sorted(f.name[:8] for f in (run / "checkpoints/damaged").iterdir()) == [
        "best-188",
        "last-188",
    ]
    assert_ends_alike(run, whole, config)


@pytest.mark.long
def test_the_best_checkpoint_is_as_good_as_a_last_one(run, whole, planted_store, capsys):
    config = config_of(planted_store)
    flip(data_file(run, "last", 188))
    assert evaluate(run).metrics == evaluate(whole).metrics
    train(config, run, test=False)
    assert "goes on from its best checkpoint of step 188" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints/last")
    shutil.copytree(whole / "checkpoints/last/188", run / "checkpoints/last/188")
    assert_ends_alike(run, whole, config)


def test_where_no_checkpoint_is_whole_nothing_is_trained(run, planted_store):
    for kind, step in (("last", 188), ("last", 141), ("best", 188)):
        flip(data_file(run, kind, step))
    before = sorted(run.rglob("*"))
    with pytest.raises(Damaged, match="last: the"):
        train(config_of(planted_store), run)
    assert sorted(run.rglob("*")) == sorted({*before, run / ".lock"})


def test_a_lost_best_checkpoint_is_never_replaced_in_silence(run, planted_store):
    shutil.rmtree(run / "checkpoints/best")
    for refused in (lambda: evaluate(run), lambda: train(config_of(planted_store), run)):
        with pytest.raises(DinError, match=r"the best checkpoint is missing, .*checkpoint=last"):
            refused()
    assert evaluate(run, checkpoint="last").step == 188


def test_the_best_and_the_last_share_no_file(whole):
    inodes = [
        {f.stat().st_ino for f in (whole / "checkpoints" / kind).rglob("*") if f.is_file()}
        for kind in ("best", "last")
    ]
    assert not inodes[0] & inodes[1]


# Checkpoints by time ----------------------------------------------------------------------------


@pytest.mark.long
def test_states_are_saved_within_an_epoch_and_change_nothing(
    whole, planted_store, tmp_path, monkeypatch
):
    """Killed after a checkpoint within an epoch, the run goes on from there."""

    class Clock:
        now = 0.0

        def monotonic(self):
            self.now += 1
            return self.now

    saved = []
    save = Checkpoints.save

    def recorded(self, kind, state, meta):
        save(self, kind, state, meta)
        saved.append((kind, int(state.step)))
        if int(state.step) > 94 and int(state.step) % 47:
            raise KeyError("killed")

    config = config_of(planted_store, **{"train.checkpoint_every_s": 9.0})
    with monkeypatch.context() as patched:
        patched.setattr(loop_module, "time", Clock())
        patched.setattr(Checkpoints, "save", recorded)
        with pytest.raises(KeyError, match="killed"):
            train(config, tmp_path / "run", test=False)
    by_time = [step for kind, step in saved if step % 47]
    assert len(by_time) == 3 and max(by_time) < 141
    assert Checkpoints(tmp_path / "run").latest("last") == max(by_time)
    train(config, tmp_path / "run", test=False)
    config.train.checkpoint_every_s = 0.0
    assert_ends_alike(tmp_path / "run", whole, config)


# Two trainings in one folder ---------------------------------------------------------------------


HOLDER = """
import sys, time
from pathlib import Path
from din_jax.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_which_another_process_trains_is_refused(planted_store, tmp_path):
    holder = [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)]
    with subprocess.Popen(holder, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            message = rf"is in use: process {process.pid} on .* trains there; wait until it ends"
            with pytest.raises(DinError, match=message):
                train(config_of(planted_store), tmp_path)
            assert [f.name for f in tmp_path.iterdir()] == [".lock"]
        finally:
            process.send_signal(signal.SIGKILL)
    train(config_of(planted_store, **{"train.epochs": 1}), tmp_path, test=False)


# Weights of another run --------------------------------------------------------------------------


@pytest.mark.long
def test_where_weights_came_from_is_recorded_and_stays(whole, planted_store, tmp_path, monkeypatch):
    keys = {"train.init_from": str(whole), "optimizer.learning_rate": 0.001, "train.epochs": 1}
    config = config_of(planted_store, **keys)
    original = run_module.train_steps

    def stopping(*arguments, **options):
        steps = original(*arguments, **options)

        def stopped(state, batches):
            os.kill(os.getpid(), signal.SIGINT)
            return steps(state, batches)

        return stopped

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "train_steps", stopping)
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run")
    origin = Checkpoints(tmp_path / "run").meta("last")["origin"]
    assert origin["workdir"] == str(whole) and origin["checkpoint"] == "best"
    assert origin["step"] == 188 and len(origin["checksum"]) == 8
    train(config, tmp_path / "run", test=False)
    assert Checkpoints(tmp_path / "run").meta("last")["origin"] == origin
