"""Notes of what is hardly meant: each where it is meant, and none of clean data."""

import numpy as np
import polars as pl
import pytest
from small_logs import IMPRESSIONS, KNOWN, SPLIT, ids, impressions, prepared

from din_jax.errors import DinError
from din_jax.prepare.log import sample_notes

RNG = np.random.default_rng(0)
ROWS = 2000
VALUES = {
    "user": RNG.integers(100, size=ROWS).tolist(),
    "item": RNG.integers(100, size=ROWS).tolist(),
    "click": (RNG.random(ROWS) < 0.3).astype(int).tolist(),
    # What only looks like a marker, a weight or a list.
    "tab": [
        ("home", "12:30", "a b", "no", "x-y", "0", "[new]x", "1:2:3")[k % 8] for k in range(ROWS)
    ],
    "tags": ["|".join(("new", "4:3", "16:9", "a b")[: k % 5]) or None for k in range(ROWS)],
    "number": [k % 50 - 1 if k % 50 else 7 for k in range(ROWS)],
}


@pytest.fixture(autouse=True)
def no_note_of_few_steps(monkeypatch):
    """The logs are small, which is noted of all of them."""
    monkeypatch.setattr(sample_notes, "_FEW_STEPS", 1)


def notes(folder, spec=None, fields='tab = {}\ntags = {separator = "|"}\nnumber = {}\n', **columns):
    """The notes of the clean log with other columns, whose values are functions of the row."""
    clean = {name: lambda k, v=values: v[k] for name, values in VALUES.items()}
    frame = impressions(ROWS, **{**clean, **columns})
    spec = spec or IMPRESSIONS
    tables = {"impressions_parquet" if "parquet" in spec else "impressions_csv": frame}
    text = f"{spec}[impressions.context]\n{fields}{SPLIT}"
    return prepared(folder, text, **tables).origin["notes"]


def test_clean_data_have_no_note(tmp_path):
    assert notes(tmp_path) == []
    assert notes(tmp_path / "p", IMPRESSIONS.replace("csv", "parquet")) == []


def every(number, value, otherwise):
    return lambda k: value if k % number == 0 else VALUES[otherwise][k]


@pytest.mark.parametrize(
    ("columns", "fields", "mended", "note"),
    [
        (
            {"tab": every(20, "NULL", "tab")},
            "tab = {}\n",
            'null_values = ["NULL"]',
            "[impressions] tab: column 'tab' is 'NULL' in 5.0% (100) of the rows",
        ),
        (
            {"tab": every(ROWS, r"\N", "tab")},
            "tab = {}\n",
            'null_values = ["\\\\N"]',
            r"column 'tab' is '\\N' in 1 of the rows, an id like any",
        ),
        (
            {"number": every(20, -1, "number")},
            "number = {}\n",
            'null_values = ["-1"]',
            "[impressions] number: column 'number' is '-1' in 5.0% (100) of the rows",
        ),
        (
            {"tab": every(20, " home", "tab")},
            "tab = {}\n",
            "strip = true",
            "tab: column 'tab' has spaces around 5.0% (100) of its values, ' home' for instance",
        ),
        (
            {"tags": lambda k: "a| b"},
            'tags = {separator = "|"}\n',
            "strip = true",
            "tags: column 'tags' has spaces around 50.0% (2,000) of its values, ' b' for instance",
        ),
        (
            {"user": lambda k: 500 if k % 2 else VALUES["user"][k]},
            "tab = {}\n",
            None,
            "[impressions] user: column 'user' is 500 in 50.0% (1,000) of the rows",
        ),
        (
            {},
            'tags = {separator = ","}\n',
            None,
            "tags: the separator ',' is in no value of column 'tags'",
        ),
        (
            {"tags": lambda k: "[1, 2]"},
            'tags = {separator = ","}\n',
            None,
            "tags: column 'tags': 100.0% (4,000) of its values have brackets, '[1' for instance",
        ),
        (
            {"tags": lambda k: f"[{k % 3}]"},
            "tags = {}\n",
            None,
            "tags: column 'tags': 100.0% (2,000) of its values are like '[0]', each an id",
        ),
        (
            {"tags": lambda k: "7:0.5,8:1.0"},
            "tags = {}\n",
            None,
            "tags: column 'tags': its values are like '7:0.5,8:1.0', each an id of its own",
        ),
        (
            {"tags": lambda k: "7:0.5,8:1.0"},
            'tags = {separator = ","}\n',
            None,
            "tags: column 'tags': 100.0% (4,000) of its values are like '7:0.5'; if that is an id",
        ),
        (
            {"time": lambda k: 1000 + k // 200, "item": lambda k: k % 4, "user": lambda k: k % 7},
            "tab = {}\n",
            'duplicates = "keep"',
            "of the rows (1,038) equal an earlier row in every column that the spec reads",
        ),
        (
            {"click": lambda k: 1},
            "tab = {}\n",
            None,
            "every label of train is 1: nothing can be learned from it; if the log has only what",
        ),
        (
            {"click": lambda k: VALUES["click"][k] if k < 1600 else 0},
            "tab = {}\n",
            None,
            "every label of test is 0: AUC can't be computed on it; a split without clicks shows",
        ),
        (
            {"user": lambda k: k},
            "tab = {}\n",
            None,
            "the histories of training have 0.00 behaviours on average: DIN has next to nothing",
        ),
        (
            {"item": lambda k: VALUES["item"][k] if k < 1600 else 1000 + k},
            "tab = {}\n",
            None,
            "100.0% of the ads of test were never seen in training",
        ),
    ],
)
def test_what_is_hardly_meant_is_noted(tmp_path, columns, fields, mended, note):
    found = notes(tmp_path, None, fields, **columns)
    assert any(note in text for text in found), found
    if mended:
        spec = IMPRESSIONS.replace("time_unit", f"{mended}\ntime_unit")
        assert not any(note in text for text in notes(tmp_path / "b", spec, fields, **columns))


def test_times_that_are_rounded(tmp_path):
    spec = IMPRESSIONS.replace("csv", "parquet").replace('"h"', '"s"')
    clean = dict(VALUES)
    frame = pl.DataFrame(clean).with_columns(time=1_700_000_000.0 + pl.int_range(ROWS) * 40)
    for kind, noted in ((pl.Float32, True), (pl.Float64, False)):
        store = prepared(
            tmp_path / str(kind),
            spec + SPLIT,
            impressions_parquet=frame.with_columns(pl.col("time").cast(kind)),
        )
        text = "\n".join(store.origin["notes"])
        assert ("'time' is Float32, which near 1700080000 moves in steps of 128" in text) == noted


@pytest.mark.parametrize(
    ("shift", "note"),
    [
        (-(10**4), "[behaviours] all its times, up to 2999, lie before those of [impressions]"),
        (10**4, "[behaviours] all its times, from 11000 on, lie after those of [impressions]"),
        (0, None),
    ],
)
def test_behaviours_of_another_time(tmp_path, shift, note):
    views = pl.DataFrame({"user": VALUES["item"], "item": VALUES["user"]})
    views = views.with_columns(time=pl.int_range(ROWS) + 1000 + shift)
    spec = IMPRESSIONS + SPLIT
    spec += '[behaviours]\npath = "views.csv"\nuser = "user"\nitem = "item"\ntime = "time"\n'
    frame = pl.DataFrame({**VALUES, "time": range(1000, 1000 + ROWS)})
    if shift < 0:
        frame, views = (f.with_columns(pl.col("time") + 10**4) for f in (frame, views))
    found = prepared(tmp_path, spec, impressions_csv=frame, views_csv=views).origin["notes"]
    assert found == [] if note is None else any(note in text for text in found)


def test_clicks_that_are_in_their_own_history(tmp_path):
    frame = pl.DataFrame({**VALUES, "time": range(1000, 1000 + ROWS)})
    clicks = frame.filter(pl.col("click") == 1).select("user", "item", pl.col("time") - 1)
    spec = IMPRESSIONS + SPLIT
    spec += '[behaviours]\npath = "views.csv"\nuser = "user"\nitem = "item"\ntime = "time"\n'
    found = prepared(tmp_path, spec, impressions_csv=frame, views_csv=clicks).origin["notes"]
    assert any("the ad is the last behaviour of its own history in" in text for text in found)


def test_a_log_without_users_or_times(tmp_path):
    for key in ("user", "time"):
        spec = IMPRESSIONS.replace(f'{key} = "{key}"\n', "")
        spec = spec if key == "user" else spec.replace('time_unit = "h"\n', "")
        frame = impressions(200)
        store = prepared(tmp_path / key, spec + SPLIT, impressions_csv=frame)
        assert not store.schema.sequences
        assert any(f"names no {key}, so that" in n for n in store.origin["notes"])
        assert len(store.column("samples/label")) == 200  # equal rows are not one event


def test_rows_of_a_side_table_without_a_key_are_left_out_and_counted(tmp_path):
    items = "[items]\npath = 'items.csv'\nitem = 'item'\ncolumns = ['kind']\n"
    spec = IMPRESSIONS + items + SPLIT + KNOWN + "kind.unknown_share = 0\n"
    rows = [f"{10 + i},k{i % 3}" for i in range(7)]
    table = "\n".join(["item,kind", ",none", *rows[:3], ",none", ",k1", *rows[3:], ""])
    store = prepared(tmp_path / "a", spec, impressions_csv=impressions(), items_csv=table)
    assert ids(store, "kind") == [f"k{(item - 10) % 3}" for item in ids(store, "item")]
    assert store.origin["rows"]["items"] == {"read": 10, "duplicates": 0, "without item": 3}
    notes = [note for note in store.origin["notes"] if "left out" in note]
    assert notes == [
        "[items] 3 of 10 rows have no 'item', by which the table is joined, and are left out"
    ]
    table = "item,kind\n,a\n,b\n"
    with pytest.raises(DinError, match=r"items.csv, line 2: column 'item' .* is empty"):
        prepared(tmp_path / "b", spec, impressions_csv=impressions(), items_csv=table)
    table = "item,kind\n,a\n10,b\n10,c\n"
    with pytest.raises(DinError, match=r"2 different rows of item = 10"):
        prepared(tmp_path / "c", spec, impressions_csv=impressions(), items_csv=table)
