"""A later day prepared like an earlier one: nothing is fitted, and the inputs are the same."""

import polars as pl
import pytest
from small_logs import IMPRESSIONS, KNOWN, SPLIT, histories, ids, impressions, prepared, write

from din_jax.data.store import UNLABELLED, Store
from din_jax.errors import DinError
from din_jax.prepare import log

FIELDS = """[impressions.context]
tab = {}
price = {}
cost = {column = "price", numeric = "log1p"}
"""
TABLES = KNOWN + "tab.unknown_share = 0\nprice.buckets = 4\n"
OTHERS = """
[behaviours]
path = "views.csv"
user = "user"
item = "item"
time = "time"
[items]
path = "items.csv"
item = "item"
columns = ["kind"]
"""
SPEC = IMPRESSIONS + FIELDS + OTHERS
TO_SCORE = SPEC.replace('label = "click"\n', "")
VIEWS = pl.DataFrame({"user": [k % 5 for k in range(30)], "item": [10 + k % 7 for k in range(30)]})
VIEWS = VIEWS.with_columns(time=pl.int_range(30) + 980)
ITEMS = pl.DataFrame({"item": range(10, 17), "kind": [f"k{k % 3}" for k in range(7)]})


def day(rows=50, shift=0, late=0):
    return impressions(
        rows,
        item=lambda k: 10 + shift + k % 7,
        time=lambda k: 1000 + late + k,
        tab=lambda k: f"t{k % 4 + shift}",
        price=lambda k: None if k % 9 == 8 else k % 13 * 1.5,
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    return prepared(
        folder, SPEC + SPLIT + TABLES, impressions_csv=day(), views_csv=VIEWS, items_csv=ITEMS
    )


def later(folder, first, spec=TO_SCORE + TABLES, frame=None, **tables):
    tables = {"views_csv": VIEWS, "items_csv": ITEMS} | tables
    frame = day(20, shift=4, late=100) if frame is None else frame
    return prepared(folder, spec, like=first.path, impressions_csv=frame, **tables)


def test_a_later_day_has_the_vocabularies_of_the_first(tmp_path, first):
    frame = day(20, shift=4, late=100)
    store = later(tmp_path, first)
    assert store.schema == first.schema
    for table in first.schema.tables:
        for mine, other in zip(
            store.vocabulary(table.name), first.vocabulary(table.name), strict=True
        ):
            assert pl.Series(mine).equals(pl.Series(other))
    assert store.origin["numbers"] == first.origin["numbers"]
    # Unlabelled, and all in test.
    assert (store.column("samples/label") == UNLABELLED).all()
    assert [len(store.split(s)) for s in ("train", "validation", "test")] == [0, 0, 20]
    known = {name: set(first.vocabulary(name).ids[1:]) for name in ("item", "tab")}
    for name in ("item", "tab"):
        assert ids(store, name) == [v if v in known[name] else None for v in frame[name]]
    views = VIEWS.filter(pl.col("item").is_in(list(known["item"])))
    expected = [views.filter(user=user)["item"].to_list() for user in frame["user"]]
    assert histories(store) == expected
    # A number becomes what it was on the first day.
    for field in ("price", "cost"):
        value_of = dict(zip(day()["price"], first.column(f"fields/{field}").tolist(), strict=True))
        got = store.column(f"fields/{field}").tolist()
        for price, value in zip(frame["price"], got, strict=True):
            assert value == value_of[price] or (
                price is None and field == "cost" and value != value
            )


def test_a_later_day_with_labels_and_a_split(tmp_path, first):
    frame = day(50, late=100)
    store = later(tmp_path, first, SPEC + SPLIT + TABLES, frame)
    assert [len(store.split(s)) for s in ("train", "validation", "test")] == [30, 10, 10]
    assert store.column("samples/label").tolist() == frame["click"].to_list()
    frame = frame.with_columns(click=pl.when(pl.col("time") > 1140).then(None).otherwise("click"))
    store = later(tmp_path / "b", first, SPEC + TABLES, frame)
    assert store.column("samples/label").tolist()[-9:] == [UNLABELLED] * 9
    assert len(store.split("test")) == 50


def test_one_row_of_a_new_user_and_item_is_scored(tmp_path, first):
    frame = day(1).with_columns(user=pl.lit("new"), item=pl.lit("x-1"))
    store = later(tmp_path, first, frame=frame)
    assert ids(store, "user_id") == ids(store, "item") == [None]
    assert histories(store) == [[]]
    assert not [note for note in store.origin["notes"] if "clock" in note]


TEXTS = [
    # of the first day, of the later day, and what the later day's become
    (["3.5", "4.0"], ["4.0", "4.0"], ["4.0", "4.0"]),
    (["4.0", "5.0"], ["3.5", "4.0"], [None, 4]),
    (["4", "5"], ["x", "5"], [None, 5]),
    (["4", "5"], ["5.0", "6.0"], [5, None]),
    (["a", "4"], ["4", "5"], ["4", None]),
    (["7", "8"], ["007", "8"], [None, 8]),
    (["7", "8"], [str(2**64), "8"], [None, 8]),
]


@pytest.mark.parametrize(("before", "after", "expected"), TEXTS)
def test_ids_of_a_later_day_are_those_that_are_written_so(tmp_path, before, after, expected):
    spec = IMPRESSIONS + 'context = ["tab"]\n' + SPLIT + KNOWN + "tab.unknown_share = 0\n"
    frame = impressions(tab=lambda k: before[k % 2])
    one = prepared(tmp_path / "1", spec, impressions_csv=frame)
    frame = impressions(tab=lambda k: after[k % 2])
    two = prepared(tmp_path / "2", spec, like=one.path, impressions_csv=frame)
    assert ids(two, "tab") == expected * 25


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "tab = {}\n",
            'page = {column = "tab", table = "tab"}\n',
            "missing here: tab; not there: page",
        ),
        ("tab = {}\n", "tab = {}\nhour = {}\n", "has no table hour, which the spec names"),
        (
            "tab = {}\n",
            'tab = {}\nother = {column = "tab", table = "tab"}\n',
            "not there: other",
        ),
        ("tab = {}", 'tab = {separator = "|"}', "of another kind .*: tab"),
        ("[impressions.context]", "[impressions.ad]", "of another kind .*: tab, price, cost"),
        ("price.buckets = 4\n", "", "has buckets of numbers in price, and the spec ids"),
        (', numeric = "log1p"', "", "has numbers by numeric = 'log1p' in cost, and the spec ids"),
        ('"log1p"', '"none"', "by numeric = 'log1p' in cost, .* by numeric = 'none'"),
        ('cost = {column = "price", numeric = "log1p"}\n', "", "missing here: cost"),
        ("[behaviours]", "[behaviours.views]", "missing here: history; not there: views"),
        (
            OTHERS,
            "",
            r"missing here: .*history.*is in \[behaviours\], or in \[impressions\] with a",
        ),
    ],
)
def test_a_spec_of_other_inputs_is_an_error(tmp_path, first, old, new, message):
    spec = TO_SCORE + TABLES
    assert old in spec
    with pytest.raises(DinError, match=message):
        later(tmp_path, first, spec.replace(old, new))
    assert not (tmp_path / "store").exists()


def test_a_store_of_another_preparation_and_check(tmp_path, first, planted_store):
    path = write(
        tmp_path, TO_SCORE + TABLES, impressions_csv=day(), views_csv=VIEWS, items_csv=ITEMS
    )
    with pytest.raises(DinError, match="has no table tab, price, cost, kind, which"):
        log.prepare(path, tmp_path / "store", like=planted_store)
    with pytest.raises(DinError, match="has no 'split'"):
        log.check(path)
    lines = "\n".join(log.check(path, to_score=True))
    assert "[impressions] 50 rows, 0 duplicates\n" in lines
    assert "numbers, 13 distinct, 10.0% missing: 0.0, 1.5, 3.0; from 0.0 to 18.0" in lines
    assert "nothing was written" in lines
    assert {p.name for p in tmp_path.iterdir()} == {
        *("spec.toml", "impressions.csv", "views.csv", "items.csv")
    }
    assert isinstance(first, Store)
