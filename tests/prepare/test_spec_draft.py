"""Drafts of specs: what is guessed of typical files, and that `prepare log` reads it."""

import gzip
import sys
import tomllib

import numpy as np
import polars as pl
import pytest

from din_jax.errors import DinError
from din_jax.prepare import __main__ as commands, log
from din_jax.prepare.spec_draft import draft

ROWS, USERS, ITEMS = 400, 30, 40
RNG = np.random.default_rng(0)
USER, ITEM = np.sort(RNG.integers(USERS, size=ROWS)), RNG.integers(ITEMS, size=ROWS)
SECONDS = 1_511_544_070 + RNG.integers(10**5, size=ROWS)
IMPRESSIONS = {
    "user_id": USER,
    "video_id": ITEM,
    "date": 20220408,
    "time_ms": SECONDS * 1000,
    "is_click": RNG.integers(2, size=ROWS),
    "long_view": RNG.integers(2, size=ROWS),
    "play_time_ms": RNG.integers(10**5, size=ROWS),
    "tab": ITEM % 3,
}
VIDEOS = {
    "video_id": np.arange(ITEMS),
    "author_id": np.arange(ITEMS) // 2,
    "the tag": ["3|4", "7"] * (ITEMS // 2),
    "duration": RNG.random(ITEMS),
    "title": ["the cat sat down"] * ITEMS,
}
PEOPLE = {
    "user_id": np.arange(USERS),
    "tab": np.arange(USERS) % 4,
    "fans": 97 * np.arange(USERS) + 2,
}


def write(folder, name, columns, **options):
    path = folder / name
    frame = pl.DataFrame(columns)
    if name.endswith(".parquet"):
        frame.write_parquet(path)
    else:
        text = frame.write_csv(**options).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def parsed(*files):
    return tomllib.loads(draft(files))


def test_labelled_impressions_with_side_tables_are_prepared_as_drafted(
    tmp_path, monkeypatch, capsys
):
    files = [
        write(tmp_path, "videos.csv", VIDEOS, separator=";"),
        write(tmp_path, "people.tsv.gz", PEOPLE, separator="\t"),
        write(tmp_path, "log.parquet", IMPRESSIONS),
    ]
    out = tmp_path / "specs" / "first.toml"
    out.parent.mkdir()
    arguments = ["prepare", "spec", *map(str, files), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    for status in (0, 1):  # the second time the file exists
        with pytest.raises(SystemExit) as ended:
            commands.main()
        assert ended.value.code == status
    assert "first.toml exists; delete it" in capsys.readouterr().err
    spec = tomllib.loads(out.read_text())
    assert spec == {
        "impressions": {
            "path": "../log.parquet",
            "label": "is_click",
            "user": "user_id",
            "item": "video_id",
            "time": "time_ms",
        },
        "items": {
            "path": "../videos.csv",
            "delimiter": ";",
            "item": "video_id",
            "columns": {"author_id": {}, "the_tag": {"column": "the tag", "separator": "|"}},
        },
        "users": {"path": "../people.tsv.gz", "user": "user_id", "columns": {"tab": {}}},
        "split": {"by": "time", "validation": 0.1, "test": 0.1},
    }
    text = out.read_text()
    for comment in (
        '# also 0 and 1: ["long_view"]',
        '# known beforehand, for profile, ad or context? ["date", "tab"]',
        '# numbers, for context = { NAME = { numeric = "log1p" } }: ["play_time_ms"]',
        '# duration = { numeric = "log1p" }',
        "# title = {} # text",
    ):
        assert comment in text.splitlines()
    log.prepare(out, tmp_path / "store")


def test_a_log_without_a_header_is_named_by_its_values(tmp_path):
    taobao = {
        **{"user": USER, "item": ITEM + 10**6, "category": ITEM % 25 * 1000},
        **{"behavior": ["pv", "buy"] * (ROWS // 2), "time": SECONDS},
    }
    taobao = parsed(write(tmp_path, "UserBehavior.csv", taobao, include_header=False))
    assert taobao["impressions"]["columns"] == ["user", "item", "category", "behavior", "time"]
    assert taobao["impressions"]["ad"] == ["category"]
    assert taobao["negatives"] == {"per_positive": 4, "by": "popularity^0.75"}
    ratings = {
        **{"u": [f"A{u}X" for u in USER], "i": [f"{i:010}" for i in ITEM]},
        **{"r": ITEM % 5 + 1.0, "t": SECONDS},
    }
    amazon = parsed(write(tmp_path, "ratings.csv", ratings, include_header=False))
    assert amazon["impressions"]["columns"] == ["user", "item", "rating", "time"]
    assert "label" not in amazon["impressions"] and "ad" not in amazon["impressions"]


def test_ratings_with_a_header(tmp_path):
    ratings = {"userId": USER, "movieId": ITEM, "rating": ITEM % 9 / 2, "timestamp": SECONDS}
    movies = {
        "movieId": np.arange(ITEMS),
        "title": ["Film, The (1999)"] * ITEMS,
        "genres": ["Drama|Comedy", "Comedy"] * (ITEMS // 2),
    }
    files = write(tmp_path, "movies.csv", movies), write(tmp_path, "ratings.csv", ratings)
    assert parsed(*files) == {
        "impressions": {
            **{"path": str(files[1]), "user": "userId", "item": "movieId", "time": "timestamp"}
        },
        "negatives": {"per_positive": 4, "by": "popularity^0.75"},
        "items": {
            **{"path": str(files[0]), "item": "movieId"},
            "columns": {"genres": {"separator": "|"}},
        },
        "split": {"by": "time", "validation": 0.1, "test": 0.1},
    }


def test_what_is_no_label_and_no_field_of_the_item(tmp_path):
    each_once = {"user": USER, "item": np.arange(ROWS), "label": ITEM % 3, "shop": ITEM % 4}
    spec = parsed(write(tmp_path, "log.parquet", each_once))
    assert spec["impressions"].keys() == {"path", "user", "item"}  # and a comment asks for a time
    assert "negatives" in spec


def test_further_tables(tmp_path):
    impressions = write(tmp_path, "log.parquet", IMPRESSIONS)
    clicks = {"uid": USER, "video_id": ITEM, "day": [["a"], ["b", "c"]] * (ROWS // 2)}
    prices = {
        **{"video_id": np.arange(ITEMS) // 2, "since": pl.Series(SECONDS[:ITEMS]) * 1000},
        **{"author_id": np.arange(ITEMS), "blob": [b"\xff"] * ITEMS, "none": [None] * ITEMS},
    }
    spec = parsed(
        impressions,
        write(tmp_path, "clicks.parquet", clicks),
        write(tmp_path, "other.csv", IMPRESSIONS),  # the same columns again: a comment
        write(tmp_path, "1 prices.parquet", prices),
        write(tmp_path, "videos.csv", VIDEOS),
        write(tmp_path, "numbers.csv", {"video_id": np.arange(ITEMS), "x": RNG.random(ITEMS)}),
        write(tmp_path, "unknown.csv", {"a": ["b"], "c": ["d"]}),
    )
    assert spec["behaviours"] == {
        **{"path": str(tmp_path / "clicks.parquet"), "user": "uid", "item": "video_id"},
        "prior": True,
    }
    assert spec["items"].keys() == {"items_1_prices", "videos"}
    assert spec["items"]["items_1_prices"]["valid_from"] == "since"
    assert spec["items"]["items_1_prices"]["columns"] == {"author_id": {}}
    # A field's name is unique.
    assert spec["items"]["videos"]["columns"].keys() == {"item_author_id", "the_tag"}
    path = tmp_path / "spec.toml"
    path.write_text(draft([impressions, tmp_path / "clicks.parquet", tmp_path / "videos.csv"]))
    log.prepare(path, tmp_path / "store")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.csv").touch()
    (tmp_path / "latin.csv").write_bytes(b"user,\xe9\n1,2\n")
    (tmp_path / "log.dat").touch()
    (tmp_path / "log.parquet").write_text("text")
    for name, message in (
        ("none.csv", "none.csv: no such file; expected a Parquet or CSV"),
        (".", "is a folder; name one of its files"),
        ("log.dat", r"log.dat: expected a name that ends with .parquet, .csv"),
        ("empty.csv", r"empty.csv: cannot be read \(.*\); expected Parquet, or CSV in UTF-8"),
        ("latin.csv", r"latin.csv: cannot be read"),
        ("log.parquet", r"log.parquet: cannot be read"),
    ):
        with pytest.raises(DinError, match=message):
            draft([tmp_path / name])
    text = draft([write(tmp_path, "unknown.csv", {"a": ["b"], "c": ["d"]})])
    assert "# No file has a column like a user and one like an item: add [impressions]." in text
