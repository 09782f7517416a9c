"""Dropout and filter of ids, on their own, in a step, and in a run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import small_config

from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.data.counts import sample_counts
from din_jax.errors import DinError
from din_jax.nn.embedding import Lookup, lookup
from din_jax.optim import regularizer as regularizer_module
from din_jax.optim.regularizer import Regularizer, drop_ids, filter_ids, most_frequent
from din_jax.report.experiments import compare_lines
from din_jax.report.markdown import lines_as_markdown
from din_jax.step.score import score_step
from din_jax.step.train import train_step
from din_jax.training.run import open_run


def lookups_of(count):
    ids = jnp.arange(count) % 10
    real = jnp.arange(count) % 7 != 0
    return {
        "item": {"item": Lookup(ids, real), "history.item": Lookup(ids[::-1], real)},
        "hour": {"hour": Lookup(ids // 3, real)},
    }


@pytest.mark.parametrize("behaviors_only", [False, True])
@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_dropout_gives_zeros_and_scales_what_it_keeps(rate, behaviors_only):
    count = 20_000
    before = lookups_of(count)
    after = drop_ids(before, jax.random.key(3), rate, behaviors_only=behaviors_only)
    table = jnp.ones((10, 2))
    kept = {}
    for name, of_table in before.items():
        for at_name, at in of_table.items():
            changed = after[name][at_name]
            real = np.asarray(at.mask)
            vectors = np.asarray(lookup(table, changed))
            assert (vectors[~real] == 0).all()
            if behaviors_only and "." not in at_name:
                assert (vectors[real] == 1).all()
                continue
            assert set(np.unique(vectors[real])) == {0, np.float32(1 / (1 - rate))}
            kept[at_name] = vectors[real, 0] > 0
            assert abs(kept[at_name].mean() - (1 - rate)) < 0.02
            assert (np.asarray(changed.mask)[real] == kept[at_name]).all(), "dropped: not present"
    if not behaviors_only:
        agree = (kept["item"] == kept["hour"]).mean()
        assert abs(agree - (rate**2 + (1 - rate) ** 2)) < 0.02, "fields drop independently"


def test_filter_takes_rare_ids_out_of_the_history_and_leaves_ads():
    before = lookups_of(70)
    kept = {"item": np.arange(10) % 2 == 1}
    after = filter_ids(before, kept)
    assert after["item"]["item"] is before["item"]["item"]
    assert after["hour"]["hour"] is before["hour"]["hour"]
    visited, was = after["item"]["history.item"], before["item"]["history.item"]
    np.testing.assert_array_equal(visited.mask, was.mask & (was.ids % 2 == 1))
    np.testing.assert_array_equal(visited.ids, was.ids)

    after = filter_ids(before, kept, unknown=True)
    for name, at in after["item"].items():
        was = before["item"][name]
        np.testing.assert_array_equal(at.mask, was.mask)
        np.testing.assert_array_equal(at.ids, np.where(was.ids % 2 == 1, was.ids, 0))


def test_the_most_frequent_ids_are_kept():
    counts = np.array([99, 5, 7, 5, 0, 9, 5])
    assert most_frequent(counts, 0.5).nonzero()[0].tolist() == [1, 2, 5]
    assert most_frequent(counts, 0.033).nonzero()[0].tolist() == [5]
    assert most_frequent(counts, 1.0).nonzero()[0].tolist() == [1, 2, 3, 5, 6]


@pytest.mark.parametrize("variant", ["leave", "unknown"])
def test_a_filtered_run_depends_on_frequent_ids_only(planted_store, variant):
    run = open_run(
        small_config(
            planted_store,
            **{
                "model.name": "base",
                "model.embedding_stddev": 1.0,
                "regularizer.name": "filter",  # of the goods, unless a table is named
                "regularizer.keep": 0.3,
                "regularizer.rare": variant,
            },
        )
    )
    n = sample_counts(run.store, "train", max_history=4)["item"]
    assert set(run.regularizer.frequent) == {"item"}
    kept = np.asarray(run.regularizer.frequent["item"])
    assert kept.sum() == round(0.3 * (len(n) - 1)) and n[kept].min() >= n[1:][~kept[1:]].max()
    state, batch = run.init(), run.source[0]
    score = score_step(run.model, run.regularizer)
    before = np.asarray(score(state, batch))
    rare_ad = ~kept[batch.fields["item"]]
    assert rare_ad.any() and not rare_ad.all()
    changed = jnp.where(kept[:, None], state.tables["item"], state.tables["item"] + 5)
    if variant == "unknown":
        changed = changed.at[0].set(state.tables["item"][0])
    moved = np.asarray(score(state.replace(tables=state.tables | {"item": changed}), batch))
    if variant == "leave":
        assert (moved[~rare_ad] == before[~rare_ad]).all()
        assert (moved[rare_ad] != before[rare_ad]).all()
    else:
        assert (moved == before).all()

    old = np.array(state.tables["item"])
    after, _ = train_step(run.model, run.optimizer, run.regularizer)(state, batch)
    touched = (np.asarray(after.tables["item"]) != old).any(axis=1)
    rare = set(np.flatnonzero(touched & ~kept))
    expected = set(batch.fields["item"][rare_ad]) if variant == "leave" else {0}
    assert rare == expected


def test_dropout_changes_with_the_step_and_the_seed_and_not_in_evaluation(planted_store):
    keys = {"regularizer.name": "dropout", "optimizer.name": "sgd", "optimizer.learning_rate": 0.0}
    run = open_run(small_config(planted_store, **keys))
    batch = run.source[0]
    step = train_step(run.model, run.optimizer, run.regularizer)
    state, first = step(run.init(), batch)
    _, second = step(state, batch)
    _, again = step(run.init(), batch)
    other = train_step(run.model, run.optimizer, run.regularizer.replace(seed=1))
    _, seeded = other(run.init(), batch)
    assert first == again and first != second and first != seeded
    state = run.init()
    plain = score_step(run.model)(state, batch)
    np.testing.assert_array_equal(score_step(run.model, run.regularizer)(state, batch), plain)


def test_a_dropped_id_is_not_updated(planted_store):
    run = open_run(
        small_config(planted_store, **{"regularizer.name": "dropout", "regularizer.dropout": 0.9})
    )
    state, batch = run.init(), run.source[0]
    dropped = run.regularizer.training(run.model.lookups(batch), state.step)["item"]
    present = np.zeros(len(state.tables["item"]), bool)
    for at in dropped.values():
        present[np.asarray(at.ids)[np.asarray(at.mask)]] = True
    old = np.array(state.tables["item"])
    after, _ = train_step(run.model, run.optimizer, run.regularizer)(state, batch)
    changed = (np.asarray(after.tables["item"]) != old).any(axis=1)
    assert 0 < changed.sum() <= present.sum() and not changed[~present].any()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
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
    ],
)
def test_a_wrong_key_is_explained(planted_store, keys, message):
    with pytest.raises(DinError, match=re.escape(message)):
        open_run(small_config(planted_store, **keys))


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
        open_run(small_config(planted_store, **{"regularizer.name": "mba"}))


def test_a_model_without_a_table_reads_nothing_of_it(planted_store):
    run = open_run(small_config(planted_store, **{"model.without": ("item",)}))
    assert set(run.model.tables) == {"age", "category", "hour", "shop"}
    state, batch = run.init(), run.source[0]
    z = score_step(run.model)(state, batch)
    history = batch.sequences["history"]
    other = batch._replace(
        fields=batch.fields | {"item": batch.fields["item"] * 0},
        sequences={
            "history": history._replace(
                fields=history.fields | {"item": history.fields["item"] * 0}
            )
        },
    )
    np.testing.assert_array_equal(score_step(run.model)(state, other), z)


def test_lines_are_searched_on_validation_and_compared_on_test(planted_store, tmp_path):
    config = small_config(
        planted_store,
        **{"model.name": "base", "train.epochs": 1, "eval.curves": True, "train.batch_size": 256},
    )
    lines = {
        "none": {"regularizer.name": "none"},
        "mba": {"regularizer.name": "mba", "regularizer.rate": [0.0, 1e4]},
    }
    result = compare_lines(config, lines, 2, tmp_path)
    none, mba = result["lines"]
    assert none["trials"] == [] and none["rela_impr"] == 0 and none["difference"]["mean"] == 0
    values = [t["validation"] for t in mba["trials"]]
    assert mba["chosen"]["regularizer.rate"] == [0.0, 1e4][int(np.argmax(values))]
    for folder in ("mba-0", "mba-10000"):
        trial = tmp_path / "trials" / folder
        assert '"split": "test' not in (trial / "metrics.jsonl").read_text()
        assert Checkpoints(trial).meta("last")["best"] in values
    base, own = (np.mean(line["user_weighted_auc"]) for line in (none, mba))
    assert mba["rela_impr"] == pytest.approx(100 * ((own - 0.5) / (base - 0.5) - 1))
    assert mba["difference"]["mean"] == pytest.approx(own - base)
    (point,) = none["curves"]
    assert point["epoch"] == 1
    assert point["test_user_weighted_auc"] == pytest.approx(base)
    text = lines_as_markdown(result)
    assert f"| mba | {own:.4f} ±" in text and "| none | 1.00 |" in text
    # Nothing is trained again.
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("checkpoints/*/*")}
    assert compare_lines(config, lines, 2, tmp_path) == result
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("checkpoints/*/*")}


@pytest.mark.parametrize(
    ("lines", "keys", "message"),
    [
        ({"a": {"regularizer.rat": 1.0}}, {}, "a line sets {'regularizer.rat': 1.0}"),
        ({"a": {"regularizer.rate": "much"}}, {}, "a line sets {'regularizer.rate': 'much'}"),
        ({"a": {"regularizer.rate": []}}, {}, "the list of values of regularizer.rate is empty"),
        ({"a": {"regularizer.rate": [0.1, 0.1]}}, {}, "would share the folder 'a-0.1'"),
        (
            {"a": {"regularizer.rate": [0.1, 0.2]}},
            {"data.fit": "train+validation"},
            "a line is searched on validation",
        ),
    ],
)
def test_wrong_lines_are_explained_before_anything_is_trained(
    planted_store, tmp_path, lines, keys, message
):
    with pytest.raises(DinError, match=re.escape(message)):
        compare_lines(small_config(planted_store, **keys), lines, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_default_regularizer_does_nothing():
    before = lookups_of(5)
    after = Regularizer().training(before, jnp.zeros((), jnp.int32))
    assert after == before
