"""The specs of public data sets, on a few rows made in the layout of the files to download."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from log_oracle import decoded

from din_jax.data.store import SPLITS, Store
from din_jax.prepare import log

SPECS = Path(__file__).parent.parent.parent / "configs/data"
DAY = 86_400


@pytest.fixture
def prepared(tmp_path):
    """Prepares the store of a spec from {file: its text}."""

    def prepare(name, files):
        for file, text in files.items():
            data = gzip.compress(text.encode()) if file.endswith(".gz") else text.encode()
            (tmp_path / file).write_bytes(data)
        log.prepare(SPECS / f"{name}.toml", tmp_path / "store", data=tmp_path)
        store = Store(tmp_path / "store")
        splits = decoded(store, tuple(t.name for t in store.schema.tables))
        return store, [sample for split in SPLITS for sample in splits[split]]

    return prepare


def lines(rows, form=json.dumps):
    return "".join(form(row) + "\n" for row in rows)


def table(header, rows, delimiter=","):
    return "".join(
        delimiter.join(map(str, row)) + "\n" for row in [*([header] if header else []), *rows]
    )


def values(samples, name):
    return [sample[name] for sample in samples]


def items(sample, sequence="history"):
    return [behavior["item"] for behavior in sample[sequence]]


# Ten users, one after the other on each of seven days, take goods g0 to g9; user u takes good
# (u + day) % 10 on a day.
TAKEN = [(user, (user + day) % 10, day) for day in range(7) for user in range(10)]


def check_interactions(store, samples, user, item):
    """Positives, negatives and histories of `TAKEN`, of which each user's first is no sample."""
    assert len(samples) == 60 * 5
    assert values(samples, "label") == [1, 0, 0, 0, 0] * 60
    positives = samples[::5]
    assert values(positives, "item") == [item(good) for _, good, _ in TAKEN[10:]]
    assert values(positives, "user_id")[:5] == [user(u) for u in range(5)]
    for i, sample in enumerate(samples):
        who, _, day = TAKEN[10 + i // 5]
        before = [(who + earlier) % 10 for earlier in range(day)]
        assert items(sample) == [item(good) for good in before]
        if not sample["label"]:
            assert sample["item"] not in [item(good) for good in [*before, (who + day) % 10]]
    assert [len(store.split(name)) for name in SPLITS] == [40 * 5, 10 * 5, 10 * 5]
    assert set(store.vocabulary("item").ids[1:]) == {item(good) for good in range(10)}
    assert np.diff(store.column("samples/time")[::5][[0, 10, 20]]).tolist() == [DAY, DAY]


def amazon_2014():
    reviews = [
        {"reviewerID": f"A{u}", "asin": f"B{g}", "reviewerName": 'N, "N"', "helpful": [0, 1]}
        | {
            "reviewText": "é\n",
            "overall": 5.0,
            "summary": "s",
            "unixReviewTime": 1_000_000_000 // DAY * DAY + d * DAY,
        }
        | {"reviewTime": "09 9, 2001"}
        for u, g, d in TAKEN
    ]
    meta = [
        {
            "asin": f"B{g}",
            "title": "It's",
            "price": 3.17,
            "imUrl": "http://a",
            "salesRank": {"Toys & Games": 2},
        }
        | {
            "related": {"also_bought": ["B1"]},
            "categories": [["Other", "x"], ["Electronics", f"c{g % 3}"]],
        }
        | ({"brand": "Sony"} if g % 2 else {})
        for g in range(10)
    ]
    return {
        "reviews_Electronics_5.json.gz": lines(reviews),
        "meta_Electronics.json.gz": lines(meta, repr),
    }


def amazon_2018():
    reviews = [
        {
            "overall": 5.0,
            "verified": True,
            "reviewTime": "09 18, 1999",
            "reviewerID": f"A{u}",
            "asin": f"B{g}",
        }
        | {
            "style": {"Format:": " Hardcover"},
            "reviewText": "t",
            "unixReviewTime": 937_612_800 + d * DAY,
        }
        | ({"vote": "67", "image": ["http://a"]} if g else {})
        for u, g, d in TAKEN
    ]
    meta = [
        {
            "category": ["Electronics", f"c{g % 3}"] if g else [],
            "tech1": "",
            "description": ["d"],
            "title": "t",
        }
        | {
            "rank": [">#1 in"] if g % 2 else "3 in Books",
            "price": "$1.00",
            "asin": f"B{g}",
            "details": {},
        }
        | {"brand": "Sony" if g % 2 else ""}
        for g in range(10)
    ]
    return {
        "Electronics_5.json.gz": lines(reviews + reviews[:3]),  # some stand twice
        "meta_Electronics.json.gz": lines(meta),
    }


def amazon_2023():
    reviews = [
        {
            "rating": 5.0,
            "title": "t",
            "text": "t",
            "images": [],
            "asin": f"V{g}{u}",
            "parent_asin": f"B{g}",
        }
        | {"user_id": f"A{u}", "timestamp": 1_588_687_728_923 + d * DAY * 1000, "helpful_vote": 0}
        | {"verified_purchase": True}
        for u, g, d in TAKEN
    ]
    meta = [
        {
            "main_category": "All",
            "title": "t",
            "average_rating": 4.8,
            "rating_number": 10,
            "features": [],
        }
        | {"price": 3.5 if g % 2 else None, "images": [{"thumb": "http://a"}], "videos": []}
        | {
            "store": "Sony" if g % 2 else None,
            "categories": ["Electronics", f"c{g % 3}"] if g else [],
        }
        | {"details": {"Brand": "b"}, "parent_asin": f"B{g}", "bought_together": None}
        for g in range(10)
    ]
    return {"Electronics.jsonl.gz": lines(reviews), "meta_Electronics.jsonl.gz": lines(meta)}


@pytest.mark.parametrize(
    ("name", "files", "brand"),
    [
        ("amazon_2014", amazon_2014, "brand"),
        ("amazon_2018", amazon_2018, "brand"),
        ("amazon_2023", amazon_2023, "store"),
    ],
)
def test_amazon(prepared, name, files, brand):
    store, samples = prepared(name, files())
    check_interactions(store, samples, lambda u: f"A{u}", lambda g: f"B{g}")
    first = None if name != "amazon_2014" else "c0"
    categories = {f"B{g}": f"c{g % 3}" for g in range(1, 10)} | {"B0": first}
    for sample in samples:
        assert sample["category"] == categories[sample["item"]]
        assert sample[brand] == ("Sony" if int(sample["item"][1]) % 2 else None)
        assert [b["category"] for b in sample["history"]] == [categories[i] for i in items(sample)]


def test_steam(prepared):
    def literal(row):  # as Python 2 has written them
        return repr(row).replace("'", "u'", 1).replace(": '", ": u'").replace(", '", ", u'")

    reviews = [
        {
            "username": f"Chaos {u}",
            "hours": 0.1,
            "products": 41,
            "product_id": f"{70 + g}",
            "page_order": 0,
        }
        | {"date": f"2017-12-{10 + d}", "text": "fun ☺", "early_access": False, "page": 1}
        | ({"user_id": "7", "compensation": "Product received for free"} if u == 3 else {})
        for u, g, d in TAKEN
    ]
    games = [
        {
            "publisher": "K",
            "genres": ["Action", f"g{g}"],
            "app_name": "n",
            "release_date": "2018-01-04",
        }
        | {
            "specs": ["Single-player"],
            "price": 4.99 if g % 2 else "Free to Play",
            "id": f"{70 + g}",
        }
        | ({"developer": "K"} if g % 2 else {})
        for g in range(10)
    ]
    files = {
        "steam_reviews.json.gz": lines(reviews, literal),
        "steam_games.json.gz": lines([{"app_name": "Log Challenge"}, *games], literal),
    }
    store, samples = prepared("steam", files)
    check_interactions(store, samples, lambda u: f"Chaos {u}", lambda g: f"{70 + g}")
    assert samples[0]["history"][0]["genres"] == ["Action", "g0"]
    assert [s["developer"] for s in samples[:10:5]] == ["K", None]


def test_yelp(prepared):
    reviews = [
        {
            "review_id": f"r{u}{d}",
            "user_id": f"U{u}",
            "business_id": f"P{g}",
            "stars": 3.0,
            "useful": 0,
        }
        | {"text": "t", "date": f"2018-07-{10 + d} 22:09:11"}
        for u, g, d in TAKEN
    ]
    places = [
        {
            "business_id": f"P{g}",
            "name": "n",
            "city": "Reno",
            "latitude": 1.5,
            "stars": 5.0,
            "review_count": 7,
        }
        | {"attributes": {"WiFi": "u'free'"} if g % 2 else None, "hours": None, "is_open": 0}
        | {"categories": "Doctors, Naturopathic/Holistic" if g % 2 else None}
        for g in range(10)
    ]
    files = {
        "yelp_academic_dataset_review.json": lines(reviews),
        "yelp_academic_dataset_business.json": lines(places),
    }
    store, samples = prepared("yelp", files)
    check_interactions(store, samples, lambda u: f"U{u}", lambda g: f"P{g}")
    assert samples[0]["categories"] == ["Doctors", "Naturopathic/Holistic"]
    assert samples[5]["categories"] == []
    assert set(values(samples, "city")) == {"Reno"}


def test_movielens_implicit(prepared):
    ratings = [(u, 70 + g, 4.5, 1_147_880_044 + d * DAY) for u, g, d in TAKEN]
    ratings += [(0, 99, 3.5, 1_147_880_044 + 1)]  # not liked
    films = [
        (70 + g, '"Lives of Others, The (2006)"', "(no genres listed)" if g else "Drama|War")
        for g in range(10)
    ]
    files = {
        "ratings.csv": table(("userId", "movieId", "rating", "timestamp"), ratings),
        "movies.csv": table(("movieId", "title", "genres"), [*films, (99, "Toy", "Comedy")]),
    }
    _, samples = prepared("movielens_implicit", files)
    positives = samples[::5]
    assert len(samples) == 60 * 5
    assert values(samples, "label") == [1, 0, 0, 0, 0] * 60
    assert values(positives, "item") == [70 + good for _, good, _ in TAKEN[10:]]
    assert items(positives[-10]) == [70 + day for day in range(6)]  # of user 0
    assert {tuple(s["genres"]) for s in samples if s["item"] == 70} == {("Drama", "War")}
    assert {tuple(s["genres"]) for s in samples if 70 < s["item"] < 80} == {()}
    negatives = {s["item"] for s in samples if s["user_id"] == 0 and not s["label"]}
    assert 99 not in negatives, "it is rated"


def test_criteo(prepared):
    rows = [
        [
            i % 4 == 0,
            *(i + k if k != 1 else -1 for k in range(13)),
            *(f"{k + i // 30:08x}" for k in range(26)),
        ]
        for i in range(100)
    ]
    rows = [[int(row[0]), *row[1:]] for row in rows]
    rows[0][3] = rows[0][14] = ""  # I3 and C1 are missing
    store, samples = prepared("criteo", {"train.txt": table(None, rows, "\t")})
    assert values(samples, "label") == [int(i % 4 == 0) for i in range(100)]
    assert [len(store.split(name)) for name in SPLITS] == [80, 10, 10]
    assert not store.schema.sequences
    assert samples[0]["C1"] is None and samples[0]["C2"] == "00000001"
    assert samples[99]["C1"] is None, "test alone has it"
    assert store.vocabulary("C1").counts.tolist()[1:] == [29, 30, 20]
    numbers = np.array([math.log1p(i) for i in range(80)])
    expected = (np.log1p(99) - numbers.mean()) / numbers.std()
    assert store.column("fields/I1")[99] == pytest.approx(expected, rel=1e-5)
    assert np.isnan(store.column("fields/I3")[0])
    assert not store.column("fields/I2").any(), "all are −1"


def test_avazu(prepared):
    names = ["id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category"]
    names += ["app_id", "app_domain", "app_category", "device_id", "device_ip", "device_model"]
    names += ["device_type", "device_conn_type", *(f"C{k}" for k in range(14, 22))]
    constant = {"site_id": "1fbe01fe", "device_id": "a99f214a", "C1": 1005, "C20": -1}
    rows = []
    for i in range(240):  # one an hour from 21 October on
        values_of_row = dict.fromkeys(names, 7) | constant
        values_of_row |= {"id": 10**18 + i, "click": int(i % 3 == 0), "device_ip": f"{i // 4:08x}"}
        values_of_row |= {"hour": f"1410{21 + i // 24}{i % 24:02}"}
        rows.append(values_of_row.values())
    store, samples = prepared("avazu", {"train.gz": table(names, rows)})
    assert [len(store.split(name)) for name in SPLITS] == [8 * 24, 24, 24]
    assert values(samples, "label") == [int(i % 3 == 0) for i in range(240)]
    assert samples[0]["C20"] == -1
    assert samples[0]["site_id"] == "1fbe01fe"
    assert samples[0]["device_ip"] == "00000000" and samples[-1]["device_ip"] is None
    assert not store.schema.sequences


def test_taobao_ads(prepared):
    start = 1_494_000_000  # 5 May 2017
    shown = [
        (u, start + d * DAY + u, 100 + (u + d) % 5, "430548_1007", int(u != d % 4), int(u == d % 4))
        for d in range(9)
        for u in range(4)
    ]
    behaviors = [
        (
            u,
            start + (d - 3) * DAY + u,
            ("pv", "cart", "buy")[d % 3],
            6000 + d % 2,
            90 if d % 2 else "NULL",
        )
        for d in range(12)
        for u in range(5)
    ]
    behaviors += behaviors[:1]  # twice within a second
    ads = [
        (100 + a, 6000 + a % 2, 80 + a, a, "NULL" if a == 2 else 90 + a % 2, 170.0)
        for a in range(5)
    ]
    profile = [(u, 0, 5, 2, 5, "", 3, 0, "") for u in range(5)]
    files = {
        "raw_sample.csv": table(
            ("user", "time_stamp", "adgroup_id", "pid", "nonclk", "clk"), shown
        ),
        "behavior_log.csv": table(("user", "time_stamp", "btag", "cate", "brand"), behaviors),
        "ad_feature.csv": table(
            ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price"), ads
        ),
        "user_profile.csv": table(
            (
                *("userid", "cms_segid", "cms_group_id", "final_gender_code", "age_level"),
                *("pvalue_level", "shopping_level", "occupation", "new_user_class_level "),
            ),
            profile,
        ),
    }
    store, samples = prepared("taobao_ads", files)
    assert [len(store.split(name)) for name in SPLITS] == [6 * 4, 4, 8]
    first = samples[0]  # of user 0, on the log's fourth day
    assert (first["item"], first["cate"], first["brand"], first["label"]) == (100, 6000, 90, 1)
    past = [(6000, None, "pv")] * 2 + [(6001, 90, "cart"), (6000, None, "buy")]
    assert [(b["cate"], b["brand"], b["btag"]) for b in first["history"]] == past
    assert {s["brand"] for s in samples if s["item"] == 102} == {None}
    assert first["pvalue_level"] is None and first["age_level"] == 5
    assert values(samples, "label") == [click for *_, click in shown]


def test_taobao_userbehavior(prepared):
    start = 1_511_600_000  # 25 November 2017
    rows = [
        (u, 10 + (u + d) % 20, 7 + (u + d) % 2, behavior, start + d * DAY + 60 * u + k)
        for d in range(9)
        for u in range(4)
        for k, behavior in enumerate(("pv", "pv", "fav", "buy"))
    ]
    store, samples = prepared("taobao_userbehavior", {"UserBehavior.csv": table(None, rows)})
    assert [len(store.split(name)) for name in SPLITS] == [7 * 20, 20, 20]
    positive = samples[20]  # what user 0 buys on the second day
    assert (positive["item"], positive["category"], positive["label"]) == (11, 8, 1)
    kinds = [(b["item"], b["behavior"]) for b in positive["history"]]
    assert kinds == [
        (10, "pv"),
        (10, "pv"),
        (10, "fav"),
        (10, "buy"),
        (11, "pv"),
        (11, "pv"),
        (11, "fav"),
    ]
    for sample in samples:
        assert sample["category"] == 7 + sample["item"] % 2


def test_every_spec_is_tested():
    tested = {name for name in globals() if name.startswith("test_")}
    for path in SPECS.glob("*.toml"):
        assert any(path.stem.startswith(name.removeprefix("test_")) for name in tested), path
