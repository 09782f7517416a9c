import numpy as np
import pytest
from stores_as_requests import assert_requests_are_batches
from test_own_history import by_loop

from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.prepare import planted


def test_equal_arguments_give_equal_stores(tmp_path, planted_store):
    planted.prepare(tmp_path / "again", users=300)
    planted.prepare(tmp_path / "seed", users=300, seed=1)
    fingerprint = Store(planted_store).fingerprint
    assert Store(tmp_path / "again").fingerprint == fingerprint
    assert Store(tmp_path / "seed").fingerprint != fingerprint


def clicks_by_match(path):
    """Click rates of ads whose category is, and is not, in the user's history."""
    store = Store(path)
    categories = store.column("events/history/category")
    start, end = (store.column(f"sequences/history.{e}").astype(int) for e in ("start", "end"))
    ad, label = store.column("fields/category"), store.column("samples/label")
    match = np.array(
        [a in set(categories[s:e].tolist()) for a, s, e in zip(ad, start, end, strict=True)]
    )
    return label[match].mean(), label[~match].mean()


def test_clicks_follow_the_behaviours_that_the_ad_activates(planted_store):
    with_match, without = clicks_by_match(planted_store)
    assert with_match > without + 0.3


def test_the_origin_says_how_often_an_ad_is_in_its_own_history(planted_store):
    store = Store(planted_store)
    columns = ("samples/label", "fields/item", "sequences/history.start", "sequences/history.end")
    counts = by_loop(*map(store.column, columns), store.column("events/history/item"))
    assert store.origin["ad_in_own_history"] == str(counts)


def test_with_no_taste_the_ad_activates_nothing(tmp_path):
    planted.prepare(tmp_path / "s", users=1000, taste=0)
    with_match, without = clicks_by_match(tmp_path / "s")
    # A good that is popular in the history is popular as an ad too: not quite equal.
    assert with_match == pytest.approx(without, abs=0.05)


def test_bounds_are_in_order(planted_store):
    origin = Store(planted_store).origin
    bayes = origin["test_user_weighted_auc_bayes"]
    popularity = origin["test_user_weighted_auc_popularity"]
    assert 0.5 < popularity < bayes - 0.05 < 1


@pytest.mark.parametrize("arguments", [{"users": 0}, {"seed": -1}, {"taste": float("nan")}])
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(DinError, match="expected a seed of 0 or more"):
        planted.prepare(tmp_path / "s", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_every_user_is_in_every_split(planted_store):
    store = Store(planted_store)
    user = store.column("samples/user")
    for split, impressions in (
        ("train", planted.TRAIN_IMPRESSIONS),
        ("validation", planted.VALIDATION_IMPRESSIONS),
        ("test", planted.TEST_IMPRESSIONS),
    ):
        samples = store.split(split)
        assert (np.bincount(user[samples.start : samples.stop]) == impressions).all()


def test_samples_as_requests_have_their_batches(planted_store):
    store = Store(planted_store)
    assert_requests_are_batches(store, range(0, len(store), 499))
