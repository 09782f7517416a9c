"""Decays, dropout and filter of ids in the steps of an opened run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config
from step_states import arbitrary_state

from din_jax.data.counts import sample_counts
from din_jax.step.score import score_step
from din_jax.step.train import train_step
from din_jax.training.run import open_run


def regularized_run(store, **keys):
    """A run of a base model that compiles fast: SGD on the goods' tables."""
    return open_run(
        tiny_config(
            store,
            **{
                "model.name": "base",
                "model.activation": "prelu",
                "model.without": ("shop", "age", "hour"),
                "optimizer.name": "sgd",
                "optimizer.learning_rate": 0.5,
                **keys,
            },
        )
    )


def present_by_loops(lookups, rows):
    present = np.zeros(rows, bool)
    for ids, mask, *_ in lookups.values():
        for j, real in zip(np.asarray(ids), np.asarray(mask), strict=True):
            present[j] |= real
    return present


def test_a_step_decays_the_rows_of_its_batch_and_no_other(planted_store):
    keys = {"regularizer.rate": 2.0, "model.item_bias": "item"}
    plain, *decays = (
        regularized_run(planted_store, **keys, **{"regularizer.name": name})
        for name in ("none", "mba", "difacto")
    )
    before, batch = jax.tree.map(np.array, arbitrary_state(plain).tables), plain.source[0]

    def tables_after(run):
        step = train_step(run.model, run.optimizer, run.regularizer)
        return jax.tree.map(np.asarray, step(arbitrary_state(run), batch)[0].tables)

    without_decay = tables_after(plain)
    counts = sample_counts(plain.store, "train", max_history=4)
    lookups = plain.model.lookups(batch)
    assert lookups.keys() == {"item", "category", "item-bias"}
    for run in decays:
        after = tables_after(run)
        for table, specs in lookups.items():
            present = present_by_loops(specs, len(before[table]))
            n = counts.get(table)
            if n is None:  # the bias per good
                factor = np.zeros(len(present))
            else:
                assert (n[present] > 0).all(), "a row of a training batch is in the training split"
                is_mba = run.config.regularizer.name == "mba"
                factor = present / (n.clip(1) if is_mba else 1)
            expected = without_decay[table] - 0.5 * 2.0 * factor[:, None] * before[table]
            np.testing.assert_allclose(after[table], expected, rtol=1e-5, atol=1e-6)
            if table == "item":
                assert 0 < present.sum() < len(present)
                assert (after[table][~present] == before[table][~present]).all()


@pytest.mark.parametrize("rare", ["leave", "unknown"])
def test_a_filtered_run_depends_on_frequent_ids_only(planted_store, rare):
    keys = {"regularizer.name": "filter", "regularizer.keep": 0.3, "regularizer.rare": rare}
    run = regularized_run(planted_store, **keys)
    n = sample_counts(run.store, "train", max_history=4)["item"]
    # The table of the goods is filtered unless the config names one.
    assert set(run.regularizer.frequent) == {"item"}
    frequent = np.asarray(run.regularizer.frequent["item"])
    assert frequent.sum() == round(0.3 * (len(n) - 1))
    assert n[frequent].min() >= n[1:][~frequent[1:]].max()
    state, batch = arbitrary_state(run), run.source[0]
    score = score_step(run.model, run.regularizer)
    before = np.asarray(score(state, batch))
    rare_ad = ~frequent[batch.fields["item"]]
    assert rare_ad.any() and not rare_ad.all()
    old = np.array(state.tables["item"])
    changed = np.where(frequent[:, None], old, old + 5)
    if rare == "unknown":
        changed[0] = old[0]
    tables = state.tables | {"item": jnp.array(changed)}
    moved = np.asarray(score(state.replace(tables=tables), batch))
    if rare == "leave":
        assert (moved[~rare_ad] == before[~rare_ad]).all()
        assert (moved[rare_ad] != before[rare_ad]).all()
    else:
        assert (moved == before).all()

    after, _ = train_step(run.model, run.optimizer, run.regularizer)(state, batch)
    touched = (np.asarray(after.tables["item"]) != old).any(axis=1)
    expected = set(batch.fields["item"][rare_ad]) if rare == "leave" else {0}
    assert set(np.flatnonzero(touched & ~frequent)) == expected


def test_dropout_drops_in_training_steps_alone(planted_store):
    keys = {"regularizer.name": "dropout", "regularizer.dropout": 0.9}
    run = regularized_run(planted_store, **keys)
    batch = run.source[0]
    step = train_step(run.model, run.optimizer, run.regularizer)

    state = arbitrary_state(run)
    training = jax.jit(lambda step: run.regularizer.training(run.model.lookups(batch), step))
    present = present_by_loops(training(state.step)["item"], len(state.tables["item"]))
    old = np.array(state.tables["item"])
    after, first = step(state, batch)
    changed = (np.asarray(after.tables["item"]) != old).any(axis=1)
    assert 0 < changed.sum() <= present.sum()
    assert not changed[~present].any(), "a dropped id is not updated"

    _, again = step(arbitrary_state(run), batch)
    _, later = step(arbitrary_state(run).replace(step=jnp.ones((), jnp.int32)), batch)
    assert first == again and first != later, "a step drops ids of its own"

    state = arbitrary_state(run)
    plain = score_step(run.model)(state, batch)
    np.testing.assert_array_equal(score_step(run.model, run.regularizer)(state, batch), plain)


def test_a_dropped_behavior_is_not_decayed(planted_store):
    keys = {"regularizer.name": "mba", "regularizer.rate": 2.0}
    run = regularized_run(planted_store, **keys, **{"regularizer.behavior_dropout": 0.9})
    none = regularized_run(
        planted_store, **{"regularizer.name": "none", "regularizer.behavior_dropout": 0.9}
    )
    batch = run.source[0]
    tables = [
        np.asarray(
            train_step(r.model, r.optimizer, r.regularizer)(arbitrary_state(r), batch)[0].tables[
                "item"
            ]
        )
        for r in (none, run)
    ]
    before = np.array(arbitrary_state(run).tables["item"])
    looked_up = run.model.lookups(batch)
    dropped = jax.jit(lambda step: run.regularizer.training(looked_up, step))(jnp.int32(0))
    was, present = (
        present_by_loops(lookups["item"], len(before)) for lookups in (looked_up, dropped)
    )
    assert present.sum() < was.sum()
    n = sample_counts(run.store, "train", max_history=4)["item"]
    factor = present / n.clip(1)
    expected = tables[0] - 0.5 * 2.0 * factor[:, None] * before
    np.testing.assert_allclose(tables[1], expected, rtol=1e-5, atol=1e-6)


def test_the_seed_of_a_config_decides_what_is_dropped(planted_store):
    for seed in (0, 1):
        run = regularized_run(planted_store, **{"regularizer.name": "dropout", "seed": seed})
        assert run.regularizer.seed == seed


def test_a_model_without_a_table_reads_nothing_of_it(planted_store):
    keys = {"model.without": ("item",), "model.name": "din"}
    run = regularized_run(planted_store, **keys)
    assert set(run.model.tables) == {"age", "category", "hour", "shop"}
    state, batch, score = arbitrary_state(run), run.source[0], score_step(run.model)
    history = batch.sequences["history"]
    other = batch._replace(
        fields=batch.fields | {"item": batch.fields["item"] * 0},
        sequences={
            "history": history._replace(
                fields=history.fields | {"item": history.fields["item"] * 0}
            )
        },
    )
    np.testing.assert_array_equal(score(state, other), score(state, batch))
