"""Odd inputs: each is read as it is meant, or is one error that says how to mend it."""

import bz2
import decimal
import json

import numpy as np
import polars as pl
import pytest
from small_logs import IMPRESSIONS, KNOWN, SPLIT, histories, ids, impressions, prepared

from din_jax.errors import DinError

PARQUET = IMPRESSIONS.replace(".csv", ".parquet")
AD = "[impressions.ad]\ntags = {{ {} }}\n"
ALL = SPLIT + KNOWN + "tags.unknown_share = 0\n"


def notes(store, text):
    return [note for note in store.origin["notes"] if text in note]


def test_a_field_of_each_of_a_list_of_objects_is_a_list(tmp_path):
    objects = [[{"id": {"n": j}, "name": f"t{j}"} for j in range(k % 3)] for k in range(50)]
    expected = [[f"t{j}" for j in range(k % 3)] for k in range(50)]
    frame = impressions().with_columns(pl.Series("of", objects))
    spec = AD.format('column = "of.name"') + ALL
    store = prepared(tmp_path / "a", PARQUET + spec, impressions_parquet=frame)
    assert ids(store, "tags") == expected
    lines = "".join(json.dumps(row) + "\n" for row in frame.rows(named=True))
    of_json = IMPRESSIONS.replace(".csv", ".jsonl")
    deeper = of_json + spec.replace("of.name", "of.id.n")
    store = prepared(tmp_path / "b", deeper, impressions_jsonl=lines)
    assert ids(store, "tags") == [[int(name[1:]) for name in names] for names in expected]
    wrong = of_json + spec.replace("of.name", "of.nam")
    with pytest.raises(DinError, match=r"no column 'of.nam' .*did you mean 'of.name'"):
        prepared(tmp_path / "c", wrong, impressions_jsonl=lines)
    with pytest.raises(DinError, match=r'name one of its fields, as { column = "of.id"'):
        prepared(tmp_path / "d", of_json + spec.replace("of.name", "of"), impressions_jsonl=lines)


def test_decimals_are_numbers_and_bytes_are_text(tmp_path):
    frame = impressions(tags=lambda k: f"é{k % 5}".encode())
    spec = PARQUET + AD.format("") + ALL
    plain = prepared(tmp_path / "a", spec, impressions_parquet=frame)
    wide = frame.with_columns(
        pl.col("item", "user").cast(pl.Decimal(38, 0)), pl.col("time").cast(pl.Decimal(20, 6))
    )
    store = prepared(tmp_path / "b", spec, impressions_parquet=wide)
    assert store.fingerprint == plain.fingerprint
    assert ids(store, "tags") == [f"é{k % 5}" for k in range(50)]
    large = frame.with_columns(item=pl.lit(decimal.Decimal(10**25)))
    store = prepared(tmp_path / "c", spec, impressions_parquet=large)
    assert set(ids(store, "item")) == {str(10**25)}


@pytest.mark.parametrize(
    ("label", "values"),
    [
        ("positive = [2, 3]", ["0.0", "1.0", "2.0", "3.0"]),
        ("positive = true", ["False", "False", "True", "True"]),
        ('positive = ["2.0", "3"]', ["0", "1", "2.0", "3"]),
    ],
)
def test_values_are_written_in_several_ways(tmp_path, label, values):
    spec = IMPRESSIONS.replace('"click"', f'{{ column = "click", {label} }}') + SPLIT
    frame = impressions(click=lambda k: values[k % 4])
    store = prepared(tmp_path, spec, impressions_csv=frame)
    assert store.column("samples/label").tolist() == [int(k % 4 > 1) for k in range(50)]
    assert not notes(store, "no row has")


def test_values_that_no_row_has_are_noted(tmp_path):
    label = '{ column = "click", positive = ["1", "buy"] }'
    spec = IMPRESSIONS.replace('"click"', label) + "where = { user = [1, 2, 9] }\n" + SPLIT
    store = prepared(tmp_path, spec, impressions_csv=impressions())
    assert len(store) == 20
    assert notes(store, "no row has click = 'buy', which label names; the column has")
    assert notes(store, "no row has user = '9', which where names")


@pytest.mark.parametrize(
    ("time", "unit", "strange"),
    [
        (lambda k: 0 if k == 4 else 1_650_000_000 + k, "", "is 0 in 1 of 50"),
        (lambda k: -1.0 if k == 4 else 1_650_000_000.5 + k, "", "is -1.0 in 1 of 50"),
        (lambda k: f"{1970 if k == 4 else 2024}-01-{1 + k % 28:02}", "", "is 1970-01-05"),
        (lambda k: k, 'time_unit = "h"\n', ""),
    ],
)
def test_times_of_no_time_are_noted(tmp_path, time, unit, strange):
    spec = IMPRESSIONS.replace('time_unit = "h"\n', unit) + SPLIT
    store = prepared(tmp_path, spec, impressions_csv=impressions(time=time))
    found = notes(store, "as where there is no time")
    assert len(found) == bool(strange)
    assert all(strange in note for note in found)


def test_more_negatives_than_items_are_noted(tmp_path):
    spec = IMPRESSIONS + SPLIT + '[negatives]\nper_positive = 23\nby = "uniform"\n'
    store = prepared(tmp_path, spec, impressions_csv=impressions(item=lambda k: k % 23))
    assert notes(store, "per_positive = 23, but the catalogue has 23 items")
    assert histories(store)


NEGATIVES = '[negatives]\nper_positive = 2\nby = "uniform"\n'
TEXT = impressions().write_csv()
LISTS = impressions(tags=lambda k: [k, k + 1])


@pytest.mark.parametrize(
    ("spec", "name", "content", "message"),
    [
        (IMPRESSIONS + SPLIT, "csv", b"PK\x03\x04", "a ZIP archive or an Excel .*export it as CSV"),
        (IMPRESSIONS + SPLIT, "csv", bz2.compress(TEXT.encode()), "by bzip2; .*: bunzip2$"),
        (IMPRESSIONS + SPLIT, "csv", b"PAR1", "the file is Parquet; .*name it .parquet"),
        (IMPRESSIONS + SPLIT, "csv", f"# made by us\n{TEXT}", "delete those before it"),
        (IMPRESSIONS + SPLIT, "csv", TEXT.replace("\n", ",\n"), None),
        (
            IMPRESSIONS + SPLIT,
            "csv",
            TEXT.replace("\n", ",\n").replace(",\n", "\n", 1),
            "line 2: 5 values, .* the line ends with ',': remove it",
        ),
        (IMPRESSIONS + 'delimiter = "::"\n' + SPLIT, "csv", TEXT, r"sed 's/::/\\t/g'"),
        (IMPRESSIONS + SPLIT, "jsonl", "\n\n", "the file is empty; expected one object a line"),
        (IMPRESSIONS + SPLIT, "jsonl", '{\n"user": 1\n}\n', "which jq -c . writes"),
        (
            IMPRESSIONS.replace("time_unit", "time_format") + SPLIT,
            "csv",
            TEXT,
            "time_format = 'h'; expected strptime's letters",
        ),
        (
            IMPRESSIONS.replace('time_unit = "h"', 'time_zone = "Europe/Berlin"') + SPLIT,
            "csv",
            impressions(time=lambda k: f"2024-03-31 0{1 + k % 3}:30:00"),
            "line 3: .*'2024-03-31 02:30:00'; expected a time of Europe/Berlin, which has none in",
        ),
        (
            IMPRESSIONS + NEGATIVES + SPLIT,
            "csv",
            impressions(click=lambda k: 0),
            "no row of .impressions. is positive",
        ),
        (
            IMPRESSIONS + 'weight = "w"\n' + SPLIT,
            "csv",
            impressions(w=lambda k: "1e30" if k == 1 else "1"),
            "line 3: column 'w' .*expected 0, or a number from 1e-20 to 1e",
        ),
        (
            IMPRESSIONS + AD.format('numeric = "none"') + SPLIT,
            "parquet",
            LISTS,
            'expected one number a row; or name .*take = "first"',
        ),
        (
            IMPRESSIONS + AD.format('numeric = "none", take = "last"') + SPLIT,
            "parquet",
            LISTS.with_columns(pl.col("tags").cast(pl.List(pl.String))),
            "expected numbers",
        ),
        (
            IMPRESSIONS + AD.format("") + SPLIT,
            "parquet",
            impressions(tags=lambda k: [[k]]),
            'ids, or lists of them; or name .*take = "first"',
        ),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path, spec, name, content, message):
    spec = spec.replace("impressions.csv", f"impressions.{name}")
    if message is None:  # the header ends so too
        prepared(tmp_path, spec, **{f"impressions_{name}": content})
        return
    with pytest.raises(DinError, match=message):
        prepared(tmp_path, spec, **{f"impressions_{name}": content})


@pytest.mark.parametrize("as_text", [True, False])
def test_what_only_fills_the_lists_of_a_history_is_left_out(tmp_path, as_text):
    lists = [[10 + (k + j) % 7 for j in range(k % 4)] for k in range(50)]
    times = [[1000 + k - 9 + j for j in range(k % 4)] for k in range(50)]
    padded = [[v + [0] * (4 - len(v)) for v in column] for column in (lists, times)]
    if as_text:
        padded = [[" ".join(map(str, v)) for v in column] for column in padded]
    frame = impressions().with_columns(pl.Series("h", padded[0]), pl.Series("at", padded[1]))
    keys = 'column = "h"' + ', separator = " "' * as_text
    end = "csv" if as_text else "parquet"
    tables = {f"impressions_{end}": frame}
    spec = IMPRESSIONS.replace("csv", end) + SPLIT + KNOWN + "[history]\nitem = {{ {} }}\n"
    store = prepared(tmp_path / "a", spec.format(keys), **tables)
    assert notes(
        store, 'if it only fills the lists up: item = {column = "h", …, null_values = ["0"]}'
    )
    keys += ', null_values = ["0"]'
    for name, more in (("b", ""), ("c", 'time = "at"\n')):
        store = prepared(tmp_path / name, spec.format(keys) + more, **tables)
        assert [[int(i) for i in items] for items in histories(store)] == lists
        without_item = store.origin["rows"]["impressions"]["behaviours in history without item"]
        assert without_item == sum(4 - len(v) for v in lists)


@pytest.mark.parametrize("end", ["csv", "parquet"])
@pytest.mark.parametrize("of_column", [True, False])
def test_missing_values_of_a_column_or_a_table(tmp_path, end, of_column):
    frame = impressions(
        tags=lambda k: k % 4 - 1,
        price=lambda k: k % 5 - 1.5 if k % 5 else -1.0,
        more=lambda k: [k, -1],
    )
    frame = frame.drop("more") if end == "csv" else frame
    columns = ["tags = {KEY}", 'price = {numeric = "none", KEY}']
    columns += ["more = {KEY}"] * (end == "parquet")
    spec = IMPRESSIONS.replace("csv", end) + "[impressions.ad]\n" + "\n".join(columns) + "\n" + ALL
    nulls = 'null_values = ["-1"]' if of_column else ""
    spec = spec.replace("KEY", nulls).replace(", }", "}")
    if not of_column:
        spec = spec.replace("time_unit", 'null_values = ["-1", "-1.0"]\ntime_unit')
    elif end == "csv":  # where -1.0 is text
        spec = spec.replace('"-1"', '"-1", "-1.0"')
    store = prepared(tmp_path, spec, **{f"impressions_{end}": frame})
    assert ids(store, "tags") == [None if k % 4 == 0 else k % 4 - 1 for k in range(50)]
    assert np.isnan(store.column("fields/price")).tolist() == [k % 5 == 0 for k in range(50)]
    if end == "parquet":
        assert all(len(v) <= 1 for v in ids(store, "more"))


def test_a_history_without_any_item_of_the_log(tmp_path):
    spec = IMPRESSIONS + SPLIT + '[history]\nitem = { column = "h", list = "json" }\n'
    frame = impressions(h=lambda k: '["a"]')
    with pytest.raises(DinError, match=r"no item of \[history\], h has 'a' for instance"):
        prepared(tmp_path / "a", spec, impressions_csv=frame)
    store = prepared(tmp_path / "b", spec, impressions_csv=impressions(h=lambda k: "null"))
    assert notes(store, "every list is empty")


def test_lists_of_what_is_no_value(tmp_path):
    text = ["null", "[NaN, 1]", "[1e999, 2.0]", "[]"]
    spec = IMPRESSIONS + AD.format('list = "json"') + ALL
    frame = impressions(tags=lambda k: f"{text[k % 4]}")
    store = prepared(tmp_path / "a", spec, impressions_csv=frame)
    assert ids(store, "tags")[:4] == [[], ["1"], ["inf", "2"], []]
    deep = impressions(tags=lambda k: "[" * 5000 + "]" * 5000)
    with pytest.raises(DinError, match=r"'\[{70,80}…; expected a list like"):
        prepared(tmp_path / "b", spec, impressions_csv=deep)
