"""What the tables of a log may look like: CSV, folders, partitions, kinds of times."""

import datetime
import gzip
import zoneinfo

import numpy as np
import polars as pl
import pytest
from log_oracle import SPEC, VIEWS, decoded, prepare, tables_of_a_log, write

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.prepare import log
from din_jax.prepare.log import json_lines
from din_jax.prepare.log.spec import TableFiles, Time
from din_jax.prepare.log.table_reader import TableReader
from din_jax.prepare.log.typed_columns import TypedColumns

TABLES = tables_of_a_log(impressions=200)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The store of the tables as Parquet files, one each."""
    return prepare(tmp_path_factory.mktemp("parquet"), TABLES, SPEC + VIEWS)


def as_text(value):
    """An equal value with every id as text, as CSV has them."""
    if isinstance(value, dict):
        return {k: v if k in ("label", "price") else as_text(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_text(v) for v in value]
    return None if value is None else str(value)


@pytest.mark.parametrize(
    ("suffix", "separator", "quotes"),
    [(".csv", ",", "necessary"), (".csv", ",", "always"), (".tsv.gz", "\t", "necessary")],
)
def test_csv_gives_what_parquet_gives(tmp_path, expected, suffix, separator, quotes):
    write(tmp_path, {}, (SPEC + VIEWS).replace(".parquet", suffix))
    for name, rows in TABLES.items():
        frame = pl.DataFrame(rows, infer_schema_length=None)
        if name == "films":
            frame = frame.with_columns(pl.col("tags").list.join("|"))
        text = frame.write_csv(separator=";" if name == "users" else separator, quote_style=quotes)
        data = gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode()
        (tmp_path / f"{name}{suffix}").write_bytes(data)
    text = (tmp_path / "spec.toml").read_text()
    text = text.replace(
        'columns = ["category", "tags"]', 'columns = {category = {}, tags = {separator = "|"}}'
    ).replace('columns = ["age"]', 'columns = ["age"]\ndelimiter = ";"')
    (tmp_path / "spec.toml").write_text(text)
    log.prepare(tmp_path / "spec.toml", tmp_path / "store")
    samples = as_text(decoded(expected))
    assert as_text(decoded(Store(tmp_path / "store"))) == samples

    # Ids that are numbers in one table and text in another are equal ids.
    pl.DataFrame(TABLES["impressions"], infer_schema_length=None).write_parquet(
        tmp_path / "impressions.parquet"
    )
    (tmp_path / "spec.toml").write_text(text.replace(f"impressions{suffix}", "impressions.parquet"))
    log.prepare(tmp_path / "spec.toml", tmp_path / "mixed")
    assert as_text(decoded(Store(tmp_path / "mixed"))) == samples


def test_folders_of_files_and_of_partitions(tmp_path, expected):
    text = (SPEC + VIEWS).replace("impressions.parquet", "log").replace("views.parquet", "views")
    write(tmp_path, {n: t for n, t in TABLES.items() if n in ("films", "users")}, text)
    # The files are read in the order of their names, as if they were one.
    views = pl.DataFrame(TABLES["views"])
    (tmp_path / "views").mkdir()
    for i in range(4):
        views[i * 55 : (i + 1) * 55].write_parquet(tmp_path / f"views/part-{i}.parquet")
    for name in ("_SUCCESS", "notes.txt", ".part-0.parquet", "_temporary/part-0.parquet"):
        (tmp_path / "views" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "views" / name).write_text("no part of the table")
    (tmp_path / "log").mkdir()
    rows = pl.DataFrame(TABLES["impressions"], infer_schema_length=None)
    rows.write_parquet(tmp_path / "log/all.parquet")
    log.prepare(tmp_path / "spec.toml", tmp_path / "store")
    assert Store(tmp_path / "store").fingerprint == expected.fingerprint
    # Partitioned by the values of a column: equal rows in another order.
    (tmp_path / "log/all.parquet").unlink()
    for (tab,), part in rows.partition_by("tab", as_dict=True, include_key=False).items():
        folder = tmp_path / f"log/tab={'__HIVE_DEFAULT_PARTITION__' if tab is None else tab}"
        folder.mkdir()
        part.write_parquet(folder / "part-0.parquet")
    log.prepare(tmp_path / "spec.toml", tmp_path / "partitioned")
    partitioned, whole = decoded(Store(tmp_path / "partitioned")), decoded(expected)
    for split in SPLITS:
        assert sorted(map(repr, partitioned[split])) == sorted(map(repr, whole[split]))


def test_dates_are_times(tmp_path, expected):
    def dated(rows, key, of):
        return [row | {key: of(row[key])} for row in rows]

    def day(n):
        return datetime.date(2024, 1, 1) + datetime.timedelta(days=n)

    def midnight(n):
        return datetime.datetime.combine(day(n), datetime.time())

    def elsewhere(n):  # the moment on a clock three hours ahead
        zone = datetime.timezone(datetime.timedelta(hours=3))
        return midnight(n).replace(tzinfo=datetime.UTC).astimezone(zone).isoformat()

    def in_tokyo(n):
        zone = zoneinfo.ZoneInfo("Asia/Tokyo")
        return midnight(n).replace(tzinfo=datetime.UTC).astimezone(zone)

    dates = TABLES | {
        "impressions": dated(TABLES["impressions"], "at", in_tokyo),
        "views": dated(TABLES["views"], "at", elsewhere),
        "films": dated(TABLES["films"], "since", day),
    }
    assert decoded(prepare(tmp_path / "dates", dates, SPEC + VIEWS)) == decoded(expected)
    cut = (
        (SPEC + VIEWS).replace("0.15", "'2024-02-01'").replace("0.25", "2024-02-20T03:00:00+03:00")
    )
    numbers = (SPEC + VIEWS).replace("0.15", "31").replace("0.25", "50")
    assert decoded(prepare(tmp_path / "cut", dates, cut)) == decoded(
        prepare(tmp_path / "cut-numbers", TABLES, numbers)
    )


def test_times_with_offsets_are_those_of_datetime(tmp_path):
    rng = np.random.default_rng(0)
    moments = [
        datetime.datetime(2024, 3, 31, 1, 0, second, 250_000 * int(quarter)).isoformat(" ")
        + ("Z", "+00:00", "+02:00", "-0330", "+14:00", "-11")[zone]
        for second, quarter, zone in zip(
            range(60), rng.integers(4, size=60), rng.integers(6, size=60), strict=True
        )
    ]
    for i, text in enumerate((moments, [moment[:19] for moment in moments])):
        path = tmp_path / f"{i}.csv"
        path.write_text("\n".join(["at,n", *(f"{moment},{n}" for n, moment in enumerate(text))]))
        files = TableFiles("impressions", (path,))
        reader = TableReader(files)
        columns = TypedColumns(files, reader, reader.read({"at": "time", "n": "item"}))
        columns.add_time("at", Time(("at",)))
        plain = [datetime.datetime.fromisoformat(moment) for moment in text]
        in_utc = [m.astimezone(datetime.UTC).replace(tzinfo=None) if m.tzinfo else m for m in plain]
        assert columns.distinct()[0]["at"].to_list() == in_utc


@pytest.mark.parametrize("rows", [100, 40_000])  # the latter is a value too long for csv
def test_a_quote_that_is_not_closed_is_named(tmp_path, rows):
    path = tmp_path / "impressions.csv"
    lines = ["time,user,item,click", *(f"{i},u{i % 7},g{i % 5},{i % 2}" for i in range(rows))]
    lines[8] = '7,"u0,g2,1'
    path.write_text("\n".join(lines) + "\n")
    reader = TableReader(TableFiles("impressions", (path,), ","))
    with pytest.raises(DinError, match="line 9: a quote does not enclose a whole value"):
        reader.read({"user": "user", "click": "label"})


def test_numbers_that_are_text_stay_text_in_parquet_and_become_numbers_in_csv(tmp_path):
    frame = pl.DataFrame({"id": ["12", "7"]})
    frame.write_parquet(tmp_path / "ids.parquet")
    frame.write_csv(tmp_path / "ids.csv")
    for name, dtype in (("ids.parquet", pl.String), ("ids.csv", pl.Int64)):
        reader = TableReader(TableFiles("impressions", (tmp_path / name,)))
        assert reader.read({"id": "item"})["id"].dtype == dtype


def test_json_is_parsed_once_and_its_first_rows_alone_if_that_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 150)
    rows = [f'{{"user": {i}, "in": {{"item": "g{i}"}}}}\n' for i in range(40)]
    rows[30] = rows[30].replace("}}", '}, "late": true}')
    for name, part in (("a.jsonl", rows[:20]), ("b.jsonl", rows[20:])):
        (tmp_path / name).write_text("\n".join(part))  # with empty lines
    parsed, real = [], pl.read_ndjson

    def counted(data, **options):
        parsed.append(data.getvalue())
        return real(data, **options)

    monkeypatch.setattr(pl, "read_ndjson", counted)
    files = TableFiles("impressions", (tmp_path / "*.jsonl", tmp_path / "a.jsonl"))
    reader = TableReader(files)
    frame = reader.read({"user": "user", "in.item": "item", "late": "ad"})
    assert frame.to_dict(as_series=False) == {
        "user": [*range(40)],
        "in.item": [f"g{i}" for i in range(40)],
        "late": [True if i == 30 else None for i in range(40)],
    }
    assert b"".join(parsed).count(b"user") == 40
    assert reader.row_location(25) == f"{tmp_path / 'b.jsonl'}, line 11"
    parsed.clear()
    reader = TableReader(files)
    assert reader.read({"user": "user"}, limit=10)["user"].to_list() == [*range(10)]
    assert b"".join(parsed).count(b"user") < 16
    assert not reader.notes
