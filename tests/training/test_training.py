"""The loop, checkpoints and commands, end to end on a small planted data set."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from runs import command, small_config

from configs import quickstart
from din_jax.checkpoint import arrays, checkpoints as checkpoints_module, compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.data.source import BatchSource
from din_jax.data.store import Store
from din_jax.distributed import cpu
from din_jax.errors import DinError, Interrupted
from din_jax.metrics import log_loss
from din_jax.models.registry import build_model
from din_jax.optim.build import build_optimizer
from din_jax.optim.learning_rate import decayed_learning_rate
from din_jax.prepare import planted
from din_jax.step.score import _vmapped_batches, score_step, score_steps
from din_jax.step.state import init_state
from din_jax.step.train import train_step
from din_jax.training import log as log_module, run as run_module
from din_jax.training.evaluation import Evaluator
from din_jax.training.loop import _calls, _evaluation_places, train
from din_jax.training.run import open_run
from din_jax.training.trained import reopen

ROOT = Path(__file__).parents[2]


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def last_state(config, workdir):
    run = open_run(config)
    return Checkpoints(workdir).restore("last", run.state_shapes())[0]


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


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_follows_the_gradient_of_the_mean_loss_of_the_real_samples(planted_store, name):
    config = small_config(planted_store, **{"model.activation": "prelu"})
    config.optimizer.name, config.optimizer.clip_norm = name, 0.01
    store = Store(planted_store)
    model = build_model(store.schema, config.model)
    batch = BatchSource(store, "train", 64)[0]
    batch = batch._replace(weight=np.float32([1] * 50 + [0] * 14))
    optimizer = build_optimizer(config.optimizer, config.regularizer, 64, ())
    state = init_state(model, optimizer, batch, seed=0)

    def loss_of(trained):
        logits, _ = model.module.apply(
            {"params": trained["params"]},
            trained["tables"],
            model.lookups(batch),
            batch,
            train=True,
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits[:50], batch.label[:50].astype(np.int32)
        ).mean()

    before = {"params": state.params, "tables": state.tables}
    loss, gradient = jax.value_and_grad(loss_of)(before)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in leaves(gradient)))
    assert norm > 0.01, "clipping must bite"
    rate = config.optimizer.learning_rate
    if name == "sgd":
        want = jax.tree.map(lambda w, g: w - rate * g * (0.01 / norm), before, gradient)
    else:  # Adam's first step: m̂ = g, v̂ = g²
        want = jax.tree.map(
            lambda w, g: w - rate * g * (0.01 / norm) / (abs(g * (0.01 / norm)) + 1e-8),
            before,
            gradient,
        )
    want = leaves(want)
    after, reported = train_step(model, optimizer)(state, batch)
    assert float(reported) == pytest.approx(float(loss), rel=1e-5)
    assert int(after.step) == 1
    for a, b in zip(leaves({"params": after.params, "tables": after.tables}), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6)


def test_compilations_are_no_more_than_buckets(planted_store):
    config = small_config(planted_store, **{"train.batch_size": 128, "data.max_history": 0})
    run = open_run(config)
    step, state = train_step(run.model, run.optimizer), run.init()
    for i in range(len(run.source)):
        state, _ = step(state, run.source[i])
    assert 1 < step.func._tuned._cache_size() <= len(run.source.buckets.sizes)


def test_steps_inside_another_jit_are_the_same_steps(planted_store):
    run = open_run(small_config(planted_store))
    batch = run.source[0]
    step, score = train_step(run.model, run.optimizer), score_step(run.model)

    @jax.jit
    def two_steps(state):
        state, losses = jax.lax.scan(lambda s, _: step(s, batch), state, length=2)
        return losses, score(state, batch)

    losses, scores = two_steps(run.init())
    state, alone = run.init(), []
    for _ in range(2):
        state, loss = step(state, batch)
        alone.append(float(loss))
    assert alone[1] < alone[0]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    np.testing.assert_allclose(scores, score(state, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_steps_of_one_call_are_the_steps_one_by_one(planted_store, count):
    config = small_config(planted_store, **{"regularizer.name": "mba", "optimizer.name": "adam"})
    run = open_run(config)
    assert run.source.steps_per_call == 4  # 256 samples
    batches = [run.source[i] for i in range(count)]
    step, state, alone = run.step(), run.init(), []
    for batch in batches:
        state, loss = step(state, batch)
        alone.append(float(loss))
    together, losses = run.steps()(run.init(), batches)
    assert int(together.step) == count
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    for a, b in zip(leaves(together), leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    score = score_step(run.model)
    scores = score_steps(run.model, steps_per_call=4)(state, batches)
    np.testing.assert_allclose(scores, np.concatenate([score(state, b) for b in batches]), 1e-5)


@pytest.mark.parametrize("evaluations", [1, 3, 94])
def test_calls_end_where_shapes_change_and_where_validation_is_scored(planted_store, evaluations):
    config = small_config(planted_store, **{"train.epochs": 2})
    source = open_run(config).source
    assert (source.batches_per_epoch, source.steps_per_call) == (94, 4)
    places = _evaluation_places(94, evaluations)
    assert len(places) == evaluations and places[-1] == 94
    calls = list(_calls(source, 0, places))
    assert [i for call in calls for i in call] == list(range(188))
    for call in calls:
        inside = range(call.start + 1, call.stop)
        assert not any(i % 94 % 4 == 0 or i % 94 in places for i in inside)
    for i, call in enumerate(calls):  # wherever a run was stopped
        assert list(_calls(source, call.start, places)) == calls[i:]


def test_batch_size_changes_no_score(planted_store):
    config = small_config(planted_store, **{"data.max_history": 0})
    run = open_run(config)
    state, _ = train_step(run.model, run.optimizer)(run.init(), run.source[0])
    scores = []
    for batch_size in (5000, 1000, 7):  # one a call, two a call, many a call and side by side
        config.eval.batch_size = batch_size
        scores.append(run.evaluator("test").probabilities(state))
    assert scores[0].shape == (300 * planted.TEST_IMPRESSIONS,)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-5)


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(planted_store, tmp_path, monkeypatch):
    config = small_config(planted_store)
    train(config, tmp_path / "whole")

    taken = []
    original = run_module.train_steps

    def stopping(*arguments, **options):
        steps = original(*arguments, **options)

        def counted(state, batches):
            taken.extend(batches)
            if len(taken) == 130:  # in the second epoch, after an evaluation
                os.kill(os.getpid(), signal.SIGINT)
            return steps(state, batches)

        return counted

    monkeypatch.setattr(run_module, "train_steps", stopping)
    with pytest.raises(Interrupted, match="saved at step 130; run the same command again"):
        train(config, tmp_path / "stopped")
    monkeypatch.undo()
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
    train(small_config(planted_store, **{"train.epochs": 2}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["samples_per_s"] for line in lines if line["split"] == "train"]
    assert clock.now > 4e6
    assert len(speeds) >= 2
    assert min(speeds) > 1


def test_a_complete_run_is_only_evaluated_again(planted_store, tmp_path, capsys):
    config = small_config(planted_store, **{"train.epochs": 1})
    first = train(config, tmp_path)
    second = train(config, tmp_path)
    assert "the run is complete at step 94 of 94" in capsys.readouterr().out
    assert first.metrics == second.metrics
    assert (tmp_path / "metrics.jsonl").read_text().count('"split": "test"') == 1


def test_more_epochs_go_on_and_another_config_does_not(planted_store, tmp_path):
    train(small_config(planted_store, **{"train.epochs": 1}), tmp_path)
    train(small_config(planted_store, **{"train.epochs": 2}), tmp_path)
    assert Checkpoints(tmp_path).latest("last") == 188
    with pytest.raises(DinError, match=r"config.model.name: 'din' then, 'base' now"):
        train(small_config(planted_store, **{"model.name": "base"}), tmp_path)
    with pytest.raises(DinError, match=r"holds a run of 188 steps, and .* asks for 94"):
        train(small_config(planted_store, **{"train.epochs": 1}), tmp_path)


def test_a_run_whose_batches_were_balanced_otherwise_does_not_go_on(
    planted_store, tmp_path, monkeypatch
):
    config = small_config(planted_store, **{"train.epochs": 1})
    train(config, tmp_path / "run", test=False)
    config.train.epochs = 2
    monkeypatch.setattr(run_module, "_TRAINED_PER_CALL", 64)
    with pytest.raises(DinError, match="over 4 batches; this one balances over 1,"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("batches", "longest", "count"),
    [(64, 320, 32), (64, 8, 64), (4, 320, 4), (16, 1240, 8), (2, 10104, None), (8, 2500, None)],
)
def test_small_batches_are_scored_vmapped_batches(batches, longest, count):
    assert _vmapped_batches(batches, longest) == count


def test_weights_of_another_run_are_never_reported(planted_store, tmp_path):
    # A run that ended after its first "best" and before its first "last" leaves such a folder.
    config = small_config(planted_store, **{"train.epochs": 1})
    first = train(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/last")
    with pytest.raises(DinError, match=r"another config:\s+config.seed: 0 then, 7 now"):
        train(small_config(planted_store, **{"train.epochs": 1, "seed": 7}), tmp_path)
    assert Checkpoints(tmp_path).latest("best") == 94, "nothing is lost"
    assert train(config, tmp_path).metrics == first.metrics


def test_a_log_that_was_cut_is_mended(planted_store, tmp_path):
    config = small_config(planted_store, **{"train.epochs": 1})
    train(config, tmp_path)
    log = tmp_path / "metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 94, "spl')
    train(config, tmp_path)
    assert log.read_text() == whole


def test_the_best_weights_on_validation_are_the_ones_reported(planted_store, tmp_path):
    # A learning rate that soon overfits: the last weights are not the best.
    config = small_config(
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
    config = small_config(planted_store, **{"data.fit": "train+validation", "train.epochs": 1})
    train(config, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {m["split"] for m in log} == {"train", "test"}
    assert Checkpoints(tmp_path).latest("best") is None
    # 24 of a user's 30 impressions.
    assert Checkpoints(tmp_path).latest("last") == -(-300 * 24 // 64)


def test_training_that_diverges_stops_with_advice(planted_store, tmp_path):
    config = small_config(
        planted_store,
        **{"optimizer.name": "sgd", "optimizer.learning_rate": 1e9, "model.activation": "prelu"},
    )
    with pytest.raises(DinError, match=r"diverged; lower config\.optimizer\.learning_rate"):
        train(config, tmp_path)


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
    with pytest.raises(DinError, match="no user of it has both a click and none; use 'auc'"):
        train(small_config(tmp_path / "store"), tmp_path / "run")
    config = small_config(tmp_path / "store", **{"train.select": "auc", "train.epochs": 1})
    train(config, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    validation = next(m for m in map(json.loads, lines) if m["split"] == "validation")
    assert validation["user_weighted_auc"] is None
    assert 0 < validation["auc"] < 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model.table_dims": "itme=4"}, "'itme=4': expected TABLE=WIDTH, .* category"),
        ({"model.table_dims": "item=0"}, "'item=0': expected TABLE=WIDTH"),
        ({"model.hidden": (8, 0)}, r"config.model.hidden=\(8, 0\): expected widths of at least 1"),
        ({"model.attention.hidden": ()}, r"config.model.attention.hidden=\(\)"),
        ({"model.attention.block": -1}, "config.model.attention.block=-1: expected at least 0"),
        (
            {"model.preset": "released_code", "model.attention.block": 8},
            "config.model.attention.block=8: preset='released_code' fixes this",
        ),
        ({"seed": -1}, "config.seed=-1: expected at least 0"),
        (
            {"model.preset": "released_code", "model.pooling": "mean"},
            "config.model.pooling='mean': preset='released_code' fixes this",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(planted_store, keys, message):
    with pytest.raises(DinError, match=message):
        open_run(small_config(planted_store, **keys))


def test_tables_have_the_widths_that_the_config_gives_them(planted_store):
    run = open_run(small_config(planted_store, **{"model.table_dims": "item=4, shop=2"}))
    widths = {name: table.shape[1] for name, table in run.init().tables.items()}
    assert widths == {"item": 4, "shop": 2, "category": 16, "age": 16, "hour": 16}


def test_compare_agrees_with_its_runs(planted_store, tmp_path):
    flags = [
        "compare",
        "--config=configs/quickstart.py",
        f"--config.data.store={planted_store}",
        "--config.train.epochs=1",
        f"--workdir={tmp_path}",
        "--seeds=2",
    ]
    done = command("-m", "din_jax.report", *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "compare.json").read_text())
    found = {line["model"]: line["user_weighted_auc"] for line in result["lines"]}
    for name, values in found.items():
        for seed, value in enumerate(values):
            lines = (tmp_path / f"{name}-dice-{seed}/metrics.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["user_weighted_auc"] == value
    (difference,) = result["differences"]
    gains = [d - b for d, b in zip(found["din"], found["base"], strict=True)]
    assert difference["by_seed"] == pytest.approx(gains)
    assert difference["mean"] == pytest.approx(np.mean(gains))
    assert difference["low"] < difference["mean"] < difference["high"]

    for flag, message in (
        ("--models=base,dinn", "expected .* or 'din' .did you mean 'din'"),
        ("--models=din,din", "named twice"),
        ("--seeds=0", "seeds"),
        ("--config.model.nme=x", 'Did you mean "name"'),
        ("--config.model.name=din", "what is compared is named by --models"),
        ("--protocol=tuned", "--protocol is no flag of `compare`, but of table3, table4, table5"),
    ):
        failed = command("-m", "din_jax.report", *flags, flag, f"--workdir={tmp_path / 'x'}")
        assert failed.returncode == 1
        assert re.search(f"^error: .*{message}", failed.stderr, re.MULTILINE), failed.stderr
        assert "Traceback" not in failed.stderr
        assert not (tmp_path / "x").exists()


def test_a_damaged_array_is_noticed(planted_store, tmp_path):
    config = small_config(planted_store, **{"train.epochs": 1})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    state = run.init()
    Checkpoints(tmp_path).save("last", state, meta)
    assert same(Checkpoints(tmp_path).restore("last", run.state_shapes())[0], state)
    honest = checkpoints_module.checksums
    other = state.replace(tables=state.tables | {"item": state.tables["item"].at[7, 3].add(1e-6)})
    Checkpoints(tmp_path / "b").save("last", state, meta)
    try:
        # The checksums of one state beside the arrays of another: what a flipped bit looks like.
        checkpoints_module.checksums = lambda _: honest(state.replace(scratch={}))
        Checkpoints(tmp_path / "c").save("last", other, meta)
    finally:
        checkpoints_module.checksums = honest
    with pytest.raises(DinError, match=r"the array .*tables\['item'\] is damaged"):
        Checkpoints(tmp_path / "c").restore("last", run.state_shapes())


def test_a_checkpoint_of_another_version_is_told_from_damage(planted_store, tmp_path, monkeypatch):
    config = small_config(planted_store, **{"train.epochs": 1})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    monkeypatch.setattr(checkpoints_module, "_CHECKSUM", "other sums")
    Checkpoints(tmp_path / "sums").save("last", run.init(), meta)
    monkeypatch.undo()
    with pytest.raises(DinError, match=r"another version of din_jax, .* \(other sums, here sum of"):
        train(config, tmp_path / "sums")
    del meta["config"]["placement"]
    Checkpoints(tmp_path / "keys").save("last", run.init(), meta)
    for opened in (
        lambda: train(config, tmp_path / "keys"),
        lambda: reopen(tmp_path / "keys"),
    ):
        with pytest.raises(DinError, match=r"another version of din_jax: .* lacks placement"):
            opened()


def test_large_arrays_are_restored_in_parts(planted_store, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "PART_BYTES", 10_000)
    config = small_config(planted_store, **{"optimizer.name": "rowwise_adagrad"})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    state, _ = train_step(run.model, run.optimizer)(run.init(), run.source[0])
    assert sum(leaf.nbytes > 10_000 for leaf in jax.tree.leaves(state)) >= 3
    Checkpoints(tmp_path).save("last", state, meta)
    restored, _ = Checkpoints(tmp_path).restore("last", run.state_shapes())
    assert same(restored.replace(scratch={}), state.replace(scratch={}))
    assert jax.tree.structure(restored) == jax.tree.structure(state)

    like = run.state_shapes()
    item = like.tables["item"]
    longer = jax.ShapeDtypeStruct((len(state.tables["item"]) + 1, item.shape[1]), item.dtype)
    wrong = like.replace(tables=like.tables | {"item": longer})
    with pytest.raises(DinError, match=r"does not fit .*tables\['item'\] has the shape"):
        Checkpoints(tmp_path).restore("last", wrong)


def test_din_beats_base_where_the_ad_activates_behaviours(tmp_path):
    planted.prepare(tmp_path / "store")
    found = {}
    for name in ("base", "din"):
        config = small_config(
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


def test_eval_prints_what_training_printed(planted_store, tmp_path):
    flags = [
        f"--config.data.store={planted_store}",
        "--config.train.epochs=1",
        f"--workdir={tmp_path / 'run'}",
    ]
    trained = command("train.py", "--config=configs/quickstart.py", *flags)
    assert trained.returncode == 0, trained.stderr
    evaluated = command("eval.py", f"--workdir={tmp_path / 'run'}", "--split=test")
    assert evaluated.returncode == 0, evaluated.stderr
    table = trained.stdout[trained.stdout.index("test metrics") :]
    assert table == evaluated.stdout
    for name in ("user_weighted_auc", "auc", "log_loss"):
        assert re.search(rf"^  {name} +0\.\d+$", table, re.MULTILINE)
    assert list((tmp_path / "run/tensorboard").iterdir())

    for flag, message in (
        ("--split=tset", "no split 'tset'; .* has: train, validation, test"),
        (f"--workdir={tmp_path / 'none'}", "no .*none; train first"),
        ("--store=/nowhere", "store /nowhere is not there .* with --store"),
        ("--wrokdir=x", "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
    ):
        failed = command("eval.py", f"--workdir={tmp_path / 'run'}", flag)
        assert failed.returncode == 1
        assert re.search(f"^error: .*{message}", failed.stderr), failed.stderr
        assert "Traceback" not in failed.stderr

    planted.prepare(tmp_path / "other", users=301)
    failed = command("eval.py", f"--workdir={tmp_path / 'run'}", f"--store={tmp_path / 'other'}")
    assert failed.returncode == 1
    assert "of another schema than the store" in failed.stderr
    assert "tables: user[301] in the checkpoint, user[302] in the store" in failed.stderr
    planted.prepare(tmp_path / "same", users=300, seed=1)
    failed = command("eval.py", f"--workdir={tmp_path / 'run'}", f"--store={tmp_path / 'same'}")
    assert failed.returncode == 1
    assert "the same schema, other content" in failed.stderr


def test_ctrl_c_saves_and_says_how_to_go_on(planted_store, tmp_path):
    arguments = [
        sys.executable,
        "train.py",
        "--config=configs/quickstart.py",
        f"--config.data.store={planted_store}",
        "--config.train.epochs=1000",
        f"--workdir={tmp_path}",
    ]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "metrics.jsonl"
    give_up = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < give_up:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    step = re.search(r"stopped and saved at step ([\d,]+); run the same command again", out)
    assert step, out
    assert Checkpoints(tmp_path).latest("last") == int(step[1].replace(",", ""))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.model.nme=base"], 'Did you mean "name" instead of "nme"'),
        (["--config.model.embedding_dim=many"], "invalid literal for int"),
        (["--config.model.name=dni"], r"expected .* or 'din' \(did you mean 'din'\?\)"),
        (["--config.devices=3"], "config.devices=3: there is 1 cpu device"),
        (["--config.processes.coordinator=auto"], "JAX found no Slurm, Open MPI or TPU pod here"),
        (["--config.data.store=/nowhere"], "no store at /nowhere"),
        (["--config.train.epochs=0"], "config.train.epochs=0: expected at least 1"),
        (["--config.model.extra_fields=('user',)"], "optional fields are: user_id"),
        (["--config.model.preset=released_code"], "one behaviour sequence and ad fields only"),
        (["--config.model.item_bias=itme"], "no one-hot ad field 'itme'"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_mistaken_flag_is_one_clear_error(planted_store, tmp_path, flags, message):
    failed = command(
        "train.py",
        "--config=configs/quickstart.py",
        f"--config.data.store={planted_store}",
        f"--workdir={tmp_path / 'run'}",
        *flags,
    )
    assert failed.returncode == 1
    assert re.search(f"^error: .*{message}", failed.stderr, re.MULTILINE), failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there_is_named(tmp_path):
    for flags, message in (
        (["--config=configs/nothing.py"], "configs/nothing.py"),
        ([], "--config=… is required"),
    ):
        failed = command("train.py", *flags)
        assert failed.returncode == 1
        assert message in failed.stderr
        assert "Traceback" not in failed.stderr


def test_help_lists_the_flags():
    for script, flag in (("train.py", "--workdir"), ("eval.py", "--checkpoint")):
        shown = command(script, "--help")
        assert flag in shown.stdout
        assert "Traceback" not in shown.stderr


def test_a_traceback_is_there_for_the_asking(tmp_path):
    failed = command("train.py", "--config=configs/quickstart.py", "--traceback", "stray")
    assert "Traceback" in failed.stderr


def test_configs_and_workdirs_that_cannot_be_read_are_named(planted_store, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    (tmp_path / "wrong.py").write_text(
        "from din_jax.config import default_config\n"
        "def get_config():\n    c = default_config()\n    c.modle = 3\n    return c\n"
    )
    (tmp_path / "nothing.py").write_text("def get_config():\n    pass\n")
    (tmp_path / "file").write_text("")
    good = ["--config=configs/quickstart.py", f"--config.data.store={planted_store}"]
    for flags, message in (
        ([f"--config={tmp_path / 'broken.py'}"], "broken.py: SyntaxError"),
        ([f"--config={tmp_path / 'wrong.py'}"], "wrong.py: .*modle"),
        ([f"--config={tmp_path / 'nothing.py'}"], "returned NoneType, not a ConfigDict"),
        ([*good, f"--workdir={tmp_path / 'file'}"], "file.*(File exists|Not a directory)"),
    ):
        failed = command("train.py", *flags)
        assert failed.returncode == 1
        assert re.search(f"^error: .*{message}", failed.stderr, re.MULTILINE), failed.stderr
        assert "Traceback" not in failed.stderr
        assert len(failed.stderr.strip().splitlines()[-1]) < 300


def test_scores_are_probabilities_of_the_click_output(planted_store):
    config = small_config(planted_store)
    run = open_run(config)
    batch, state = run.source[0], run.init()
    logits, _ = run.model.module.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        state.tables,
        run.model.lookups(batch),
        batch,
        train=False,
    )
    z = score_step(run.model)(state, batch)
    np.testing.assert_allclose(jax.nn.sigmoid(z), jax.nn.softmax(logits)[:, 1], rtol=1e-5)
    evaluator = run.evaluator("train")
    size = evaluator.source.batch_size
    evaluator.score = lambda _, several: np.full(len(several) * size, 40.0, np.float32)
    p = evaluator.probabilities(state)
    assert 1 - p[0] == pytest.approx(np.exp(-40), abs=1e-16)
    evaluator.score = lambda _, several: np.full(len(several) * size, 25.0, np.float32)
    p = evaluator.probabilities(state)
    negatives = evaluator.labels == 0
    assert log_loss(evaluator.labels[negatives], p[negatives]) == pytest.approx(25, rel=1e-4)
