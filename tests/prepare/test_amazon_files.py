"""The layouts of Amazon's releases: the same reviews give the same store, in each of them."""

import gzip
import json

import numpy as np
import pytest
from test_prepare_amazon import META, REVIEWS, random_reviews

from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.prepare import amazon, text_files

GOODS = {good["asin"]: good["categories"][-1] for good in META}
NEEDLESS = {"images": [], "text": 'it\'s "fine"', "rating": 5.0}


def review_lines(layout, reviews):
    for number, (user, good, seconds) in enumerate(reviews):
        if layout == "2023":
            line = {"asin": f"{good}-{number % 3}", "parent_asin": good, "user_id": user}
            line |= NEEDLESS | {"timestamp": seconds * 1000 + 789, "verified_purchase": True}
        else:
            line = {"reviewerID": user, "asin": good, "unixReviewTime": seconds, "overall": 5.0}
        if layout == "2018":
            line |= {"verified": True, "style": {"Size:": " 1"}, "image": None, "vote": "2"}
        yield json.dumps(line)


def good_lines(layout, goods):
    for good, path in goods.items():
        if layout == "2014":
            yield repr({"asin": good, "title": NEEDLESS["text"], "categories": [["a", "b"], path]})
        elif layout == "2018":
            line = {"category": path, "also_buy": ["g9"], "price": None, "asin": good}
            yield json.dumps(line)
        else:
            line = {"main_category": "E", "title": None, "categories": path, "parent_asin": good}
            yield json.dumps(line)


def write(folder, layout, reviews=REVIEWS, goods=GOODS):
    """Two plain files; times are after 1973, as milliseconds must be."""
    reviews = [(user, good, 10**9 + when) for user, good, when in reviews]
    for name, lines in (
        ("reviews.jsonl", review_lines(layout, reviews)),
        ("meta.jsonl", good_lines(layout, goods)),
    ):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def prepare(folder, out="store"):
    amazon.prepare(folder / "reviews.jsonl", folder / "meta.jsonl", folder / out)
    return Store(folder / out)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("2014")
    write(folder, "2014")
    return prepare(folder)


@pytest.mark.parametrize("layout", ["2014", "2018", "2023"])
def test_every_layout_gives_the_same_store(tmp_path, layout, expected, monkeypatch):
    write(tmp_path, layout)
    store = prepare(tmp_path)
    assert store.fingerprint == expected.fingerprint
    assert store.origin == expected.origin | {"layout": layout}
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 120)
    assert prepare(tmp_path, "in blocks").fingerprint == expected.fingerprint
    for name in ("reviews.jsonl", "meta.jsonl"):
        data = (tmp_path / name).read_bytes().replace(b"\n", b"\r\n\r\n")
        (tmp_path / name).write_bytes(gzip.compress(b"\xef\xbb\xbf\r\n" + data))
    assert prepare(tmp_path, "zipped").fingerprint == expected.fingerprint


@pytest.mark.parametrize("layout", ["2014", "2018", "2023"])
def test_a_review_that_stands_twice_counts_once(tmp_path, layout):
    reviews = random_reviews(users=40)
    goods = {good: ["E", "c"] for _, good, _ in reviews}
    rng = np.random.default_rng(0)
    twice = [reviews[i] for i in rng.permutation(np.repeat(np.arange(len(reviews)), 2))]
    stores = []
    # Reviews of equal user and second keep the file's order: that of the first of two.
    for name, lines in (("once", dict.fromkeys(twice)), ("twice", twice)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, layout, lines, goods)
        stores.append(prepare(tmp_path / name))
    once, both = stores
    assert once.fingerprint == both.fingerprint
    assert (once.origin["duplicate_reviews"], once.origin["notes"]) == (0, [])
    assert both.origin["duplicate_reviews"] == len(reviews) == both.origin["reviews"]
    (note,) = both.origin["notes"]
    assert note.startswith(f"{len(reviews)} of {2 * len(reviews)} reviews stand twice")


def test_few_duplicates_are_counted_without_a_note(tmp_path):
    reviews = random_reviews()
    goods = {good: ["E", "c"] for _, good, _ in reviews}
    write(tmp_path, "2014", [*reviews, reviews[3]], goods)
    origin = prepare(tmp_path).origin
    assert (origin["duplicate_reviews"], origin["notes"]) == (1, [])


def test_reviews_of_a_good_at_several_times_all_count(expected):
    # Ann's last review, of g1, is her second of it; she has four positives and Bob has one.
    assert expected.origin["reviews"] == len(REVIEWS)
    assert expected.origin["ad_in_own_history"] == (
        "label 1 20.0%, label 0 0.0%; last behaviour: label 1 0.0%, label 0 0.0%"
    )


def test_reviews_repeated_at_another_time_are_noted(tmp_path):
    # Each review once more, a second later: not equal, but the good is its own last behaviour.
    reviews = [(u, f"g{g}", 10 * g + s) for u in "abcd" for g in range(9) for s in (0, 1)]
    other = [("e", f"g{g}", g) for g in range(9, 20)]
    write(tmp_path, "2018", reviews + other, {f"g{g}": ["E", "c"] for g in range(20)})
    origin = prepare(tmp_path).origin
    assert origin["duplicate_reviews"] == 0
    (note,) = origin["notes"]
    # 36 of 4 · 17 + 10 positives.
    assert note.startswith(
        "the ad is the last behaviour of its own history in 46.2% of the samples"
    )


def category_names(store):
    """{good: its category}."""
    goods, rows = store.column("events/history/item"), store.column("events/history/category")
    items, names = store.vocabulary("item").ids, store.vocabulary("category").ids
    return {items[int(g)]: names[int(c)] for g, c in zip(goods, rows, strict=True)}


@pytest.mark.parametrize(
    ("layout", "key", "goods"),
    [
        ("2018", "category", {"g1": ["E", "tv", "</span></span>"], "g2": [], "g3": "", "g4": None}),
        ("2023", "categories", {"g1": ["E", "tv"], "g2": [], "g3": [], "g4": None}),
    ],
)
def test_a_good_may_have_no_path(tmp_path, layout, key, goods):
    write(tmp_path, layout, goods=goods)
    lines = [json.loads(line) for line in (tmp_path / "meta.jsonl").read_text().splitlines()]
    lines[-1]["main_category"] = None
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # In 2023 the main category stands in.
    main = "E" if layout == "2023" else None
    assert category_names(prepare(tmp_path)) == {
        "g1": "tv", "g2": main, "g3": main, "g4": None, "g5": None, "g6": None
    }  # fmt: skip


ASIN, PARENT = '{"asin": "g1", ', '{"parent_asin": "g1", '
NO_GOOD = "meta.jsonl, line 1: .* is not a good; expected "


@pytest.mark.parametrize(
    ("reviews", "message"),
    [
        (
            '{"user": "a", "item": "b", "ts": 1}',
            "reviews.jsonl, line 1: found the keys user, item, ts; expected reviews in the layout "
            r"of 2014 or 2018 \(reviewerID, asin, unixReviewTime\) or of 2023 \(user_id, parent_",
        ),
        (next(good_lines("2014", GOODS)), "keys asin, title, categories .are the two files swap"),
        (next(good_lines("2018", GOODS)), "line 1: found the keys .* swapped"),
        (next(good_lines("2023", GOODS)), "line 1: found the keys .* swapped"),
        ("a,g1,5.0,1", "line 1: 'a,g1,5.0,1' is not a review; .*with reviewerID .* or with user_"),
        ("[", r"line 1: '\[' is not a review"),
    ],
)
def test_reviews_of_no_layout_are_one_clear_error(tmp_path, reviews, message):
    write(tmp_path, "2014")
    (tmp_path / "reviews.jsonl").write_text(f"{reviews}\n")
    with pytest.raises(DinError, match=message):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (
            '{"id": 1, "path": []}',
            "meta.jsonl, line 1: found the keys id, path; expected goods in the layout of "
            "2014: a Python literal .*; or 2018: JSON .*; or 2023: JSON",
        ),
        ("asin,category", NO_GOOD + "a Python literal .*, or JSON .*, or JSON"),
        (ASIN + '"categories": ["a"]}', NO_GOOD + "a Python literal"),
        (ASIN + '"category": [["a"]]}', NO_GOOD + r"JSON like \{.asin"),
        (ASIN + '"category": "E"}', NO_GOOD + r"JSON like \{.asin"),
        (PARENT + '"categories": [1]}', NO_GOOD + r"JSON like \{.parent_asin"),
        (PARENT + '"main_category": 1}', NO_GOOD + r"JSON like \{.parent_asin"),
        (
            PARENT + '"categories": ["E"]}',
            "meta.jsonl has the layout of 2023, but the reviews have that of 2014 or 2018; "
            "expected both files of one release",
        ),
        (ASIN + '"title": "no path at all"}', "a category for none of the 6 goods"),
    ],
)
def test_goods_of_no_layout_are_one_clear_error(tmp_path, meta, message):
    write(tmp_path, "2014")
    (tmp_path / "meta.jsonl").write_text(f"{meta}\n")
    with pytest.raises(DinError, match=message):
        prepare(tmp_path)
    assert not (tmp_path / "store").exists()


def test_goods_of_2018_for_reviews_of_2023_are_refused(tmp_path):
    write(tmp_path, "2023")
    (tmp_path / "meta.jsonl").write_text("".join(f"{x}\n" for x in good_lines("2018", GOODS)))
    with pytest.raises(DinError, match="has the layout of 2018, but the reviews have that of 2023"):
        prepare(tmp_path)


def test_seconds_in_place_of_milliseconds_are_refused(tmp_path):
    write(tmp_path, "2023")
    text = (tmp_path / "reviews.jsonl").read_text().replace("789,", ",")
    (tmp_path / "reviews.jsonl").write_text(text)
    with pytest.raises(DinError, match="latest timestamp is 1000000040; expected milliseconds"):
        prepare(tmp_path)
