"""Dropout and filter of ids, and the regularisers that a config describes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config

from din_jax.data.counts import sample_counts
from din_jax.errors import DinError
from din_jax.models.features import is_behavior
from din_jax.nn.embedding import Lookup, lookup
from din_jax.optim import regularizer as regularizer_module
from din_jax.optim.regularizer import Regularizer, drop_ids, filter_ids, most_frequent
from din_jax.training.run import open_run


def lookups_of(count):
    ids = np.arange(count) % 10
    real = np.arange(count) % 7 != 0
    return {
        "item": {"item": Lookup(ids, real), "history.item": Lookup(ids[::-1], real)},
        "hour": {"hour": Lookup(ids // 3, real)},
    }


@pytest.mark.parametrize("behaviors_only", [False, True])
def test_dropout_gives_zeros_and_scales_the_other_ids(behaviors_only):
    before = lookups_of(20_000)

    @jax.jit
    def dropped(rate):
        after = drop_ids(before, jax.random.key(3), rate, behaviors_only=behaviors_only)
        table = jnp.ones((10, 2))
        vectors = jax.tree.map(
            lambda at: lookup(table, at), after, is_leaf=lambda x: isinstance(x, Lookup)
        )
        return after, vectors

    for rate in (0.5, 0.2):
        after, vectors_of = jax.tree.map(np.asarray, dropped(rate))
        stays = {}
        for name, of_table in before.items():
            for at_name, at in of_table.items():
                real, vectors = at.mask, vectors_of[name][at_name]
                assert (vectors[~real] == 0).all()
                if behaviors_only and "." not in at_name:
                    assert (vectors[real] == 1).all()
                    continue
                scaled = np.unique(vectors[real])
                np.testing.assert_allclose(scaled, [0, 1 / (1 - rate)], rtol=1e-6)
                stays[at_name] = vectors[real, 0] > 0
                assert abs(stays[at_name].mean() - (1 - rate)) < 0.02
                mask = after[name][at_name].mask[real]
                assert (mask == stays[at_name]).all(), "a dropped id is not present"
        if not behaviors_only:
            agree = (stays["item"] == stays["hour"]).mean()
            assert abs(agree - (rate**2 + (1 - rate) ** 2)) < 0.02, "fields drop independently"


def test_dropout_changes_with_the_step_and_the_seed():
    lookups = lookups_of(200)

    @jax.jit
    def masks(step):
        return [
            Regularizer(dropout=0.5, seed=seed).training(lookups, step)["item"]["item"].mask
            for seed in (0, 0, 1)
        ]

    first, again, other_seed = masks(np.int32(0))
    second, *_ = masks(np.int32(1))
    assert (first == again).all()
    assert (first != second).any() and (first != other_seed).any()


def test_filter_takes_rare_ids_out_of_the_history_and_leaves_ads():
    before = lookups_of(70)
    frequent = {"item": np.arange(10) % 2 == 1}
    after = filter_ids(before, frequent)
    assert after["item"]["item"] is before["item"]["item"]
    assert after["hour"]["hour"] is before["hour"]["hour"]
    visited, was = after["item"]["history.item"], before["item"]["history.item"]
    np.testing.assert_array_equal(visited.mask, was.mask & (was.ids % 2 == 1))
    np.testing.assert_array_equal(visited.ids, was.ids)

    after = filter_ids(before, frequent, unknown=True)
    for name, at in after["item"].items():
        was = before["item"][name]
        np.testing.assert_array_equal(at.mask, was.mask)
        np.testing.assert_array_equal(at.ids, np.where(was.ids % 2 == 1, was.ids, 0))


def test_the_most_frequent_ids_are_chosen():
    counts = np.array([99, 5, 7, 5, 0, 9, 5])
    assert most_frequent(counts, 0.5).nonzero()[0].tolist() == [1, 2, 5]
    assert most_frequent(counts, 0.033).nonzero()[0].tolist() == [5]
    assert most_frequent(counts, 1.0).nonzero()[0].tolist() == [1, 2, 3, 5, 6]


def test_the_default_regularizer_does_nothing():
    before = lookups_of(5)
    after = Regularizer().training(before, np.int32(0))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert new is old


@pytest.mark.parametrize(
    ("name", "rare"),
    [("none", ""), ("mba", ""), ("difacto", ""), ("filter", "leave"), ("filter", "unknown")],
)
def test_ids_of_behaviors_are_dropped_beside_any_regularizer(planted_store, name, rare):
    keys = {"regularizer.name": name, **({"regularizer.rare": rare} if rare else {})}
    plain = open_run(tiny_config(planted_store, **keys))
    both = open_run(tiny_config(planted_store, **keys, **{"regularizer.behavior_dropout": 0.5}))
    for a, b in zip(
        jax.tree.leaves(plain.regularizer), jax.tree.leaves(both.regularizer), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    lookups = both.model.lookups(both.source[0])
    kept = plain.regularizer.training(lookups, np.int32(0))
    dropped = both.regularizer.training(lookups, np.int32(0))
    for table, of_table in lookups.items():
        for at_name in of_table:
            was, now = kept[table][at_name], dropped[table][at_name]
            np.testing.assert_array_equal(was.ids, now.ids)
            if not is_behavior(at_name):
                np.testing.assert_array_equal(was.mask, now.mask)
                assert now.scale == 1
                continue
            assert now.scale == 2
            assert not (now.mask & ~was.mask).any()
            assert 0.3 < now.mask.sum() / was.mask.sum() < 0.7
    # Scoring drops nothing.
    for a, b in zip(
        jax.tree.leaves(plain.regularizer.scoring(lookups)),
        jax.tree.leaves(both.regularizer.scoring(lookups)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"regularizer.behavior_dropout": 1.0}, "behavior_dropout=1.0: expected 0 up to below 1"),
        (
            {"regularizer.name": "dropout", "regularizer.behavior_dropout": 0.2},
            "behavior_dropout=0.2 is for other regularizers than config.regularizer.name='dropout'",
        ),
        (
            {"regularizer.name": "filter", "regularizer.filter_tables": ("items",)},
            "names 'items'; tables with counts are: age, category",
        ),
        ({"regularizer.name": "dropout", "regularizer.dropout": 1.0}, "0 up to below 1"),
        ({"regularizer.keep": 0.0}, "over 0, up to 1"),
        ({"regularizer.name": "dropuot"}, "did you mean 'dropout'"),
        ({"model.without": ("goods",)}, "model.without names 'goods'; the data set's tables are"),
        (
            {"model.without": ("age", "category", "hour", "item", "shop")},
            "config.model.without leaves no input",
        ),
        (
            {
                "regularizer.name": "filter",
                "regularizer.filter_tables": ("item",),
                "model.pooling": "mean",
            },
            "would still count them; use config.regularizer.rare='unknown'",
        ),
        (
            {"regularizer.name": "filter", "model.attention.normalize": "softmax"},
            "config.regularizer.rare='leave' removes ids from the history, but a mean, a softmax",
        ),
    ],
)
def test_a_wrong_key_is_explained(planted_store, keys, message):
    with pytest.raises(DinError, match=re.escape(message)):
        open_run(tiny_config(planted_store, **keys))


def test_mba_on_a_table_without_counts_is_refused(planted_store, monkeypatch):
    counts = sample_counts
    monkeypatch.setattr(
        regularizer_module,
        "cached_counts",
        lambda *a, **k: {n: c for n, c in counts(*a, **k).items() if n != "shop"},
    )
    with pytest.raises(
        DinError, match="no counts n_j for shop: the data set's own tables have them"
    ):
        open_run(tiny_config(planted_store, **{"regularizer.name": "mba"}))
