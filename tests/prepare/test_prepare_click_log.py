import bisect
import collections
import datetime

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.prepare import click_log, log
from din_jax.prepare.click_log_bounds import Bayes

SIZE = {"samples": 3000, "users": 200, "goods": 100}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return tmp_path_factory.mktemp("click_log") / "raw"


@pytest.fixture(scope="module")
def store(raw):
    click_log.prepare(raw.parent / "store", raw=raw, **SIZE)
    return Store(raw.parent / "store")


@pytest.fixture(scope="module")
def long_raw(tmp_path_factory):
    return tmp_path_factory.mktemp("long_log") / "raw"


@pytest.fixture(scope="module")
def long_store(long_raw):
    click_log.prepare(long_raw.parent / "store", histories="long", raw=long_raw, **SIZE)
    return Store(long_raw.parent / "store")


def generated(histories, **size):
    kind = click_log.KINDS[histories]._replace(**size)
    return click_log.generate(kind, seed=0), kind


def test_equal_arguments_give_equal_stores(tmp_path, store, long_store):
    for seed, histories, expected in ((0, "short", store), (0, "long", long_store)):
        click_log.prepare(tmp_path / histories, seed=seed, histories=histories, **SIZE)
        again = Store(tmp_path / histories)
        assert again.fingerprint == expected.fingerprint and again.origin == expected.origin


def test_another_seed_gives_another_log():
    of, kind = generated("short", **SIZE)
    assert of.impressions.equals(click_log.generate(kind, 0).impressions)
    assert not of.impressions.equals(click_log.generate(kind, 1).impressions)


def test_the_raw_tables_give_the_same_store_through_prepare_log(tmp_path, raw, store):
    log.prepare(raw / "spec.toml", tmp_path / "again")
    assert Store(tmp_path / "again").fingerprint == store.fingerprint


def within_sigmas(hits, probability, sigmas=4):
    """Whether as many of the events happened as their probabilities let expect."""
    hits, probability = np.asarray(hits, float), np.broadcast_to(probability, np.shape(hits))
    spread = np.sqrt((probability * (1 - probability)).sum(0))
    return bool((np.abs((hits - probability).sum(0)) < sigmas * spread).all())


def shown(of, tastes, for_user):
    """[len(tastes), traits] how often these users see each trait."""
    mine = (tastes[:, :, None] == np.arange(len(of.popularity))).any(1) * of.popularity
    return (1 - for_user) * of.popularity + for_user * mine / mine.sum(1, keepdims=True)


@pytest.mark.parametrize("histories", ["short", "long"])
def test_ads_and_clicks_are_as_often_of_a_taste_as_the_rates_say(histories):
    of, kind = generated(histories, samples=20_000)
    mine = of.tastes[of.user]
    matches = (mine == of.trait[:, None]).any(1)
    click = of.impressions["click"].to_numpy()
    assert within_sigmas(click[matches], kind.rates.click_of_taste, sigmas=3)
    assert within_sigmas(click[~matches], kind.rates.click_of_other, sigmas=3)
    expected = shown(of, mine, kind.rates.ads_for_user)
    assert within_sigmas(matches, np.take_along_axis(expected, mine, 1).sum(1))
    assert within_sigmas(of.trait[:, None] == np.arange(len(of.popularity)), expected)


def test_views_before_the_log_are_less_often_of_a_taste_than_ads():
    of, kind = generated("long", samples=1000)
    assert kind.rates.views_for_user < kind.rates.ads_for_user
    expected = shown(of, of.tastes, kind.rates.views_for_user)
    views = of.views.sum(1)
    hits = np.take_along_axis(of.views, of.tastes, 1).sum()
    p = np.take_along_axis(expected, of.tastes, 1).sum(1)
    assert abs(hits - (views * p).sum()) < 4 * np.sqrt((views * p * (1 - p)).sum())


def test_few_users_are_very_active_and_few_goods_very_popular():
    of, _ = generated("short")
    impressions = np.sort(np.bincount(of.user))[::-1]
    assert impressions[: len(impressions) // 10].sum() > 0.35 * impressions.sum()
    shown = of.impressions["item_id"].value_counts(sort=True)["count"].to_numpy()
    assert shown[:200].sum() > 0.5 * shown.sum()
    of, _ = generated("long")
    views = of.views.sum(1)
    assert views.max() > 1000 > 60 * np.median(views) / 2 and np.median(views) == 21


def test_histories_are_the_earlier_clicks_of_the_user(raw, store):
    """Against plain Python, on the raw tables."""
    impressions = pl.read_parquet(raw / "impressions.parquet").sort("time")
    items = pl.read_parquet(raw / "items.parquet")
    trait = {item: int(c.removeprefix("category")) for item, c in zip(*items[:, :2], strict=True)}
    test_begin = click_log.BEGIN + datetime.timedelta(click_log.TEST_DAY)
    clicked = collections.defaultdict(list)
    length, histories, ads, labels = [], [], [], []
    for user, item, time, _, click in impressions.rows():
        earlier = [c for t, c in clicked[user] if t < time]
        length.append(len(earlier))
        if time >= test_begin:
            histories.append(earlier)
            ads.append(trait[item])
            labels.append(click)
        if click:
            clicked[user].append((time, trait[item]))
    start, end = (store.column(f"sequences/history.{e}").astype(int) for e in ("start", "end"))
    np.testing.assert_array_equal(end - start, length)
    assert len(store.split("test")) == len(labels)

    # The AUCs of the origin are of these histories.
    of, kind = generated("short", **SIZE)
    count = np.array([h.count(ad) for h, ad in zip(histories, ads, strict=True)])
    clicks = np.array([np.bincount(h, minlength=40) for h in histories])
    scores = {
        "history_count": count,
        "history_share": count / np.maximum(clicks.sum(1), 1),
        "bayes_history": Bayes(of.popularity, kind.rates).of_history(
            0 * clicks, clicks, np.array(ads)
        ),
    }
    origin = store.origin["planted"]
    for name, score in scores.items():
        assert origin[f"auc_{name}"] == round(roc_auc_score(labels, score), 4)


def test_long_histories_begin_before_the_log(long_raw, long_store):
    behaviors = pl.read_parquet(long_raw / "behaviors.parquet")
    impressions = pl.read_parquet(long_raw / "impressions.parquet")
    times = collections.defaultdict(list)
    for user, time in behaviors.sort("time").select("user_id", "time").rows():
        times[user].append(time)
    start, end = (long_store.column(f"sequences/history.{e}").astype(int) for e in ("start", "end"))
    expected = [
        bisect.bisect_left(times[user], time)
        for user, time in impressions.sort("time").select("user_id", "time").rows()
    ]
    np.testing.assert_array_equal(end - start, expected)
    of_log = behaviors.filter(pl.col("time") >= click_log.BEGIN)
    clicked = impressions.filter(pl.col("click") == 1).select(of_log.columns)
    assert of_log.sort("time").equals(clicked.sort("time"))
    assert len(of_log) < len(behaviors)


def test_an_item_with_long_histories_has_several_tags_of_which_one_is_the_trait(long_raw):
    of, _ = generated("long", **SIZE)
    items = pl.read_parquet(long_raw / "items.parquet")
    assert set(items["tags"].list.len()) == {2, 3, 4, 5}
    assert all(len(set(tags)) == len(tags) for tags in items["tags"])
    tags = dict(items.select("item_id", "tags").rows())
    place = collections.Counter()
    for item, trait in zip(of.impressions["item_id"], of.trait, strict=True):
        place[tags[item].index(f"tag{trait}")] += 1
    assert len(place) == 5  # it has no place of its own


def test_the_splits_are_days(raw, store):
    day = (pl.read_parquet(raw / "impressions.parquet")["time"] - click_log.BEGIN).dt.total_days()
    assert (day.min(), day.max()) == (0, 13)
    sizes = [
        int(((day >= low) & (day < high)).sum()) for low, high in ((0, 10), (10, 12), (12, 14))
    ]
    assert [len(store.split(s)) for s in ("train", "validation", "test")] == sizes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"samples": 10}, "--samples 10: expected 1,000 or more"),
        ({"users": 0}, "--users 0: expected 10 or more"),
        ({"goods": 39}, "--goods 39: expected 40 or more"),
        ({"seed": -1}, "--seed -1: expected 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, expected):
    with pytest.raises(DinError, match=expected):
        click_log.prepare(tmp_path / "s", raw=tmp_path / "raw", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_tables_is_not_overwritten(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(DinError, match="raw exists already"):
        click_log.prepare(tmp_path / "s", raw=tmp_path / "raw", **SIZE)
