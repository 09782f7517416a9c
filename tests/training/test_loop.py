"""The training loop, end to end on a small planted data set."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_config

from configs import quickstart
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.data.store import Store
from din_jax.distributed import cpu
from din_jax.errors import DinError, Diverged, Interrupted
from din_jax.nn import present_rows
from din_jax.optim.learning_rate import decayed_learning_rate
from din_jax.prepare import planted
from din_jax.training import log as log_module, loop as loop_module, run as run_module
from din_jax.training.evaluation import Evaluator
from din_jax.training.loop import _calls, _places, train
from din_jax.training.run import Run, open_run
from din_jax.training.trained import evaluate, load_run

ROOT = Path(__file__).parents[2]


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def last_state(config, workdir):
    run = open_run(config)
    return Checkpoints(workdir).restore("last", run.state_shapes())[0]


def base_config(store, **keys):
    """The model that compiles fastest and has Dice."""
    return tiny_config(store, **{"model.name": "base"} | keys)


@pytest.mark.parametrize("staircase", [False, True])
@pytest.mark.parametrize(("rate", "end_value"), [(0.9, 0.0), (0.1, 0.02), (1.0, 0.0)])
def test_the_learning_rate_follows_the_formula(staircase, rate, end_value):
    config = quickstart.get_config().optimizer
    config.learning_rate, config.decay_rate, config.end_value = 0.5, rate, end_value
    config.decay_samples, config.staircase = 1000, staircase
    schedule = decayed_learning_rate(config, batch_size=50)
    for step in (0, 1, 19, 20, 21, 39, 40, 399):
        periods = step * 50 / 1000
        expected = 0.5 * rate ** (np.floor(periods) if staircase else periods)
        assert float(schedule(step)) == pytest.approx(max(expected, end_value), rel=1e-5)


@pytest.mark.parametrize("evaluations", [1, 3, 94])
def test_calls_end_where_shapes_change_and_where_validation_is_scored(planted_store, evaluations):
    config = base_config(planted_store, **{"train.epochs": 2})
    source = open_run(config).source
    assert (source.batches_per_epoch, source.steps_per_call) == (94, 4)
    places = _places(94, evaluations)
    assert len(places) == evaluations and places[-1] == 94
    calls = list(_calls(source, 0, places))
    assert [i for call in calls for i in call] == list(range(188))
    for call in calls:
        inside = range(call.start + 1, call.stop)
        assert not any(i % 94 % 4 == 0 or i % 94 in places for i in inside)
    for i, call in enumerate(calls):  # wherever a run was stopped
        assert list(_calls(source, call.start, places)) == calls[i:]


def stop_at_130(config, workdir, monkeypatch):
    """Trains until step 130, in the second epoch, after an evaluation."""
    taken = []
    original = run_module.train_steps

    def stopping(*arguments, **options):
        steps = original(*arguments, **options)

        def counted(state, batches):
            taken.extend(batches)
            if len(taken) == 130:
                os.kill(os.getpid(), signal.SIGINT)
            return steps(state, batches)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "train_steps", stopping)
        with pytest.raises(Interrupted, match="saved at step 130; run the same command again"):
            train(config, workdir)


@pytest.mark.parametrize("lazy", [True, pytest.param("catch_up", marks=pytest.mark.long)])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    planted_store, tmp_path, monkeypatch, lazy
):
    config = base_config(planted_store, **{"train.epochs": 2, "optimizer.lazy": lazy})
    train(config, tmp_path / "whole")
    stop_at_130(config, tmp_path / "stopped", monkeypatch)
    if lazy == "catch_up":  # rows are behind where it was stopped, and not in what is scored
        last_step = last_state(config, tmp_path / "stopped").opt_state.last_step["item"]
        loaded = load_run(tmp_path / "stopped", checkpoint="last")[1].opt_state.last_step["item"]
        assert ((last_step > 0) & (last_step < 130)).any()
        np.testing.assert_array_equal(loaded, np.where(last_step > 0, 130, 0))
    train(config, tmp_path / "stopped")

    assert same(last_state(config, tmp_path / "whole"), last_state(config, tmp_path / "stopped"))
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "stopped")
    ]
    whole, stopped = (
        [(m["step"], m["user_weighted_auc"]) for m in log if m["split"] != "train"] for log in logs
    )
    assert whole == stopped
    assert len(whole) == 3  # two epochs on validation, then test


@pytest.mark.long
def test_each_evaluation_is_reported_when_its_state_is_saved_and_may_end_the_run(
    planted_store, tmp_path
):
    config = base_config(planted_store, **{"train.epochs": 2, "train.evaluations_per_epoch": 2})
    reported = []

    def report(epoch, metrics):
        reported.append((epoch, metrics, Checkpoints(tmp_path).latest("last")))
        if len(reported) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        train(config, tmp_path, test=False, on_evaluation=report)
    train(config, tmp_path, test=False, on_evaluation=report)  # it goes on
    assert [step for *_, step in reported] == [47, 94, 141, 188]
    assert [epoch for epoch, *_ in reported] == [0.5, 1.0, 1.5, 2.0]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    logged = [m for m in map(json.loads, lines) if m["split"] == "validation"]
    for line, (_, metrics, step) in zip(logged, reported, strict=True):
        assert (line["step"], line["auc"]) == (step, metrics["auc"])


@pytest.mark.long
@pytest.mark.parametrize("lazy", [True, "catch_up"])
def test_averages_of_the_weights_are_scored_and_survive_a_stop(
    planted_store, tmp_path, monkeypatch, lazy
):
    """The weights are averaged at eighths of an epoch."""
    keys = {"train.epochs": 2, "optimizer.lazy": lazy}
    train(base_config(planted_store, **keys), tmp_path / "plain")
    config = base_config(planted_store, **keys, **{"train.ema_epochs": 0.5})
    seen = []
    original = loop_module.average

    def recorded(half_life, placement):
        assert half_life == 4
        average_in = original(half_life, placement)

        def record(state):
            weights = jax.tree.map(np.asarray, (state.params, state.batch_stats, state.tables))
            seen.append((int(state.step), weights))
            return average_in(state)

        return record

    with monkeypatch.context() as patched:
        patched.setattr(loop_module, "average", recorded)
        scores = train(config, tmp_path / "whole")
    epoch = [12, 24, 36, 47, 59, 71, 83, 94]  # ⌈94 i / 8⌉
    assert [step for step, _ in seen] == [*epoch, *[94 + step for step in epoch]]
    last = last_state(config, tmp_path / "whole")
    if lazy is True:  # rows that catch up more often differ in their last bits
        plain = last_state(base_config(planted_store, **keys), tmp_path / "plain")
        assert same(last.replace(average=()), plain), "averaging changes no step"
    shares = 2.0 ** (-np.arange(16.0)[::-1] / 4)
    expected = jax.tree.map(
        lambda *leaves: np.tensordot(shares / shares.sum(), np.stack(leaves), 1),
        *[weights for _, weights in seen],
    )
    run, loaded = load_run(tmp_path / "whole", checkpoint="last")
    found = (loaded.params, loaded.batch_stats, loaded.tables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
    )
    np.testing.assert_array_equal(run.probabilities(loaded), run.probabilities(last))
    assert scores.metrics["auc"] == evaluate(tmp_path / "whole").metrics["auc"]

    stop_at_130(config, tmp_path / "stopped", monkeypatch)
    train(config, tmp_path / "stopped")
    assert same(last, last_state(config, tmp_path / "stopped"))
    best = [
        Checkpoints(tmp_path / name).restore("best", run.state_shapes())[0]
        for name in ("whole", "stopped")
    ]
    assert same(*best)


@pytest.mark.long
def test_a_run_whose_rows_catch_up_is_one_of_dense_adam(planted_store, tmp_path, monkeypatch):
    """In what it scores and saves; also if it goes on where a table is updated densely."""
    keys = {"train.epochs": 2, "model.activation": "prelu", "optimizer.learning_rate": 0.001}
    config = base_config(planted_store, **keys, **{"optimizer.lazy": False})
    dense = train(config, tmp_path / "dense")
    config.optimizer.lazy = "catch_up"
    settled = []
    original = Run.settle

    def recorded(run):
        return lambda state: settled.append(int(state.step)) or original(run)(state)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "settle", recorded)
        patched.setattr(loop_module, "_SETTLE_EVERY", 60)
        scores = train(config, tmp_path / "whole")
    *in_training, _ = settled  # the last is of the checkpoint that is scored
    assert in_training == [60, 94, 122, 182, 188], "by calls of four steps"

    stop_at_130(config, tmp_path / "moved", monkeypatch)
    monkeypatch.setattr(present_rows, "SPARSE_ABOVE", 10**6)
    train(config, tmp_path / "moved")
    assert not open_run(config).state_shapes().scratch
    assert scores.metrics == pytest.approx(dense.metrics, rel=1e-3)
    for kind in ("best", "last"):
        expected, *found = (
            saved_tables(config, tmp_path / name, kind) for name in ("dense", "whole", "moved")
        )
        for tables in found:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), tables, expected)


def saved_tables(config, workdir, kind):
    config = copy.deepcopy(config)
    config.optimizer.lazy = "catch_up" if workdir.name != "dense" else False
    run = open_run(config)
    return Checkpoints(workdir).restore(kind, run.state_shapes())[0].tables


def test_speeds_leave_out_compiling_evaluating_and_saving(planted_store, tmp_path, monkeypatch):
    class Clock:
        """A call takes a second; what is not training takes days."""

        now = 0.0

        def perf_counter(self):
            self.now += 1
            return self.now

        def after(self, function):
            def slow(*arguments, **named):
                self.now += 1e6
                return function(*arguments, **named)

            return slow

    clock = Clock()
    monkeypatch.setattr(log_module, "time", clock)
    monkeypatch.setattr(Checkpoints, "save", clock.after(Checkpoints.save))
    probabilities = Evaluator.probabilities
    monkeypatch.setattr(Evaluator, "probabilities", clock.after(probabilities))
    monkeypatch.setattr(cpu, "in_own_thread", clock.after(cpu.in_own_thread))
    train(base_config(planted_store, **{"train.epochs": 2}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["samples_per_s"] for line in lines if line["split"] == "train"]
    assert clock.now > 4e6
    assert len(speeds) >= 2
    assert min(speeds) > 1


def test_a_complete_run_is_only_evaluated_again(planted_store, tmp_path, capsys):
    config = base_config(planted_store, **{"train.epochs": 1})
    first = train(config, tmp_path)
    second = train(config, tmp_path)
    assert "the run is complete at step 94 of 94" in capsys.readouterr().out
    assert first.metrics == second.metrics
    assert (tmp_path / "metrics.jsonl").read_text().count('"split": "test"') == 1


def test_more_epochs_go_on_and_another_config_does_not(planted_store, tmp_path):
    train(base_config(planted_store, **{"train.epochs": 1}), tmp_path)
    train(base_config(planted_store, **{"train.epochs": 2}), tmp_path)
    assert Checkpoints(tmp_path).latest("last") == 188
    with pytest.raises(DinError, match=r"config.model.name: 'base' then, 'din' now"):
        train(base_config(planted_store, **{"model.name": "din"}), tmp_path)
    with pytest.raises(DinError, match=r"holds a run of 188 steps, and .* asks for 94"):
        train(base_config(planted_store, **{"train.epochs": 1}), tmp_path)


def test_a_run_whose_batches_were_balanced_otherwise_does_not_go_on(
    planted_store, tmp_path, monkeypatch
):
    config = base_config(planted_store, **{"train.epochs": 1})
    train(config, tmp_path / "run", test=False)
    config.train.epochs = 2
    monkeypatch.setattr(run_module, "_TRAINED_PER_CALL", 64)
    with pytest.raises(DinError, match="over 4 batches; this one balances over 1,"):
        train(config, tmp_path / "run")


def test_weights_of_another_run_are_never_reported(planted_store, tmp_path):
    # A run that ended after its first "best" and before its first "last" leaves such a folder.
    config = base_config(planted_store, **{"train.epochs": 1})
    first = train(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/last")
    with pytest.raises(DinError, match=r"another config:\s+config.seed: 0 then, 7 now"):
        train(base_config(planted_store, **{"train.epochs": 1, "seed": 7}), tmp_path)
    assert Checkpoints(tmp_path).latest("best") == 94, "nothing is lost"
    assert train(config, tmp_path).metrics == first.metrics


def test_a_log_that_was_cut_is_mended(planted_store, tmp_path):
    config = base_config(planted_store, **{"train.epochs": 1})
    train(config, tmp_path)
    log = tmp_path / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 94, "spl')
    train(config, tmp_path)
    assert log.read_text() == whole


def test_the_best_weights_on_validation_are_the_ones_reported(planted_store, tmp_path):
    # A learning rate that soon overfits: the last weights are not the best.
    config = base_config(
        planted_store,
        **{
            "train.epochs": 6,
            "train.select": "log_loss",
            "optimizer.learning_rate": 0.02,
            "model.name": "base",
        },
    )
    metrics = train(config, tmp_path).metrics
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    by_step = {m["step"]: m["log_loss"] for m in log if m["split"] == "validation"}
    best = min(by_step, key=by_step.__getitem__)
    assert best != max(by_step), "else this test shows nothing"
    assert Checkpoints(tmp_path).latest("best") == best
    assert log[-1]["split"] == "test"
    assert (log[-1]["step"], log[-1]["auc"]) == (best, metrics["auc"])


def test_the_final_fit_takes_validation_in_and_chooses_nothing(planted_store, tmp_path):
    config = base_config(planted_store, **{"data.fit": "train+validation", "train.epochs": 1})
    train(config, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {m["split"] for m in log} == {"train", "test"}
    assert Checkpoints(tmp_path).latest("best") is None
    # 24 of a user's 30 impressions.
    assert Checkpoints(tmp_path).latest("last") == -(-300 * 24 // 64)


def test_training_that_diverges_stops_with_advice(planted_store, tmp_path):
    config = base_config(
        planted_store,
        **{"optimizer.name": "sgd", "optimizer.learning_rate": 1e9, "model.activation": "prelu"},
    )
    with pytest.raises(Diverged, match=r"diverged; lower config\.optimizer\.learning_rate"):
        train(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def one_class_a_user(planted_store, path):
    """The planted store, but in validation every user has clicks only or none."""
    shutil.copytree(planted_store, path)
    store = Store(path)
    label, user = store.column("samples/label").copy(), store.column("samples/user")
    validation = slice(store.split("validation").start, store.split("validation").stop)
    label[validation] = user[validation] % 2
    np.save(path / "samples/label.npy", label)


def test_a_metric_that_cannot_be_computed_selects_nothing(planted_store, tmp_path):
    one_class_a_user(planted_store, tmp_path / "store")
    keys = {"data.verify": "none", "train.epochs": 1}  # its labels have changed
    with pytest.raises(DinError, match="no user of it has both a click and none; use 'auc'"):
        train(base_config(tmp_path / "store", **keys), tmp_path / "run")
    config = base_config(tmp_path / "store", **keys, **{"train.select": "auc"})
    train(config, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    validation = next(m for m in map(json.loads, lines) if m["split"] == "validation")
    assert validation["user_weighted_auc"] is None
    assert 0 < validation["auc"] < 1


@pytest.mark.long
def test_din_beats_base_where_the_ad_activates_behaviours(tmp_path):
    planted.prepare(tmp_path / "store")
    found = {}
    for name in ("base", "din"):
        config = base_config(
            tmp_path / "store",
            **{
                "model.name": name,
                "train.epochs": 3,
                "train.batch_size": 512,
                "data.max_history": 0,
            },
        )
        found[name] = train(config, tmp_path / name).metrics["user_weighted_auc"]
    assert found["din"] > found["base"] + 0.02
