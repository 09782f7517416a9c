"""What people bring as a table: many notations, one store, or one clear error."""

import gzip
import json

import polars as pl
import pytest
import zstandard
from small_logs import IMPRESSIONS, KNOWN, SPLIT, histories, ids, impressions, prepared, write

from din_jax.errors import DinError
from din_jax.prepare import log

SPEC = IMPRESSIONS + 'context = ["tab"]\n' + SPLIT + KNOWN + "tab.unknown_share = 0\n"
FRAME = impressions(tab=lambda k: ("home", "search, new", "séries", None)[k % 4])
TEXT = FRAME.write_csv()


def spec_of(name, *keys):
    """The spec with another path and more keys of [impressions]."""
    return SPEC.replace("impressions.csv", name).replace(
        "time_unit", "".join(f"{key}\n" for key in keys) + "time_unit"
    )


def columns(store):
    return {
        "label": store.column("samples/label").tolist(),
        "tab": ids(store, "tab"),
        "item": ids(store, "item"),
        "user": ids(store, "user_id"),
        "history": histories(store),
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return columns(prepared(tmp_path_factory.mktemp("plain"), SPEC, impressions_csv=TEXT))


def as_floats(frame):
    return frame.with_columns(pl.col("click", "user", "item").cast(pl.Float64))


NO_HEADER = 'columns = ["click", "user", "item", "time", "tab"]'
FORMATS = {
    # name of the file: (content, further keys)
    "a.csv": (TEXT.replace("\n", "\r\n").rstrip("\r\n"), ()),
    "blank.csv": ("\n" + TEXT.replace("\n", "\n\n"), ()),
    "bom.csv": (b"\xef\xbb\xbf" + TEXT.encode(), ()),
    "gbk.csv": (TEXT.replace("séries", "剧集").encode("gbk"), ('encoding = "gbk"',)),
    "latin.csv": (TEXT.encode("latin-1"), ('encoding = "latin-1"',)),
    "utf16.csv": (TEXT.encode("utf-16"), ('encoding = "utf-16"',)),
    "a.csv.gz": (gzip.compress(TEXT.encode()), ()),
    "a.csv.zst": (zstandard.compress(TEXT.encode()), ()),
    "a.tsv": (FRAME.write_csv(separator="\t"), ()),
    "a.txt": (FRAME.write_csv(separator="\x01"), ('delimiter = "\\u0001"',)),
    "no-header.csv": (TEXT.split("\n", 1)[1], (NO_HEADER,)),
    "floats.csv": (as_floats(FRAME).write_csv(), ()),
    "nulls.csv": (
        FRAME.with_columns(pl.col("tab").fill_null("\\N")).write_csv(),
        ('null_values = ["\\\\N", "NULL"]',),
    ),
    "empty.csv": (TEXT, ('null_values = ["", "NULL"]',)),
    "spaces.csv": (
        FRAME.with_columns(pl.col("tab") + " ", pl.format(" {}", "user")).write_csv(),
        ("strip = true",),
    ),
    "mysql.txt": (
        "".join(
            "\t".join("\\N" if v is None else str(v) for v in row) + "\n" for row in FRAME.rows()
        ),
        ('delimiter = "\\t"', 'quote = ""', 'escape = "\\\\"', NO_HEADER),
    ),
    "quotes.csv": (FRAME.write_csv(quote_style="always"), ()),
    "single.csv": (FRAME.write_csv(quote_char="'"), ('quote = "\'"',)),
    "strip.csv": (TEXT.replace("click,user,item", "click, user,item ", 1), ("strip = true",)),
    "bools.csv": (FRAME.with_columns(pl.col("click") == 1).write_csv(), ()),
    "Bools.csv": (
        FRAME.with_columns(pl.Series("click", [str(x == 1) for x in FRAME["click"]])).write_csv(),
        (),
    ),
    "a.jsonl": (FRAME.write_ndjson(), ()),
    "array.json": (json.dumps(FRAME.rows(named=True), indent=1), ()),
    "an-array": (json.dumps(FRAME.rows(named=True)), ()),
    "bom.jsonl": (b"\xef\xbb\xbf" + FRAME.write_ndjson().encode(), ()),
    "nan.jsonl": (FRAME.write_ndjson().replace("null", "NaN"), ()),
    "a.ndjson.gz": (gzip.compress(FRAME.write_ndjson().encode()), ()),
}


@pytest.mark.parametrize("name", FORMATS)
def test_text_in_many_notations_gives_one_store(tmp_path, expected, name):
    content, keys = FORMATS[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    got = columns(prepared(tmp_path, spec_of(name, *keys)))
    if name == "gbk.csv":
        got["tab"] = ["séries" if tab == "剧集" else tab for tab in got["tab"]]
    assert got == expected


@pytest.mark.parametrize("kind", ["parquet", "feather", "types", "days", "pattern", "mixed types"])
def test_frames_give_the_store_of_their_text(tmp_path, expected, kind):
    parts, name = [FRAME[:20], FRAME[20:]], "table"
    (tmp_path / "table").mkdir()
    if kind == "feather":
        for i, part in enumerate(parts):
            part.write_ipc(tmp_path / f"table/{i}.feather")
    elif kind == "types":  # of pandas and Spark
        frame = FRAME.with_columns(
            pl.col("click").cast(pl.Boolean),
            pl.col("user", "item").cast(pl.Float64),
            pl.col("tab").cast(pl.Categorical),
            pl.col("time").cast(pl.Float64),
        )
        frame.write_parquet(tmp_path / "table/a.parquet")
    elif kind == "days":
        for i, part in enumerate(parts):
            (tmp_path / f"table/day={i}").mkdir()
            part.write_parquet(tmp_path / f"table/day={i}/part.parquet")
        (tmp_path / "table/_SUCCESS").touch()
    elif kind == "pattern":
        FRAME.write_csv(tmp_path / "other.csv")
        for i, part in enumerate(parts):
            part.write_csv(tmp_path / f"day-{i}.csv")
        name = "day-*.csv"
    else:
        parts[0] = as_floats(parts[0]) if kind == "mixed types" else parts[0]
        for i, part in enumerate(parts):
            part.write_parquet(tmp_path / f"table/{i}.parquet")
    assert columns(prepared(tmp_path, spec_of(name))) == expected


def test_a_list_of_paths_and_a_column_that_a_file_lacks(tmp_path):
    spec = spec_of("x").replace('path = "x"', 'path = ["a.csv", "b.csv"]')
    store = prepared(tmp_path, spec, a_csv=FRAME[:20], b_csv=FRAME[20:].drop("tab"))
    assert ids(store, "tab")[:20] == FRAME["tab"].to_list()[:20]
    assert ids(store, "tab")[20:] == [None] * 30
    assert "'tab' (context) is missing in 1 of 2 files, b.csv" in "\n".join(store.origin["notes"])


def test_fields_of_nested_columns_and_of_folders(tmp_path):
    nested = FRAME.select(
        "click", "item", "time", pl.struct(id="user").alias("who"), pl.struct("tab").alias("page")
    )
    spec = SPEC.replace('"user"', '"who.id"').replace(
        'context = ["tab"]\n', 'context = {tab = {column = "page.tab"}, day = {}}\n'
    )
    spec = spec.replace("impressions.csv", "t")
    for day, part in ((1, nested[:20]), (2, nested[20:])):
        (tmp_path / f"t/day={day}").mkdir(parents=True)
        part.write_ndjson(tmp_path / f"t/day={day}/a.jsonl")
    store = prepared(tmp_path, spec)
    assert ids(store, "user_id") == FRAME["user"].to_list()
    assert ids(store, "tab") == FRAME["tab"].to_list()
    assert [str(day) for day in ids(store, "day")] == ["1"] * 20 + ["2"] * 30


BIG = 2**53 + 1
ID_COLUMNS = [
    # what is in the impressions' items and in the behaviours', and whether both are one item
    (["7", "8"], ["7.0", "8.0"], True),
    (["7.0", "8.0"], ["7", "8"], True),
    (["007", "8"], ["007", "8"], True),
    (["007", "8"], ["7", "8"], False),
    (["a", "8"], ["b", "8"], False),
    ([str(2**64 - 1), "8"], [str(2**64 - 1), "8"], True),
    (["-5", "8"], ["-5", "8"], True),
    ([" 7", "8"], ["7", "8"], False),
    (["+7", "8"], ["7", "8"], False),
    ([str(BIG), str(BIG + 1)], [str(BIG), str(BIG + 1)], True),
]


@pytest.mark.parametrize(("one", "other", "same"), ID_COLUMNS)
@pytest.mark.parametrize("parquet", [False, True])
def test_ids_of_two_tables_are_compared_as_they_are_written(tmp_path, one, other, same, parquet):
    frame = impressions(item=lambda k: one[k % 2])
    views = pl.DataFrame({"user": range(5), "item": [other[0]] * 5, "time": [1] * 5})
    views = pl.concat([views, views.with_columns(item=pl.lit(other[1]))])
    if parquet and all(v.lstrip("-").isdigit() for v in other) and other[0] != "007":
        big = int(other[0]) >= 2**63
        views = views.with_columns(pl.col("item").cast(pl.UInt64 if big else pl.Int64))
    behaviours = (
        '[behaviours]\npath = "views.parquet"\nuser = "user"\nitem = "item"\ntime = "time"\n'
    )
    spec = IMPRESSIONS + SPLIT + KNOWN + behaviours
    spec = spec if parquet else spec.replace("views.parquet", "views.csv")
    tables = {"views_parquet" if parquet else "views_csv": views}
    store = prepared(tmp_path, spec, impressions_csv=frame, **tables)
    items = {str(item) for item in ids(store, "item")}
    history = {str(item) for item in histories(store)[0]}
    assert (items == history) == same
    if "." not in one[0]:
        assert items == set(one)  # as they are written


ERRORS = {
    "has 9007199254740992, a whole number written as a float": (
        impressions(tab=lambda k: f"{BIG}.0" if k == 7 else "5.0"),
        (),
    ),
    r"line 9: 4 values, but the header has 5": (TEXT.replace(",1007,", ",1007 ", 1), ()),
    r"line 9: a quote does not enclose a whole value": (TEXT.replace(",1007,", ',"1007,', 1), ()),
    r"line 10: column 'time' .* is 'soon'; expected a time": (TEXT.replace(",1008,", ",soon,"), ()),
    r'its first line, .* has no names.*columns = \["…", "…"\]': (TEXT.split("\n", 1)[1], ()),
    "the table .impressions. has no rows": (TEXT[: TEXT.index("\n") + 1], ()),
    "the file is empty": ("", ()),
    "delimiter = ',', which ends lines, or has another meaning": (
        TEXT,
        ('delimiter = ","', 'quote = ","'),
    ),
    r"escape = '\\r', which ends lines": (TEXT, ('escape = "\\r"',)),
    "encoding = 'rot13'; expected an encoding such as": (TEXT, ('encoding = "rot13"',)),
    "delimiter = 'é'; expected one character": (TEXT, ('delimiter = "é"',)),
    "columns names 'user' twice": (TEXT, ('columns = ["user", "user"]',)),
    "has different types in its files": (None, ()),
}


@pytest.mark.parametrize("message", ERRORS)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, message):
    content, keys = ERRORS[message]
    spec = spec_of("impressions.csv", *keys)
    if content is None:
        spec, content = spec_of("t"), TEXT
        write(tmp_path, spec, t__a_parquet=FRAME)
        write(tmp_path, spec, t__b_parquet=FRAME.with_columns(user=pl.lit([1])))
    path = write(tmp_path, spec, impressions_csv=content)
    with pytest.raises(DinError, match=message):
        log.prepare(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_dates_of_several_notations(tmp_path):
    start = 1_700_000_000
    seconds = impressions(time=lambda k: start + 3600 * k)
    expected = histories(
        prepared(
            tmp_path / "s",
            IMPRESSIONS.replace('"h"', '"s"') + SPLIT + KNOWN,
            impressions_csv=seconds,
        )
    )
    when = pl.from_epoch("time")
    notations = {
        "": when.dt.strftime("%Y-%m-%d %H:%M:%S"),
        " ": when.dt.strftime("%Y/%m/%d %H:%M:%S").str.replace("/0", "/").str.replace(" 0", " "),
        'time_format = "%d.%m.%y %H:%M:%S"': when.dt.strftime("%d.%m.%y %H:%M:%S"),
        'time_zone = "Asia/Shanghai"': when.dt.strftime("%Y-%m-%d %H:%M:%S"),
        "  ": when.dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    for i, (key, notation) in enumerate(notations.items()):
        spec = IMPRESSIONS.replace('time_unit = "h"', key) + SPLIT + KNOWN
        store = prepared(
            tmp_path / str(i), spec, impressions_csv=seconds.with_columns(time=notation)
        )
        assert histories(store) == expected
        shift = 8 * 3600 if "zone" in key else 0
        assert store.column("samples/time")[0] == start - shift
