"""Runs that begin with pretrained vectors, or with the weights of another run."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from runs import tiny_config

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.config import check
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.prepare import planted
from din_jax.training import run as run_module
from din_jax.training.evaluation import Evaluator
from din_jax.training.loop import train
from din_jax.training.run import open_run
from din_jax.training.trained import load_run


def config_of(store, **keys):
    quick = {"model.name": "base", "optimizer.lazy": False}  # opens soonest
    return tiny_config(store, **quick | keys)


@pytest.fixture
def vectors(planted_store, tmp_path):
    """Keys for vectors of the goods of rows 1 to 2000, which stay as they are; these vectors."""
    ids = Store(planted_store).vocabulary("item").ids
    values = np.random.default_rng(0).standard_normal((2000, 4)).astype(np.float32)
    frame = pl.DataFrame({"id": ids[1:2001], "vector": values.tolist()})
    frame.write_parquet(tmp_path / "item.parquet")
    keys = {
        "model.pretrained": f"item={tmp_path}/item.parquet",
        "model.pretrained_trainable": False,
    }
    return keys, values


def initial_zeros(*arguments, **options):
    """Stands in for `init_state`, and compiles nothing."""
    del options["seed"]
    shapes = run_module.state_shapes(*arguments, **options)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.fixture
def stand_ins(monkeypatch):
    """Steps that only count, initial zeros, and scores by step: they compile nothing."""

    def train_steps(*_, **__):
        return lambda state, batches: (
            state.replace(step=state.step + len(batches)),
            np.ones(len(batches)),
        )

    def probabilities(evaluator, state):
        return np.random.default_rng(int(state.step)).random(len(evaluator.labels))

    def zeros(model, optimizer, batch, seed, **options):
        return initial_zeros(model, optimizer, batch, seed=seed, **options)

    monkeypatch.setattr(run_module, "train_steps", train_steps)
    monkeypatch.setattr(run_module, "init_state", zeros)
    monkeypatch.setattr(Evaluator, "probabilities", probabilities)


def logged(workdir, split):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["split"] == split]


@pytest.mark.long
@pytest.mark.usefixtures("stand_ins")
def test_a_run_with_pretrained_vectors_goes_on_with_the_same(
    planted_store, tmp_path, vectors, capsys
):
    keys, values = vectors
    workdir, file = tmp_path / "run", tmp_path / "item.parquet"
    train(config_of(planted_store, **keys), workdir, test=False)
    counts = Store(planted_store).vocabulary("item").counts
    ids, occurrences = 2000 / (len(counts) - 1), counts[1:2001].sum() / counts.sum()
    line = {"step": 0, "split": "pretrained", "item_ids": ids, "item_occurrences": occurrences}
    assert logged(workdir, "pretrained") == [line]
    assert f"vectors of {ids:.1%} of the ids, {occurrences:.1%} of " in capsys.readouterr().out

    # Wherever the vectors are, and in whatever order.
    pl.read_parquet(file).reverse().write_parquet(tmp_path / "moved.parquet")
    moved = keys | {"model.pretrained": f"item={tmp_path}/moved.parquet", "train.epochs": 2}
    train(config_of(planted_store, **moved), workdir, test=False)
    assert "the run goes on at step 94 of 188" in capsys.readouterr().out
    file.unlink()
    _, state = load_run(workdir, checkpoint="last")  # needs no vectors
    assert int(state.step) == 188
    expected = np.zeros(state.tables["item"].shape)
    expected[1:2001] = values
    np.testing.assert_array_equal(state.tables["item"], expected)
    assert np.flatnonzero(state.fixed["item"]).tolist() == list(range(1, 2001))

    held = "holds a run with another config:\n  config.model.pretrained"
    for key, value, message in (
        ("model.pretrained_trainable", True, "_trainable: False then, True now"),
        ("model.pretrained", "", ": item began with vectors of checksum .* now it has none\n"),
    ):
        with pytest.raises(DinError, match=held + message):
            train(config_of(planted_store, **moved | {key: value}), workdir)
    other = pl.read_parquet(tmp_path / "moved.parquet").with_columns(pl.col("vector").reverse())
    other.write_parquet(tmp_path / "moved.parquet")
    with pytest.raises(DinError, match=f"{held}: item began with vectors of .* now it has vectors"):
        train(config_of(planted_store, **moved), workdir)


@pytest.mark.usefixtures("stand_ins")
def test_a_run_begins_with_the_scored_weights_of_another(planted_store, tmp_path, capsys):
    first = open_run(config_of(planted_store, **{"train.ema_epochs": 0.5}))
    rng = np.random.default_rng(0)

    def drawn(leaf):
        return jnp.asarray(rng.integers(1, 9, leaf.shape), leaf.dtype)

    state = jax.tree.map(drawn, first.state_shapes())
    meta = compatibility.describe(first.config, first.store.schema, first.source)
    first.checkpoints(tmp_path / "first").save("best", state, meta | {"best": 0.7})

    # Another optimizer, without averages; vectors by co-occurrence are of runs that begin anew.
    init = {"train.init_from": str(tmp_path / "first")}
    other = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1, **init}
    other["model.co_occurrence_stddev"] = 0.1
    new = open_run(config_of(planted_store, **other)).init()
    assert f"{tmp_path}/first, of its step {int(state.step)}\n" in capsys.readouterr().out
    assert int(new.step) == 0 and new.average == ()
    for name in ("params", "batch_stats", "tables"):
        old = getattr(state.average, name)
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), old)

    planted.prepare(tmp_path / "store", users=301)
    for store, keys, message in (
        (
            planted_store,
            init | {"model.embedding_dim": 8, "model.embedding_stddev": 0.1},
            "another model:\n  config.model.embedding_dim: 4 there, 8 here\ngive",
        ),
        (
            tmp_path / "store",
            init,
            r"schema .*\n  tables: user\[301\] in the checkpoint, user\[302\] in the store\n",
        ),
        (planted_store, {"train.init_from": str(tmp_path)}, f"{tmp_path} has no last checkpoint"),
    ):
        with pytest.raises(DinError, match=message):
            train(config_of(store, **keys), tmp_path / "run")
    assert Checkpoints(tmp_path / "run").latest("last") is None
    with pytest.raises(DinError, match="a trained table begins with one of them"):
        check(config_of(planted_store, **init, **{"model.pretrained": "item=a.npy"}))

    hint = f"a new run; with --config.train.init_from={tmp_path}/first the new run begins"
    same = {"train.ema_epochs": 0.5}
    with pytest.raises(DinError, match=f"rate: 0.004 then, 0.1 now\n.*{re.escape(hint)}"):
        train(
            config_of(planted_store, **same, **{"optimizer.learning_rate": 0.1}), tmp_path / "first"
        )
    with pytest.raises(DinError, match=r"another --workdir to start a new run$"):
        train(config_of(planted_store, **same, **{"model.embedding_dim": 8}), tmp_path / "first")


@pytest.mark.long
def test_fixed_rows_stay_through_a_run_and_another_begins_where_it_was_best(
    planted_store, tmp_path, vectors
):
    """MBA, rows that catch up, averages and sharding: what must leave fixed rows alone."""
    keys, values = vectors
    keys |= {"optimizer.lazy": "catch_up", "regularizer.name": "mba", "train.ema_epochs": 0.5}
    keys |= {"devices": 4, "placement": "sharded"}
    for epochs in (1, 2):
        train(config_of(planted_store, **keys, **{"train.epochs": epochs}), tmp_path / "run")
    best = max(logged(tmp_path / "run", "validation"), key=lambda line: line["user_weighted_auc"])
    for kind in ("best", "last"):
        _, state = load_run(tmp_path / "run", checkpoint=kind, devices=1)
        item = np.asarray(state.tables["item"])
        np.testing.assert_array_equal(item[1:2001], values)
        assert np.abs(item[2001:]).max() > 0.1, "the others are trained"

    other = {"optimizer.name": "sgd", "train.init_from": str(tmp_path / "run"), "devices": 1}
    run = open_run(config_of(planted_store, **other))
    evaluator = run.evaluator("validation")
    metrics = evaluator.metrics(evaluator.probabilities(run.init()))
    assert metrics == {name: pytest.approx(best[name], rel=1e-4) for name in metrics}


def test_tables_begin_with_vectors_by_co_occurrence(planted_store, vectors, tmp_path):
    keys = {"model.co_occurrence_stddev": 0.3}
    run = open_run(config_of(planted_store, **keys))
    tables = run.init().tables
    plain = open_run(config_of(planted_store)).init().tables
    for name in ("item", "shop", "category"):
        of_rows = np.asarray(tables[name])
        written = np.flatnonzero((of_rows != np.asarray(plain[name])).any(axis=1))
        assert len(written) > 0.8 * len(of_rows)
        assert of_rows[written].std() == pytest.approx(0.3, rel=0.01)
    np.testing.assert_array_equal(tables["hour"], plain["hour"])  # of no behaviour

    given, values = vectors
    both = open_run(config_of(planted_store, **keys, **given)).init()
    np.testing.assert_array_equal(both.tables["item"][1:2001], values)
    np.testing.assert_array_equal(both.tables["shop"], tables["shop"])
    assert sorted(both.fixed) == ["item"]
