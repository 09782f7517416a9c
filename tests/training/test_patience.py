"""Early stopping, `train.patience`: a run whose metrics on validation are given, step by step.

Steps and scores are stand-ins that compile nothing.
"""

import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config

from din_jax import evaluate
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.errors import Interrupted
from din_jax.training import run as run_module
from din_jax.training.evaluation import Evaluator
from din_jax.training.loop import train
from din_jax.training.restoring import Best

EVALUATIONS = [24, 47, 71, 94, 118, 141, 165, 188]  # of two epochs of 94 batches, four in each
VALIDATION = {  # the best of a run of two epochs is at 118; of the first one at 47
    "user_weighted_auc": dict(
        zip(EVALUATIONS, [0.5, 0.7, 0.6, 0.65, 0.8, 0.7, 0.1, 0.2], strict=True)
    ),
    "log_loss": dict(zip(EVALUATIONS, [0.7, 0.5, 0.6, 0.5, 0.4, 0.5, 0.9, 0.8], strict=True)),
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    """Steps that only count, of which SIGINT interrupts the one after `stop_at`; scores by step."""
    made = types.SimpleNamespace(stop_at=None, taken=[])

    def train_steps(*_, **__):
        def take(state, batches):
            made.taken += batches
            if len(made.taken) == made.stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return state.replace(step=state.step + len(batches)), np.ones(len(batches))

        return take

    def zeros(run, *_):
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), run.state_shapes())

    def probabilities(evaluator, state):
        return np.random.default_rng(int(state.step)).random(len(evaluator.labels))

    monkeypatch.setattr(run_module, "train_steps", train_steps)
    monkeypatch.setattr(run_module.Run, "init", zeros)
    monkeypatch.setattr(Evaluator, "probabilities", probabilities)
    return made


@pytest.fixture(params=["user_weighted_auc", pytest.param("log_loss", marks=pytest.mark.long)])
def select(request, monkeypatch):
    """The metric that selects, whose values on validation are those above."""
    by_scores = {
        np.random.default_rng(step).random(300 * 4).tobytes(): value
        for step, value in VALIDATION[request.param].items()
    }
    metrics = Evaluator.metrics

    def given(evaluator, p):
        real = metrics(evaluator, p)
        return real | {request.param: by_scores.get(p.tobytes(), real[request.param])}

    monkeypatch.setattr(Evaluator, "metrics", given)
    return request.param


def config_of(store, select, patience, **keys):
    keys |= {"model.preset": "recommended", "model.name": "base", "optimizer.name": "sgd"}
    keys |= {
        "train.select": select,
        "train.epochs": 2,
        "train.evaluations_per_epoch": 4,
        "train.patience": patience,
    }
    return tiny_config(store, **keys)


def evaluated(workdir):
    """The steps at which validation was scored."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["split"] == "validation"]


def test_training_stops_after_evaluations_without_a_better_one(
    planted_store, tmp_path, select, stand_ins, capsys
):
    scores = train(config_of(planted_store, select, 2), tmp_path)
    assert evaluated(tmp_path) == [24, 47, 71, 94]
    assert f"the last of 2 without a better {select}: stops here" in capsys.readouterr().out
    assert scores.step == Checkpoints(tmp_path).latest("best") == 47
    assert Checkpoints(tmp_path).latest("last") == 94
    # Again: nothing is trained.
    assert train(config_of(planted_store, select, 2), tmp_path).metrics == scores.metrics
    printed = capsys.readouterr().out
    assert "complete at step 94 of 188: 2 evaluations without a better one" in printed
    assert evaluated(tmp_path) == [24, 47, 71, 94]
    assert len(stand_ins.taken) == 94
    assert evaluate(tmp_path).metrics == scores.metrics
    # With more patience it goes on, from the count that it had.
    train(config_of(planted_store, select, 3), tmp_path, test=False)
    assert "the run goes on at step 94 of 188" in capsys.readouterr().out
    assert evaluated(tmp_path) == EVALUATIONS
    assert Checkpoints(tmp_path).latest("best") == 118


def test_a_run_that_was_stopped_keeps_its_count(planted_store, tmp_path, select, stand_ins):
    config = config_of(planted_store, select, 2)
    stand_ins.stop_at = 80  # after the evaluation at 71, which is not the best
    with pytest.raises(Interrupted, match="saved at step 80"):
        train(config, tmp_path, test=False)
    meta = Checkpoints(tmp_path).meta("last")
    assert meta["evaluations_since_best"] == 1
    assert meta["best"] == VALIDATION[select][47]
    train(config, tmp_path, test=False)
    assert evaluated(tmp_path) == [24, 47, 71, 94]
    assert len(stand_ins.taken) == 94


def test_without_patience_nothing_ends_a_run():
    assert not Best(0.5, 1000).ends(0)
    assert [Best(0.5, since).ends(3) for since in range(5)] == [False] * 3 + [True] * 2


def test_the_final_fit_says_that_it_has_no_validation_to_stop_on(planted_store, tmp_path, capsys):
    keys = {"data.fit": "train+validation", "train.epochs": 1, "train.evaluations_per_epoch": 1}
    for patience in 1, 0:
        config = config_of(planted_store, "auc", patience)
        config.update_from_flattened_dict(keys)
        train(config, tmp_path / str(patience), test=False)
        printed = capsys.readouterr().out
        says = "config.train.patience is ignored, and the weights after config.train.epochs=1"
        assert (says in printed) == (patience > 0)
        assert Checkpoints(tmp_path / str(patience)).latest("last") == -(-300 * 24 // 64)
