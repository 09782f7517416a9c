"""Row-sparse training against dense Optax with a mask, and against autodiff of whole tables.

The dense reference is written here from its definition: absent rows are zero in gradient, weights
and state while the inner transformation runs on whole tables, and are then put back.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from runs import small_config

from din_jax.nn import embedding, present_rows as present_rows_module
from din_jax.nn.embedding import Lookup, TableSpec, init_tables, lookup
from din_jax.nn.losses import negative_log_likelihood, weighted_mean
from din_jax.nn.present_rows import Rows, apply_row_updates, gather_rows, present_rows, scatter_rows
from din_jax.optim.decay import difacto_decay, mba_decay, on_tables
from din_jax.optim.row_sparse import row_sparse, whole_tables
from din_jax.optim.rowwise_adagrad import rowwise_adagrad
from din_jax.step.batch_rows import rows_of_batch
from din_jax.step.state import init_state
from din_jax.step.train import train_step
from din_jax.training.run import open_run

ROWS = {"a": 23, "b": 17}  # no other axis of a parameter is as long
COUNTS = {"a": np.arange(23.0), "b": 1 + np.arange(17.0) % 5}
CLIPPED = 0.3  # far below the gradients' norms, so that it always bites


def labels(tree):
    return {"params": "dense", "tables": {"a": "rows", "b": "other"}}


INNER = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(0.1),
    "nadamw": optax.nadamw(0.1, weight_decay=0.1),
    "amsgrad": optax.amsgrad(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.1, centered=True, momentum=0.5),
    "lion": optax.lion(0.1, weight_decay=0.1),
    "adadelta": optax.adadelta(0.1),
    "rowwise": rowwise_adagrad(0.1),
    "schedule": optax.adam(optax.exponential_decay(0.1, 2, 0.5)),
    "clip": optax.chain(optax.clip_by_global_norm(CLIPPED), optax.adam(0.1)),
    "clip by value": optax.chain(optax.clip(0.05), optax.sgd(0.1)),
    "clip after momentum": optax.chain(
        optax.trace(0.9), optax.clip_by_global_norm(CLIPPED), optax.scale(-0.1)
    ),
    "clip after decay": optax.chain(
        optax.add_decayed_weights(0.5), optax.clip_by_global_norm(CLIPPED), optax.sgd(0.1)
    ),
    "mba": optax.chain(
        optax.clip_by_global_norm(CLIPPED),
        on_tables(mba_decay(0.5), ("a", "b")),
        optax.adam(0.1),
    ),
    "difacto": optax.chain(on_tables(difacto_decay(0.5), ("a",)), optax.sgd(0.1, momentum=0.9)),
    "inject": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 10)),
    "masked": optax.chain(
        optax.masked(optax.trace(0.9), {"params": True, "tables": {"a": True, "b": False}}),
        optax.scale(-0.1),
    ),
    "partition": optax.partition(
        {"dense": optax.adam(0.1), "rows": optax.adagrad(0.1), "other": optax.lion(0.01)}, labels
    ),
    "frozen": optax.partition(
        {"dense": optax.adafactor(0.1), "rows": optax.set_to_zero(), "other": optax.adam(0.1)},
        labels,
    ),
}


def make(seed):
    rng = np.random.default_rng(seed)
    params = {
        "params": {"kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)},
        "tables": {name: rng.standard_normal((k, 2)) for name, k in ROWS.items()},
    }
    params["tables"]["a"][3] = [-0.0, 1e-40]  # must not become 0.0
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), rng


def batch_of(rng):
    """Ids with repeats, and padding that holds any id; sometimes nothing is present."""
    for name, rows in ROWS.items():
        ids = rng.integers(0, rows, 11) // rng.integers(1, 4)
        yield name, ids.astype(np.int32), rng.random(11) < rng.choice([0, 0.8, 1])


def masked_dense(inner, params, state, grads, present, counts):
    """One step of `inner` on whole tables; present: {name: bool[K]}."""
    by_length = {k: name for name, k in ROWS.items()}

    def only(leaf, name, otherwise=0.0):
        here = present[name].reshape(-1, *[1] * (leaf.ndim - 1))
        return jnp.where(here, leaf, otherwise)

    def rows_of(leaf):
        return by_length.get(leaf.shape[0]) if leaf.ndim else None

    def zeroed(tree):
        return jax.tree.map(lambda x: only(x, rows_of(x)) if rows_of(x) else x, tree)

    updates, after = inner.update(
        zeroed(grads), zeroed(state), zeroed(params), present=present, counts=counts
    )
    moved = optax.apply_updates(params, updates)

    def back(new, old):
        return only(new, rows_of(new), old) if rows_of(new) else new

    return jax.tree.map(back, moved, params), jax.tree.map(back, after, state)


def bits(x):
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize("whole", [(), ("a",)], ids=["rows", "both ways"])
@pytest.mark.parametrize("name", INNER)
@settings(deadline=None, max_examples=4, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_row_sparse_is_dense_with_a_mask(name, whole, seed):
    inner = optax.with_extra_args_support(INNER[name])
    params, rng = make(seed)
    sparse = row_sparse(INNER[name])
    state, scratch = sparse.init(params), {n: jnp.full(k, -7) for n, k in ROWS.items()}
    dense_params, dense_state = params, inner.init(params)
    for _ in range(4):
        drawn = {n: (ids, mask) for n, ids, mask in batch_of(rng)}
        present = {n: np.isin(np.arange(ROWS[n]), ids[mask]) for n, (ids, mask) in drawn.items()}
        grads = jax.tree.map(
            lambda x, rng=rng: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params
        )
        for n, here in present.items():
            grads["tables"][n] = grads["tables"][n] * here[:, None]

        rows, counts, few = {}, {}, {}
        for n, (ids, mask) in drawn.items():
            if n in whole:
                rows[n] = Rows(jnp.asarray(present[n]))
            else:
                _, rows[n], scratch[n] = present_rows(ids, mask, scratch[n])
            counts[n] = gather_rows(jnp.asarray(COUNTS[n]), rows[n])
            few[n] = (
                params["tables"][n] if n in whole else gather_rows(params["tables"][n], rows[n])
            )
        row_grads = {
            n: grads["tables"][n] if n in whole else gather_rows(grads["tables"][n], rows[n])
            for n in ROWS
        }
        updates, after = sparse.update(
            {**grads, "tables": row_grads},
            state,
            {**params, "tables": few},
            rows=rows,
            counts=counts,
        )
        moved = {
            "params": optax.apply_updates(params["params"], updates["params"]),
            "tables": {
                n: apply_row_updates(params["tables"][n], rows[n], updates["tables"][n])
                for n in ROWS
            },
        }
        dense_params, dense_state = masked_dense(
            inner, dense_params, dense_state, grads, present, COUNTS
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
            (moved, after),
            (dense_params, dense_state),
        )
        for n, k in ROWS.items():
            absent = ~present[n]
            for before, now in zip(
                jax.tree.leaves((params["tables"][n], state)),
                jax.tree.leaves((moved["tables"][n], after)),
                strict=True,
            ):
                if before.ndim and len(before) == k:
                    assert (bits(before)[absent] == bits(now)[absent]).all()
        params, state = moved, after


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=20), st.integers(0, 99))
def test_present_rows_are_the_distinct_real_ids(found, seed):
    ids = np.array([i for i, _ in found], np.int32)
    mask = np.array([real for _, real in found], bool)
    scratch = np.random.default_rng(seed).integers(-5, 25, 10).astype(np.int32)
    owners, rows, _ = present_rows(ids, mask, jnp.asarray(scratch))
    assert sorted(ids[np.asarray(rows.present)]) == sorted(set(ids[mask]))
    for at, (j, real) in enumerate(found):
        if real:
            assert rows.present[owners[at]] and ids[owners[at]] == j
        else:
            assert owners[at] == len(ids) and not rows.present[at]
    values = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
    gathered = np.asarray(gather_rows(jnp.asarray(values), rows))
    expected = np.where(np.asarray(rows.present)[:, None], values[ids], 0)
    assert (gathered == expected).all()
    changed = np.asarray(scatter_rows(jnp.asarray(values), rows, gathered + 1))
    expected = values + np.isin(np.arange(10), ids[mask])[:, None]
    np.testing.assert_array_equal(changed, expected.astype(np.float32))


def loss_and_gradient(run, state, batch, tables, lookups):
    def loss_of(tables):
        logits, _ = run.model.module.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            tables,
            lookups,
            batch,
            train=True,
            mutable=["batch_stats"],
        )[0]
        return weighted_mean(negative_log_likelihood(logits, batch.label), batch.weight)

    return jax.jit(jax.value_and_grad(loss_of))(tables)


@pytest.mark.parametrize("model", ["base", "din"])
@pytest.mark.parametrize("data", ["planted", "rich"])
def test_row_gradients_scattered_are_the_dense_gradient(planted_store, rich, data, model):
    store = planted_store if data == "planted" else rich[0].path
    run = open_run(
        small_config(
            store,
            **{"model.name": model, "model.embedding_stddev": 0.5, "train.select": "auc"},
        )
    )
    state, batch = run.init(), run.source[0]
    lookups = run.model.lookups(batch)
    dense_loss, dense = loss_and_gradient(run, state, batch, state.tables, lookups)
    scratch = {name: jnp.zeros(len(table), jnp.int32) for name, table in state.tables.items()}
    found = rows_of_batch(state.tables, lookups, scratch)
    loss, by_rows = loss_and_gradient(run, state, batch, found.tables, found.lookups)
    np.testing.assert_allclose(loss, dense_loss, rtol=1e-6)
    for name, gradient in by_rows.items():
        scattered = scatter_rows(jnp.zeros_like(dense[name]), found.rows[name], gradient)
        np.testing.assert_allclose(scattered, dense[name], rtol=1e-5, atol=1e-7)
        assert np.abs(dense[name]).max() > 0
        lost = np.asarray(gradient)[~np.asarray(found.rows[name].present)]
        assert (lost == 0).all()


def test_with_every_row_present_lazy_adam_is_optax_adam():
    params, rng = make(0)
    sparse, dense = row_sparse(optax.adam(0.1)), optax.adam(0.1)
    state, dense_state, dense_params = sparse.init(params), dense.init(params), params
    for _ in range(5):
        grads = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), "f"), params)
        rows, few = {}, {"params": grads["params"], "tables": {}}
        for n, k in ROWS.items():
            ids = rng.permutation(k).astype(np.int32)
            rows[n] = present_rows(ids, np.ones(k, bool), jnp.zeros(k, jnp.int32))[1]
            few["tables"][n] = grads["tables"][n][ids]
        tables = {n: gather_rows(params["tables"][n], rows[n]) for n in ROWS}
        updates, state = sparse.update(few, state, {**params, "tables": tables}, rows=rows)
        params = {
            "params": optax.apply_updates(params["params"], updates["params"]),
            "tables": {
                n: apply_row_updates(params["tables"][n], rows[n], updates["tables"][n])
                for n in ROWS
            },
        }
        updates, dense_state = dense.update(grads, dense_state, dense_params)
        dense_params = optax.apply_updates(dense_params, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        (params, state),
        (dense_params, dense_state),
    )


def test_an_absent_row_keeps_its_moments_and_dense_adam_moves_it():
    """What the docstring says of lazy Adam, in two steps of one row."""
    params = {"params": {}, "tables": {"a": jnp.ones((2, 1))}}
    gradient = {"params": {}, "tables": {"a": jnp.array([[1.0], [0.0]])}}
    nothing = {"params": {}, "tables": {"a": jnp.zeros((2, 1))}}
    here = {"a": Rows(jnp.array([True, False]))}
    away = {"a": Rows(jnp.array([False, False]))}
    for transform, moves in (
        (row_sparse(optax.adam(0.1)), False),
        (whole_tables(optax.adam(0.1)), True),
    ):
        _, state = transform.update(gradient, transform.init(params), params, rows=here)
        updates, after = transform.update(nothing, state, params, rows=away)
        assert bool(updates["tables"]["a"][0, 0] != 0) == moves
        assert bool(after[0].mu["tables"]["a"][0, 0] != state[0].mu["tables"]["a"][0, 0]) == moves
        assert int(after[0].count) == 2


UNSUITED = {
    "adafactor": optax.adafactor(0.1),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "block rms": optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "parameter rms": optax.chain(optax.scale_by_param_block_rms(), optax.sgd(0.1)),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
    "multi steps": optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "in a chain": optax.chain(optax.clip(1.0), optax.apply_every(2), optax.sgd(0.1)),
    "in a partition": optax.partition(
        {"dense": optax.sgd(0.1), "rows": optax.adafactor(0.1), "other": optax.sgd(0.1)}, labels
    ),
    "lbfgs": optax.scale_by_lbfgs(),
    "after a warmup": optax.adafactor(optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)),
    "noise after a warmup": optax.chain(
        optax.add_noise(0.1, 0.5, 0), optax.sgd(optax.linear_schedule(0.0, 0.1, 100))
    ),
}


@pytest.mark.parametrize("name", UNSUITED)
def test_what_does_not_treat_rows_apart_raises(name):
    params, _ = make(0)
    transform = row_sparse(UNSUITED[name])
    with pytest.raises(ValueError, match="does not treat the rows of a table apart"):
        transform.init(params)
    with pytest.raises(ValueError, match="does not treat the rows of a table apart"):
        jax.eval_shape(transform.init, params)


def test_a_forgotten_or_misspelt_argument_raises():
    params, _ = make(0)
    transform = row_sparse(INNER["mba"])
    state = transform.init(params)
    rows = {n: Rows(jnp.ones(k, bool)) for n, k in ROWS.items()}
    transform.update(params, state, params, rows=rows, counts=COUNTS)
    with pytest.raises(TypeError, match="rows"):
        transform.update(params, state, params, counts=COUNTS)
    with pytest.raises(TypeError, match="rows"):
        transform.update(params, state, params, row=rows, counts=COUNTS)
    with pytest.raises(TypeError, match="counts"):
        transform.update(params, state, params, rows=rows, count=COUNTS)
    with pytest.raises(ValueError, match="needs the params"):
        transform.update(params, state, rows=rows, counts=COUNTS)
    with pytest.raises(ValueError, match=re.escape("describes ['a'], the tables are ['a', 'b']")):
        transform.update(params, state, params, rows={"a": rows["a"]}, counts=COUNTS)
    with pytest.raises(ValueError, match="no counts n_j for the tables b: a table of hashed ids"):
        transform.update(params, state, params, rows=rows, counts={"a": COUNTS["a"]})


def test_rowwise_adagrad_is_its_formula():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 4))
    transform = rowwise_adagrad(0.5, initial_accumulator_value=0.25, eps=1e-3)
    found, sums = jnp.asarray(weights), np.full(3, 0.25)
    state = transform.init(found)
    for _ in range(3):
        gradient = rng.standard_normal((3, 4)) * [[1], [0], [3]]
        updates, state = transform.update(jnp.asarray(gradient), state, found)
        found = optax.apply_updates(found, updates)
        for j in range(3):
            sums[j] += sum(g * g for g in gradient[j]) / 4
            weights[j] -= 0.5 * gradient[j] / (np.sqrt(sums[j]) + 1e-3)
    np.testing.assert_allclose(found, weights, rtol=1e-5)
    assert state[0].sum_of_squares.shape == (3,)


def large_run(store, **keys):
    """A run whose table of goods is large beside a batch."""
    return open_run(
        small_config(
            store,
            **{
                "train.batch_size": 8,
                "data.max_history": 5,
                "regularizer.name": "mba",
                "regularizer.rate": 3.0,
                "optimizer.clip_norm": 0.5,
                "model.embedding_stddev": 0.3,
                **keys,
            },
        )
    )


@pytest.mark.parametrize(
    ("model", "optimizer"), [("din", "adam"), ("base", "rowwise_adagrad"), ("din", "sgd")]
)
def test_by_rows_or_whole_a_step_is_the_same(planted_store, model, optimizer, monkeypatch):
    keys = {"model.name": model, "optimizer.name": optimizer, "optimizer.learning_rate": 0.05}
    run = large_run(planted_store, **keys)
    state = run.init()
    assert "item" in state.scratch and "hour" not in state.scratch
    monkeypatch.setattr(present_rows_module, "SPARSE_ABOVE", 10**9)
    whole_run = large_run(planted_store, **keys)
    whole = whole_run.init()
    assert not whole.scratch
    step = train_step(run.model, run.optimizer, run.regularizer)
    whole_step = train_step(whole_run.model, whole_run.optimizer, whole_run.regularizer)
    for i in range(6):
        state, loss = step(state, run.source[i])
        whole, whole_loss = whole_step(whole, run.source[i])
        np.testing.assert_allclose(loss, whole_loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        state.replace(scratch={}),
        whole,
    )


def test_not_lazy_is_plain_optax(planted_store):
    """Without a regulariser: the dense gradient, then `optax.adam` on everything."""
    keys = {"regularizer.name": "none", "optimizer.lazy": False, "optimizer.clip_norm": 0.0}
    run = large_run(planted_store, **keys, **{"optimizer.decay_rate": 1.0})
    state = run.init()
    assert not state.scratch
    step, dense = train_step(run.model, run.optimizer), optax.adam(0.004)
    tables = state.tables
    dense_state = dense.init(tables)
    for i in range(4):
        batch = run.source[i]
        _, grads = loss_and_gradient(run, state, batch, state.tables, run.model.lookups(batch))
        updates, dense_state = dense.update(grads, dense_state, tables)
        tables = optax.apply_updates(tables, updates)
        state, _ = step(state, batch)
        for name, table in tables.items():
            np.testing.assert_allclose(state.tables[name], table, rtol=1e-4, atol=1e-5)
        tables = jax.tree.map(jnp.array, state.tables)


def test_a_step_touches_nothing_of_a_large_table_s_size(planted_store):
    run = large_run(planted_store, **{"optimizer.name": "adam"})
    rows = 1_000_003
    specs = {**run.model.tables, "item": run.model.tables["item"]._replace(rows=rows)}
    model = run.model._replace(tables=specs)
    batch = run.source[0]
    state = init_state(model, run.optimizer, batch, 0)
    n_j = dict(run.regularizer.counts)
    n_j["item"] = np.ones(rows, np.float32)
    step = train_step(model, run.optimizer, run.regularizer.replace(counts=n_j))

    lowered = step.func.lower(state, batch, **step.keywords).compile()
    large = [line for line in lowered.as_text().splitlines() if re.search(rf"\b{rows}\b", line)]
    # What makes an array of that length: parameters, and writes into donated ones.
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
        assert len(leaves) == 4  # and Adam's two moments
        return [x.unsafe_buffer_pointer() for x in leaves]

    before = pointers(state)
    old = state.tables["item"]
    state, _ = step(state, batch)
    assert old.is_deleted() and pointers(state) == before
    compiled = step.func._tuned._cache_size()
    state, _ = step(state, batch)
    assert step.func._tuned._cache_size() == compiled and pointers(state) == before


def test_tables_are_made_in_parts_as_they_would_be_whole(monkeypatch):
    spec = TableSpec(1000, 3, jax.nn.initializers.normal(2.0))
    monkeypatch.setattr(embedding, "_ROWS_AT_ONCE", 64)
    table = np.asarray(init_tables({"t": spec}, jax.random.key(0))["t"])
    assert table.shape == (1000, 3) and (table[0] == 0).all()
    assert len(np.unique(table[1:])) > 2990, "no part repeats another"
    assert abs(table.mean()) < 0.1 and abs(table.std() - 2) < 0.1
    assert abs(table[-8:].std() - 2) < 0.7, "the last part is filled too"


def test_padding_and_repeats_of_several_lookups_share_one_row():
    table = jnp.asarray(np.arange(10.0).reshape(5, 2), jnp.float32)
    lookups = {
        "t": {
            "ad": Lookup(jnp.array([3, 3, 1]), jnp.array([True, True, False])),
            "history.item": Lookup(jnp.array([4, 3]), jnp.array([True, True])),
        }
    }
    found = rows_of_batch({"t": table}, lookups, {"t": jnp.zeros(5, jnp.int32)})
    assert int(found.rows["t"].present.sum()) == 2
    for name, at in found.lookups["t"].items():
        original = lookups["t"][name]
        np.testing.assert_array_equal(lookup(found.tables["t"], at), lookup(table, original))
