"""Steps with sparse updates against steps with dense ones, and against plain Optax."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_states import arbitrary_state, equal_shapes, large_run

from din_jax.nn.losses import negative_log_likelihood, weighted_mean
from din_jax.step.state import state_shapes
from din_jax.step.train import train_step


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("base", "adam"),
        pytest.param("din with options", "sgd", marks=pytest.mark.long),
        pytest.param("base", "rowwise_adagrad", marks=pytest.mark.long),
        pytest.param("din", "sgd", marks=pytest.mark.long),
    ],
)
def test_a_step_with_sparse_updates_is_one_with_dense_updates(planted_store, model, optimizer):
    keys = {"model.name": model, "optimizer.name": optimizer, "optimizer.learning_rate": 0.05}
    if model == "din with options":
        keys |= {"model.preset": "recommended", "model.name": "din"}
        keys |= {"model.bias_fields": ("item",)}
    run = large_run(planted_store, **keys)
    sparse, dense = arbitrary_state(run), arbitrary_state(run).replace(scratch={})
    assert "item" in sparse.scratch and "hour" not in sparse.scratch
    step = train_step(run.model, run.optimizer, run.regularizer)
    for batch in equal_shapes(run.source, 6):
        sparse, loss = step(sparse, batch)
        dense, dense_loss = step(dense, batch)
        np.testing.assert_allclose(loss, dense_loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        sparse.replace(scratch={}),
        dense,
    )


def test_not_lazy_is_plain_optax(planted_store):
    """Without a regulariser: the dense gradient, then `optax.adam` on everything."""
    keys = {"regularizer.name": "none", "optimizer.lazy": False, "optimizer.clip_norm": 0.0}
    keys |= {"model.activation": "prelu", "optimizer.decay_rate": 1.0}
    run = large_run(planted_store, **keys)
    state = arbitrary_state(run)
    assert not state.scratch
    step, adam = train_step(run.model, run.optimizer), optax.adam(0.004)

    def loss_of(trained, batch):
        logits, _ = run.model.module.apply(
            {"params": trained["params"]},
            trained["tables"],
            run.model.lookups(batch),
            batch,
            train=True,
        )
        return weighted_mean(negative_log_likelihood(logits, batch.label), batch.weight)

    @jax.jit
    def plain_step(trained, adam_state, batch):
        grads = jax.grad(loss_of)(trained, batch)
        updates, adam_state = adam.update(grads, adam_state, trained)
        return optax.apply_updates(trained, updates), adam_state

    def trained_of(state):
        return jax.tree.map(jnp.array, {"params": state.params, "tables": state.tables})

    adam_state = adam.init(trained_of(state))
    for batch in equal_shapes(run.source, 4):
        expected, adam_state = plain_step(trained_of(state), adam_state, batch)
        state, _ = step(state, batch)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            trained_of(state),
            expected,
        )


@pytest.mark.parametrize("lazy", [True, "catch_up"])
def test_a_step_makes_no_array_as_long_as_a_large_table(planted_store, lazy):
    run = large_run(planted_store, **{"optimizer.name": "adam", "optimizer.lazy": lazy})
    rows = 1_000_003
    specs = {**run.model.tables, "item": run.model.tables["item"]._replace(rows=rows)}
    model = run.model._replace(tables=specs)
    batch = run.source[0]
    shapes = state_shapes(model, run.optimizer, batch)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    n_j = dict(run.regularizer.counts)
    n_j["item"] = np.ones(rows, np.float32)
    step = train_step(model, run.optimizer, run.regularizer.replace(counts=n_j))

    lowered = step.func.lower(state, batch, **step.keywords).compile()
    large = [line for line in lowered.as_text().splitlines() if re.search(rf"\b{rows}\b", line)]
    # Instructions whose result has that length: parameters, and writes into donated arrays.
    made = {
        match[1]
        for line in large
        if (match := re.search(rf"= \w+\[{rows}[\d,]*\]\S* ([\w-]+)\(", line))
    }
    allowed = {
        "parameter",
        "scatter",
        "get-tuple-element",
        "fusion",
        "while",
        "dynamic-update-slice",
    }
    assert made <= allowed | {"bitcast", "call"}, sorted(made)
    memory = lowered.memory_analysis()
    assert memory.temp_size_in_bytes < rows * 4, "smaller than one column of the table"
    large_bytes = sum(x.nbytes for x in jax.tree.leaves(state) if x.shape[:1] == (rows,))
    assert memory.alias_size_in_bytes >= large_bytes, "all of them are written in place"

    def pointers(state):
        leaves = [state.tables["item"], state.scratch["item"]]
        leaves += [x for x in jax.tree.leaves(state.opt_state) if x.shape[:1] == (rows,)]
        assert len(leaves) == 4 + (lazy == "catch_up")  # Adam's two moments; the last steps
        return [x.unsafe_buffer_pointer() for x in leaves]

    before = pointers(state)
    old = state.tables["item"]
    state, _ = step(state, batch)
    assert old.is_deleted() and pointers(state) == before
    compiled = step.func._tuned._cache_size()
    state, _ = step(state, batch)
    assert step.func._tuned._cache_size() == compiled and pointers(state) == before
