"""Titles of items, by `prepare log`, of MovieLens and of Amazon."""

import numpy as np
import polars as pl
import pytest
import test_prepare_amazon
from movielens_data import prepare as prepare_movielens, raw
from small_logs import IMPRESSIONS, KNOWN, SPLIT, impressions, write

from din_jax.data.store import Store
from din_jax.data.titles import Titles
from din_jax.errors import DinError
from din_jax.prepare import log

ITEMS = """
[items]
path = "items.csv"
item = "id"
title = "name"
"""


def store_of(folder, items, spec=ITEMS, **options):
    path = write(
        folder, IMPRESSIONS + spec + SPLIT + KNOWN, impressions_csv=impressions(), items_csv=items
    )
    log.prepare(path, folder / "store", **options)
    return Store(folder / "store")


def test_a_log_keeps_the_titles_of_its_items(tmp_path):
    items = pl.DataFrame(
        {
            "id": [10, 11, 12, 13, 99],
            "name": ["Ten", '  Élan, "vital"', None, "Ten", "never seen"],
            "brand": list("ababa"),
        }
    )
    spec = ITEMS + 'columns = ["brand"]\n'
    titles = Titles.of_store(store_of(tmp_path, items, spec), "item")
    ids = [10, 11, 12, 13, 14, 99]
    assert titles.of_ids(ids) == ["Ten", 'Élan, "vital"', None, "Ten", None, None]
    assert titles.of_ids(["11", "x", None]) == ['Élan, "vital"', None, None]
    assert titles.names(range(6)) == ["unknown", "Ten", 'Élan, "vital"', "12", "Ten", "14"]
    assert Titles.of_store(Store(tmp_path / "store"), "brand").names([0, 1]) == ["unknown", "a"]


def test_titles_change_nothing_that_is_trained_on(tmp_path):
    items = pl.DataFrame({"id": [10, 11], "brand": ["a", "b"], "name": ["x", "y"]})
    stores = [
        store_of(tmp_path / name, items, spec + 'columns = ["brand"]\n')
        for name, spec in (("with", ITEMS), ("without", ITEMS.replace('title = "name"\n', "")))
    ]
    assert stores[0].fingerprint == stores[1].fingerprint
    assert (stores[0].path / "titles" / "item.parquet").exists()
    assert not (stores[1].path / "titles").exists()


def test_rows_that_differ_in_their_title_alone_are_one_item(tmp_path):
    items = pl.DataFrame(
        {"id": [10, 10, 11], "name": ["old", "new", "b"], "brand": ["a", "a", "b"]}
    )
    store = store_of(tmp_path, items, ITEMS + 'columns = ["brand"]\n')
    assert Titles.of_store(store, "item").of_ids([10, 11]) == ["new", "b"]


def test_titles_alone_are_an_items_table(tmp_path):
    store = store_of(tmp_path, pl.DataFrame({"id": [10, 11], "name": [1984, 2001]}))
    assert Titles.of_store(store, "item").of_ids([10, 11]) == ["1984", "2001"]


def test_a_missing_or_nested_title_is_an_error(tmp_path):
    with pytest.raises(DinError, match="name"):
        store_of(tmp_path / "missing", pl.DataFrame({"id": [10], "brand": ["a"]}))
    spec = ITEMS.replace("items.csv", "items.parquet")
    frame = pl.DataFrame({"id": [10], "name": [["a", "b"]]})
    path = write(
        tmp_path / "nested",
        IMPRESSIONS + spec + SPLIT,
        impressions_csv=impressions(),
        items_parquet=frame,
    )
    with pytest.raises(DinError, match=r"'name' of \[items\] has type List.* expected text"):
        log.prepare(path, tmp_path / "nested" / "store")


def test_films_have_the_titles_of_movies_csv(tmp_path):
    store = prepare_movielens(tmp_path)
    movies = raw()[1]
    ids = store.vocabulary("film").ids[1:]
    expected = [movies[film][0] if film in movies else None for film in ids]
    assert None in expected
    assert Titles.of_store(store, "film").of_ids(ids) == expected


def test_goods_have_the_titles_of_the_metadata(tmp_path):
    meta = [dict(good) for good in test_prepare_amazon.META]
    meta[0]["title"] = " A &amp; B\tC "
    test_prepare_amazon.write(tmp_path, meta=meta)
    test_prepare_amazon.prepare(tmp_path)
    titles = Titles.of_store(Store(tmp_path / "store"), "item")
    assert titles.of_ids(["g1", "g2", "g3"]) == ["A & B C", None, 'it\'s "odd"']


def test_damaged_titles_are_an_error(tmp_path):
    store = store_of(tmp_path, pl.DataFrame({"id": [10, 11], "name": ["a", "b"]}))
    file = store.path / "titles" / "item.parquet"
    pl.DataFrame({"row": np.arange(2), "title": ["a", "b"]}).write_parquet(file)
    with pytest.raises(DinError, match=r"2 titles, but the vocabulary has 7 ids; prepare"):
        Titles.of_store(store, "item")
    file.write_bytes(b"no Parquet")
    with pytest.raises(DinError, match=r"item\.parquet: missing or damaged"):
        Titles.of_store(store, "item")
