"""Train and score steps of an opened run."""

import jax
import numpy as np
import optax
import pytest
from runs import tiny_config

from din_jax.data.source import BatchSource
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.metrics import log_loss
from din_jax.models.registry import build_model
from din_jax.optim.build import build_optimizer
from din_jax.prepare import planted
from din_jax.step.score import _vmapped_batches, score_step, score_steps
from din_jax.step.state import init_state
from din_jax.step.train import train_step
from din_jax.training.run import open_run


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_step_follows_the_gradient_of_the_mean_loss_of_the_real_samples(planted_store, name):
    config = tiny_config(planted_store, **{"model.activation": "prelu"})
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
    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(before)
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
    config = tiny_config(
        planted_store,
        **{"train.batch_size": 128, "data.max_history": 0, "model.name": "base"},
    )
    run = open_run(config)
    step, state = train_step(run.model, run.optimizer), run.init()
    for i in range(len(run.source)):
        state, _ = step(state, run.source[i])
    assert 1 < step.func._tuned._cache_size() <= len(run.source.buckets.sizes)


@pytest.mark.long
def test_steps_inside_another_jit_are_the_same_steps(planted_store):
    run = open_run(tiny_config(planted_store))
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


@pytest.mark.parametrize("count", [3, 4])
def test_steps_of_one_call_are_the_steps_one_by_one(planted_store, count):
    config = tiny_config(planted_store, **{"regularizer.name": "mba", "optimizer.name": "adam"})
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


@pytest.mark.long
def test_batch_size_changes_no_score(planted_store):
    config = tiny_config(planted_store, **{"data.max_history": 0})
    run = open_run(config)
    state, _ = train_step(run.model, run.optimizer)(run.init(), run.source[0])
    scores = []
    for batch_size in (5000, 1000, 7):  # one a call, two a call, many a call and side by side
        config.eval.batch_size = batch_size
        scores.append(run.evaluator("test").probabilities(state))
    assert scores[0].shape == (300 * planted.TEST_IMPRESSIONS,)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("batches", "longest", "count"),
    [(64, 320, 32), (64, 8, 64), (4, 320, 4), (16, 1240, 8), (2, 10104, None), (8, 2500, None)],
)
def test_short_batches_are_scored_together(batches, longest, count):
    assert _vmapped_batches(batches, longest) == count


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model.table_dims": "itme=4"}, "'itme=4': expected TABLE=WIDTH; .* category"),
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
            {"train.ema_epochs": float("inf")},
            "config.train.ema_epochs=inf: expected a finite number",
        ),
        (
            {"model.preset": "released_code", "model.pooling": "mean"},
            "config.model.pooling='mean': preset='released_code' fixes this",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(planted_store, keys, message):
    with pytest.raises(DinError, match=message):
        open_run(tiny_config(planted_store, **keys))


def test_tables_have_the_widths_that_the_config_gives_them(planted_store):
    run = open_run(tiny_config(planted_store, **{"model.table_dims": "item=8, shop=2"}))
    widths = {name: table.shape[1] for name, table in run.init().tables.items()}
    assert widths == {"item": 8, "shop": 2, "category": 4, "age": 4, "hour": 4}


def test_scores_are_probabilities_of_the_click_output(planted_store):
    config = tiny_config(planted_store)
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
