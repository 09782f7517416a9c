"""The industrial data against recounts of its columns and a slow recalculation of its clicks."""

import argparse
import math

import numpy as np
import pytest

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.metrics import user_auc
from din_jax.prepare import industrial, planted
from din_jax.prepare.industrial import simulation, size as sizes
from din_jax.prepare.industrial.simulation import catalogue, draw_impressions, draw_users
from din_jax.prepare.industrial.size import Size

SMALL = {"samples": 8000, "goods": 800, "shops": 30, "categories": 24}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("industrial") / "store"
    industrial.prepare(path, **SMALL)
    return Store(path)


def part(store, column, split):
    samples = store.split(split)
    return store.column(column)[samples.start : samples.stop]


def test_sixteen_groups_of_table_1(prepared):
    schema = prepared.schema
    of_group = {g: [f.name for f in schema.fields if f.group == g] for g in ("user", "ad")}
    assert len(schema.fields) + sum(len(s.fields) for s in schema.sequences) == 16
    assert of_group["user"][:2] == ["gender", "age_level"]
    assert of_group["ad"][:3] == ["goods_id", "shop_id", "cate_id"]
    assert {f.name for f in schema.fields if f.group == "context"} >= {"pid", "time"}
    assert [f.name for f in schema.fields if f.multi_hot] == ["keywords"]
    assert [f.ad for f in schema.sequences[0].fields] == ["goods_id", "shop_id", "cate_id"]


def test_splits_have_their_sizes_and_each_user_one_history(prepared):
    assert [len(prepared.split(s)) for s in SPLITS] == [8000, 1000, 2000]
    # A user has one history, whatever the split.
    user = prepared.column("samples/user").astype(int)
    ranges = zip(
        user.tolist(),
        prepared.column("sequences/visited.start").tolist(),
        prepared.column("sequences/visited.end").tolist(),
        strict=True,
    )
    assert len(set(ranges)) == len(set(user.tolist()))
    assert user.max() < prepared.origin["users"] == 200


def test_counts_are_of_the_training_split(prepared):
    schema = prepared.schema
    for table in schema.tables:
        counts = np.zeros(table.rows, int)
        for field in schema.fields:
            if field.table != table.name:
                continue
            if field.multi_hot:
                offsets = prepared.column(f"fields/{field.name}.offsets")
                ids = prepared.column(f"fields/{field.name}")[: int(offsets[8000])]
            else:
                ids = part(prepared, f"fields/{field.name}", "train")
            counts += np.bincount(ids, minlength=table.rows)
        for behavior in schema.sequences[0].fields:
            if behavior.table == table.name:
                ids = prepared.column(f"events/visited/{behavior.name}")
                counts += np.bincount(ids, minlength=table.rows)
        np.testing.assert_array_equal(prepared.vocabulary(table.name).counts, counts)


def test_a_good_always_has_the_same_shop_category_price_and_keywords(prepared):
    offsets = prepared.column("fields/keywords.offsets").astype(int)
    seen = {}
    for i in range(len(prepared)):
        words = prepared.column("fields/keywords")[offsets[i] : offsets[i + 1]].tolist()
        assert 1 <= len(words) == len(set(words)) <= simulation.MAX_KEYWORDS
        of_good = [int(prepared.column(f"fields/{n}_id")[i]) for n in ("shop", "cate")]
        # A category has keywords of its own.
        assert {(w - 1) // simulation.KEYWORDS_PER_CATEGORY + 1 for w in words} == {of_good[1]}
        of_good += [int(prepared.column("fields/price_level")[i]), words]
        good = int(prepared.column("fields/goods_id")[i])
        assert seen.setdefault(good, of_good) == of_good
    assert len(seen) > 400


def slow_log_odds(store, world, i, inclination):
    """z of sample i, from the store's columns alone, except for effects that no column has."""
    row = {f.name: int(store.column(f"fields/{f.name}")[i]) - 1 for f in store.schema.fields
           if not f.multi_hot}  # fmt: skip
    good, category = row["goods_id"], row["cate_id"]
    events = range(
        int(store.column("sequences/visited.start")[i]),
        int(store.column("sequences/visited.end")[i]),
    )
    shops = [int(store.column("events/visited/shop_id")[e]) - 1 for e in events]
    categories = [int(store.column("events/visited/cate_id")[e]) - 1 for e in events]
    bundle_of = dict(zip(world.category.tolist(), world.bundle.tolist(), strict=True))
    in_bundle = sum(bundle_of[c] == bundle_of[category] for c in categories)
    in_shop = sum(s == row["shop_id"] for s in shops)
    return (
        simulation.BIAS
        + inclination
        + world.appeal[good]
        + world.gender_effect[row["gender"], category]
        + world.age_effect[row["age_level"], category]
        + world.price_effect[row["purchasing_level"], row["price_level"]]
        + sum(world.context_effect[n][row[n]] for n in ("pid", "time", "weekday"))
        + simulation.TASTE * math.log2(1 + in_bundle)
        + simulation.LOYALTY * math.log2(1 + in_shop)
    )


def test_clicks_follow_from_the_columns(prepared):
    size = Size.of(**SMALL)
    world = catalogue(size, 0)
    users = draw_users(world, size, 0, 0)
    for split in ("train", "test"):
        drawn = draw_impressions(world, users, size, 0, 0, split)
        first = prepared.split(split).start
        np.testing.assert_array_equal(part(prepared, "samples/label", split), drawn.label)
        for i in range(0, len(drawn.label), 37):
            inclination = users.inclination[drawn.user[i]]
            slow = slow_log_odds(prepared, world, first + i, inclination)
            assert drawn.log_odds[i] == pytest.approx(slow, abs=1e-9)


def test_the_click_probability_is_calibrated_and_its_auc_is_the_bound():
    size = Size.of(samples=120_000, goods=5000)
    world = catalogue(size, 3)
    users = draw_users(world, size, 3, 0)
    drawn = draw_impressions(world, users, size, 3, 0, "train")
    p = 1 / (1 + np.exp(-drawn.log_odds))
    for bin_of in np.array_split(np.argsort(p), 10):
        expected, rate = p[bin_of].mean(), drawn.label[bin_of].mean()
        assert abs(rate - expected) < 4 * math.sqrt(expected / len(bin_of))
    assert 0.05 < drawn.label.mean() < 0.12

    def bound(scores):
        return user_auc(drawn.user, drawn.label, scores).weighted("impressions")

    assert 0.6 < bound(drawn.without_history) + 0.02 < bound(drawn.log_odds) < 0.72


def test_the_seed_decides(tmp_path, prepared):
    industrial.prepare(tmp_path / "again", **SMALL)
    industrial.prepare(tmp_path / "seed", seed=1, **SMALL)
    assert Store(tmp_path / "again").fingerprint == prepared.fingerprint
    assert Store(tmp_path / "seed").fingerprint != prepared.fingerprint


def test_more_users_do_not_change_the_users_before_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "USERS_PER_CHUNK", 50)
    stores = []
    for users in (100, 200):
        arguments = SMALL | {"samples": 40 * users}
        industrial.prepare(tmp_path / str(users), users=users, **arguments)
        stores.append(Store(tmp_path / str(users)))
    few, many = stores
    for split in SPLITS:
        n = len(few.split(split))
        for column in ("samples/label", "samples/user", "fields/goods_id", "fields/time",
                       "sequences/visited.start", "sequences/visited.end"):  # fmt: skip
            np.testing.assert_array_equal(part(few, column, split), part(many, column, split)[:n])
    events = few.column("events/visited/goods_id")
    np.testing.assert_array_equal(events, many.column("events/visited/goods_id")[: len(events)])
    later = part(many, "fields/goods_id", "train")
    assert (later[:2000] != later[2000:4000]).mean() > 0.5  # no chunk repeats another
    # 50 users a chunk: 2000 training samples.
    start = many.column("sequences/visited.start")[:8000].reshape(4, 2000).astype(int)
    second, third = (many.column("events/visited/goods_id")[first:][:500] for first in
                     (start[1].min(), start[2].min()))  # fmt: skip
    assert (second != third).mean() > 0.5


def test_each_split_has_its_days(prepared):
    # Train is days 0 to 12, validation day 13, test day 14; the weekday is the day modulo 7.
    weekdays = {s: set(part(prepared, "fields/weekday", s).tolist()) for s in SPLITS}
    assert weekdays == {"train": set(range(1, 8)), "validation": {7}, "test": {1}}


def test_few_goods_have_most_impressions(prepared):
    counts = np.sort(prepared.vocabulary("goods").counts[1:])[::-1]
    assert counts[: len(counts) // 10].sum() > 0.4 * counts.sum()
    assert np.median(counts) < counts.mean() / 1.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "--seed -1"),
        ({"samples": 7}, "--samples 7: expected 8 or more"),
        ({"users": 0}, "--users 0: expected 1 or more"),
        ({"users": 2**31}, "at most 2³¹ − 1 users"),
        ({"goods": 10, "categories": 12}, "--goods 10: expected 12 or more, one a category"),
        ({"shops": 3, "categories": 40}, "--shops 3: expected 10 or more"),
        ({"categories": 0}, "--categories 0: expected 4 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(DinError, match=message):
        industrial.prepare(tmp_path / "s", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_refuses_flags_of_the_other_shape(tmp_path, prepared):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    planted.add_arguments(parser)

    def run(*flags):
        planted.run(parser.parse_args(["--out", str(tmp_path / "s"), *flags]))

    with pytest.raises(DinError, match="--taste is not a flag of --shape industrial"):
        run("--shape", "industrial", "--taste", "0")
    with pytest.raises(DinError, match="--goods is not a flag of --shape quickstart"):
        run("--goods", "500")
    run("--shape", "industrial", *(f"--{name}={value}" for name, value in SMALL.items()))
    assert Store(tmp_path / "s").fingerprint == prepared.fingerprint
