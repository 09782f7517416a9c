"""The Amazon protocol on a fixture small enough to count by hand."""

import functools
import gzip
import json

import numpy as np
import pytest
from stores_as_requests import assert_requests_are_batches

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.prepare import amazon, text_files

# User, good, time; not in order of time. Ann's reviews 2 and 3 fall on one second: the file's
# order decides. Bob has two reviews, so one position, and that is test. Cid has one: no position.
REVIEWS = [
    ("ann", "g3", 30),
    ("bob", "g1", 7),
    ("ann", "g1", 10),
    ("ann", "g5", 20),
    ("ann", "g2", 20),
    ("cid", "g6", 1),
    ("bob", "g4", 5),
    ("ann", "g1", 40),
]
# The last category of the last path counts; g7 is in no review; g4 has no category.
META = [
    {"asin": "g1", "categories": [["Electronics", "x"], ["Electronics", "cables"]]},
    {"asin": "g2", "categories": [["Electronics", "cables"]]},
    {"asin": "g3", "title": 'it\'s "odd"', "categories": [["Electronics", "tv"]]},
    {"asin": "g5", "categories": [["Electronics", "tv"]]},
    {"asin": "g6", "categories": [["Electronics", "audio"]]},
    {"asin": "g7", "categories": [["Electronics", "never reviewed"]]},
]


def write(folder, reviews=REVIEWS, meta=META):
    with gzip.open(folder / "reviews.json.gz", "wt") as file:
        for user, good, when in reviews:
            line = {"reviewerID": user, "asin": good, "unixReviewTime": when, "overall": 5.0}
            file.write(json.dumps(line) + "\n")
    with gzip.open(folder / "meta.json.gz", "wt") as file:
        file.writelines(f"{good!r}\n" for good in meta)


def prepare(folder, **options):
    return amazon.prepare(
        folder / "reviews.json.gz", folder / "meta.json.gz", folder / "store", **options
    )


def samples_of(store, split):
    """(user, history, good, category, label) of each sample of a split, as raw names."""
    items, categories = store.vocabulary("item").ids, store.vocabulary("category").ids
    users = store.vocabulary("user").ids
    events = store.column("events/history/item")
    return [
        (
            users[int(store.column("samples/user")[i]) + 1],
            [
                items[int(row)]
                for row in events[
                    int(store.column("sequences/history.start")[i]) : int(
                        store.column("sequences/history.end")[i]
                    )
                ]
            ],
            items[int(store.column("fields/item")[i])],
            categories[int(store.column("fields/category")[i])],
            int(store.column("samples/label")[i]),
        )
        for i in store.split(split)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    write(folder)
    prepare(folder)
    return Store(folder / "store")


def test_positions_histories_and_splits_by_hand(store):
    positives = {split: [s for s in samples_of(store, split) if s[4]] for split in SPLITS}
    # Ann, in time: g1 g5 g2 g3 g1, n = 5.
    assert positives["train"] == [
        ("ann", ["g1"], "g5", "tv", 1),
        ("ann", ["g1", "g5"], "g2", "cables", 1),
    ]
    assert positives["validation"] == [("ann", ["g1", "g5", "g2"], "g3", "tv", 1)]
    assert positives["test"] == [
        ("ann", ["g1", "g5", "g2", "g3"], "g1", "cables", 1),
        ("bob", ["g4"], "g1", "cables", 1),
    ]


def ages_of(store, split):
    """The ages of each sample's behaviours, in seconds."""
    starts, ends = (store.column(f"sequences/history.{e}").tolist() for e in ("start", "end"))
    then, now = store.column("events/history.time"), store.column("samples/time")
    return [(now[i] - then[starts[i] : ends[i]]).tolist() for i in store.split(split)]


def test_ages_by_hand(store):
    # Ann's reviews are at 10, 20, 20, 30, 40; Bob's at 5 and 7. A negative has its positive's ages.
    assert ages_of(store, "train") == [[10], [10], [10, 0], [10, 0]]
    assert ages_of(store, "validation") == [[20, 10, 10]] * 2
    assert ages_of(store, "test") == [[30, 20, 20, 10]] * 2 + [[2]] * 2


def test_ages_are_differences_of_review_times(larger):
    times = {}
    for user, _, when in random_reviews():
        times.setdefault(user, []).append(when)
    expected = {split: [] for split in SPLITS}
    for user in sorted(times):
        ordered = sorted(times[user])
        for k in range(1, len(ordered)):
            split = {1: "test", 2: "validation"}.get(len(ordered) - k, "train")
            expected[split] += [[ordered[k] - then for then in ordered[:k]]] * 2
    assert {split: ages_of(larger, split) for split in SPLITS} == expected


def test_each_position_has_one_negative_that_the_user_never_reviewed(store):
    reviewed = {user: {g for u, g, _ in REVIEWS if u == user} for user, _, _ in REVIEWS}
    for split in SPLITS:
        samples = samples_of(store, split)
        for positive, negative in zip(samples[::2], samples[1::2], strict=True):
            assert (positive[4], negative[4]) == (1, 0)
            assert positive[:2] == negative[:2]
            assert negative[2] not in reviewed[negative[0]]
            assert negative[2] in {g for _, g, _ in REVIEWS}


def test_the_catalogue_is_the_vocabulary_and_counts_are_of_training(store):
    items, counts = store.vocabulary("item")
    assert items.to_list() == [None, "g1", "g2", "g3", "g4", "g5", "g6"]
    # Training sees reviews 1 to n − 2: of Ann's five g1, g5, g2; none of Bob's or Cid's.
    assert counts.tolist() == [0, 1, 1, 0, 0, 1, 0]
    categories, counts = store.vocabulary("category")
    assert categories.to_list() == [None, "audio", "cables", "tv"]
    assert counts.tolist() == [0, 0, 2, 1]
    assert store.origin["goods_without_category"] == 1
    assert store.origin["users_without_samples"] == 1


def test_a_good_without_a_category_has_category_zero(store):
    events = store.column("events/history/item")
    g4 = store.vocabulary("item").ids.to_list().index("g4")
    assert store.column("events/history/category")[events == g4].tolist() == [0]


@functools.cache
def random_reviews(users=150, goods=80):
    rng = np.random.default_rng(1)
    popular = rng.zipf(1.5, size=1000)
    reviews = [
        (f"u{u}", f"g{popular[rng.integers(len(popular))] % goods}", int(rng.integers(50)))
        for u in range(users)
        for _ in range(rng.integers(1, 12))
    ]
    return list(dict.fromkeys(reviews))  # none stands twice


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    folder = tmp_path_factory.mktemp("larger")
    goods = [{"asin": f"g{i}", "categories": [["E", f"c{i % 9}"]]} for i in range(80)]
    write(folder, random_reviews(), goods)
    prepare(folder)
    return Store(folder / "store")


def test_no_position_is_in_two_splits(larger):
    end = larger.column("sequences/history.end")
    positions = [set(end[larger.split(s).start : larger.split(s).stop].tolist()) for s in SPLITS]
    assert all(positions)
    assert not (positions[0] & positions[1] or positions[0] & positions[2])
    assert not positions[1] & positions[2]
    # Two samples per position, and every position of every user but the first is in some split.
    assert len(larger) == 2 * sum(map(len, positions))
    start = set(larger.column("sequences/history.start").tolist())
    events = set(range(len(larger.column("events/history/item"))))
    single = events - set.union(*positions) - start
    reviews_of = np.bincount([int(u[1:]) for u, _, _ in random_reviews()])
    assert len(single) == (reviews_of == 1).sum()


def test_row_zero_is_as_frequent_among_positive_as_among_negative_ads(larger):
    label = larger.column("samples/label")
    for field in ("item", "category"):
        unknown = larger.column(f"fields/{field}") == 0
        assert unknown[label == 1].mean() == unknown[label == 0].mean() == 0


def test_negatives_are_uniform_over_the_goods_not_reviewed():
    # One user, who has reviewed goods 0 to 4 of 25, many positions.
    user, good = np.zeros(20_000, np.int64), np.arange(20_000) % 5
    drawn = amazon._negatives(user, good, 25, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=25)
    assert (counts[:5] == 0).all()
    # χ² with 19 degrees of freedom: 43.8 is its 0.999 quantile.
    assert ((counts[5:] - 1000) ** 2 / 1000).sum() < 43.8


def test_the_seed_decides_the_negatives_and_nothing_else(tmp_path):
    stores = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, random_reviews())
        prepare(tmp_path / name, seed=seed)
        stores.append(Store(tmp_path / name / "store"))
    a, b, c = stores
    assert a.fingerprint == b.fingerprint != c.fingerprint
    positive = a.column("samples/label") == 1
    ad_a, ad_c = a.column("fields/item"), c.column("fields/item")
    assert (ad_a[positive] == ad_c[positive]).all()
    assert (ad_a[~positive] != ad_c[~positive]).mean() > 0.5


def spoil(path, at, line):
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines()
    lines[at] = line
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-12])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "reviews.json.gz").unlink(), r"reviews.json.gz: No such file"),
        (lambda f: truncate(f / "reviews.json.gz"), r"reviews.json.gz: truncated or damaged"),
        (lambda f: truncate(f / "meta.json.gz"), r"meta.json.gz: truncated or damaged"),
        (lambda f: (f / "meta.json.gz").write_text("plain"), "named .gz, but it is not a gzip"),
        (lambda f: spoil(f / "reviews.json.gz", 3, "{broken"), r"line 4: '{broken' is not a rev"),
        (
            lambda f: spoil(f / "reviews.json.gz", 5, '{"reviewerID": "a", "asin": "b"}'),
            r"line 6: .* expected a JSON object with reviewerID and asin",
        ),
        (
            lambda f: spoil(f / "meta.json.gz", 1, "{'asin': 'g2', 'categories': [['a', "),
            r"line 2: .*g2.* is not a good",
        ),
        (
            lambda f: spoil(f / "meta.json.gz", 1, "{'asin': 'g2', 'categories': exit()}"),
            r"line 2: .*exit.* is not a good",
        ),
        (lambda f: write(f, meta=META[-1:]), r"a category for none of the 6 goods"),
        (
            lambda f: spoil(f / "meta.json.gz", 1, "{'asin': 'g2', 'categories': 'cables'}"),
            r"line 2: .*cables.* is not a good",
        ),
        (
            lambda f: spoil(
                f / "reviews.json.gz", 2, '{"reviewerID": "a", "asin": "b", "unixReviewTime": 1.5}'
            ),
            r"line 3: .* unixReviewTime \(whole seconds\)",
        ),
        (lambda f: write(f, reviews=[]), "contains no reviews"),
        (lambda f: write(f, reviews=REVIEWS[1:3]), "no user has more than 1 reviews"),
        (lambda f: (f / "store").mkdir(), "store exists already"),
        (
            lambda f: write(f, reviews=[("a", g, t) for t, g in enumerate(("g1", "g2") * 2)]),
            "reviewed all 2 goods",
        ),
    ],
)
def test_bad_input_is_one_clear_error_and_no_store(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(DinError, match=message):
        prepare(tmp_path)
    assert not (tmp_path / "store/schema.json").exists()


def test_lines_are_numbered_across_blocks(store, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 150)
    write(tmp_path)
    prepare(tmp_path)
    assert Store(tmp_path / "store").fingerprint == store.fingerprint
    spoil(tmp_path / "reviews.json.gz", 6, "oops")
    with pytest.raises(DinError, match="line 7: 'oops'"):
        amazon.prepare(tmp_path / "reviews.json.gz", tmp_path / "meta.json.gz", tmp_path / "x")


def test_blank_lines_are_ignored(store, tmp_path):
    write(tmp_path)
    for name, at in (("reviews", 3), ("meta", 1)):
        with gzip.open(tmp_path / f"{name}.json.gz", "rt") as file:
            lines = file.read().splitlines()
        lines.insert(at, "")
        with gzip.open(tmp_path / f"{name}.json.gz", "wt") as file:
            file.write("\n".join([*lines, "", ""]))
    prepare(tmp_path)
    assert Store(tmp_path / "store").fingerprint == store.fingerprint


def test_plain_files_are_read_too(store, tmp_path):
    write(tmp_path)
    for name in ("reviews", "meta"):
        text = gzip.decompress((tmp_path / f"{name}.json.gz").read_bytes())
        (tmp_path / f"{name}.json").write_bytes(text)
    amazon.prepare(tmp_path / "reviews.json", tmp_path / "meta.json", tmp_path / "plain")
    assert Store(tmp_path / "plain").fingerprint == store.fingerprint


def test_reviews_as_requests_have_the_batches_of_their_samples(larger):
    assert_requests_are_batches(larger, range(0, len(larger), 29))
