"""Histories that stand in the impression's own row, against loops over the rows."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from small_logs import IMPRESSIONS, KNOWN, SPLIT, histories, impressions, prepared, write

from din_jax.errors import DinError
from din_jax.prepare import log

PARQUET = IMPRESSIONS.replace(".csv", ".parquet")


def a_log(seed=0, rows=40):
    """Lists of items and of their times, in order of time; some empty, some null."""
    rng = np.random.default_rng(seed)
    items, times, kinds = [], [], []
    for k in range(rows):
        length = int(rng.integers(0, 5))
        items.append((10 + rng.integers(0, 7, length)).tolist())
        # Up to and beyond the row's own time, which is 1000 + k.
        times.append(np.sort(990 + k + rng.integers(0, 13, length)).tolist())
        kinds.append([f"k{item % 2}" for item in items[-1]])
    frame = impressions(rows, kind=lambda k: f"k{k % 7 % 2}")
    lists = {"hist": items, "at": times, "kinds": kinds}
    frame = frame.with_columns(pl.Series(name, values) for name, values in lists.items())
    empty = pl.col("hist").list.len() == 0
    alternate = pl.col("time") % 2 == 0
    return frame.with_columns(
        pl.when(empty & alternate).then(None).otherwise(name).alias(name) for name in lists
    )


def spec_of(history, base=PARQUET, more=""):
    return (
        base
        + more
        + f"[history]\n{history}\n"
        + SPLIT
        + KNOWN
        + "kind.unknown_share = 0\n" * ("kind" in more)
    )


@pytest.mark.parametrize("newest_first", [False, True])
def test_lists_without_times(tmp_path, newest_first):
    frame = a_log()
    spec = spec_of(f'item = "hist"\nnewest_first = {json.dumps(newest_first)}')
    lists = [items or [] for items in frame["hist"].to_list()]
    expected = [items[::-1] if newest_first else items for items in lists]
    store = prepared(tmp_path, spec, impressions_parquet=frame)
    assert histories(store) == expected
    assert not store.schema.sequences[0].times


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("dates", [False, True])
def test_lists_with_times_end_before_the_row(tmp_path, newest_first, dates):
    frame = a_log()
    expected = [
        [i for i, at in zip(row["hist"] or [], row["at"] or [], strict=True) if at < row["time"]]
        for row in frame.rows(named=True)
    ]
    left_out = sum(map(len, frame["hist"].drop_nulls())) - sum(map(len, expected))
    if newest_first:
        frame = frame.with_columns(pl.col("hist", "at").list.reverse())
    spec = spec_of(f'item = "hist"\ntime = "at"\nnewest_first = {json.dumps(newest_first)}')
    if dates:
        spec = spec.replace('time_unit = "h"\n', "")
        hour = pl.duration(hours=1)
        epoch = pl.datetime(1970, 1, 1)
        frame = frame.with_columns(
            (epoch + pl.col("time") * hour).alias("time"),
            (pl.col("at") * 3_600_000).cast(pl.List(pl.Datetime("ms"))),
        )
    store = prepared(tmp_path, spec, impressions_parquet=frame)
    assert histories(store) == expected
    assert left_out > 0
    assert (
        store.origin["rows"]["impressions"]["behaviours in history not before the row"] == left_out
    )
    start, end = (store.column(f"sequences/history.{e}").astype(int) for e in ("start", "end"))
    at, time = store.column("events/history.time"), store.column("samples/time")
    for k in range(len(frame)):
        assert (np.diff(at[start[k] : end[k]]) >= 0).all()
        assert (at[start[k] : end[k]] < time[k]).all()


@pytest.mark.parametrize("notation", ["separator", "json", "python", "weighted"])
def test_lists_as_text(tmp_path, notation):
    lists = [items or [] for items in a_log()["hist"].to_list()]
    text = {
        "separator": lambda v: "|".join(map(str, v)),
        "json": json.dumps,
        "python": lambda v: repr([str(x) for x in v]),
        "weighted": lambda v: "|".join(f"{x}:0.5" for x in v),
    }[notation]
    how = {
        "separator": 'separator = "|"',
        "weighted": 'separator = "|", weighted = "drop"',
    }.get(notation, f'list = "{notation}"')
    spec = spec_of(f'item = {{column = "hist", {how}}}', IMPRESSIONS)
    frame = impressions(40, hist=lambda k: text(lists[k]))
    store = prepared(tmp_path, spec, impressions_csv=frame)
    assert [[int(i) for i in items] for items in histories(store)] == lists


def as_moment(hours):
    return f"{datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=hours)}"


@pytest.mark.parametrize(
    ("how", "write_list", "unit"),
    [
        ("", "|".join, "h"),  # as the item is written
        (', separator = ","', ", ".join, "h"),
        (', list = "json"', lambda v: f"[{','.join(v)}]", "min"),
        (', list = "python"', lambda v: repr([as_moment(int(x)) for x in v]), "date"),
        (', separator = ";"', lambda v: ";".join(as_moment(int(x)) for x in v), "date"),
    ],
)
def test_times_as_text(tmp_path, how, write_list, unit):
    frame = a_log()
    expected = [
        [i for i, at in zip(row["hist"] or [], row["at"] or [], strict=True) if at < row["time"]]
        for row in frame.rows(named=True)
    ]
    factor = 60 if unit == "min" else 1
    lists = [[str(t * factor) for t in times or []] for times in frame["at"].to_list()]
    items = ["|".join(map(str, items or [])) for items in frame["hist"].to_list()]
    frame = frame.drop("hist", "at", "kinds")
    if unit == "date":
        frame = frame.with_columns(pl.col("time").map_elements(as_moment, pl.String))
    frame = frame.with_columns(
        pl.Series("hist", items), pl.Series("at", [write_list(v) if v else "" for v in lists])
    )
    time = f'time = {{ column = "at"{how} }}' if how else 'time = "at"'
    spec = spec_of(f'item = {{ column = "hist", separator = "|" }}\n{time}', IMPRESSIONS)
    if unit == "date":
        spec = spec.replace('time_unit = "h"\n', "")
    if unit == "min":
        spec = spec.replace("[split]", 'time_unit = "min"\n[split]')
    store = prepared(tmp_path, spec, impressions_csv=frame)
    assert [[int(i) for i in items] for items in histories(store)] == expected
    at, end = store.column("events/history.time"), store.column("sequences/history.end")
    assert len(at) == end[-1] == sum(map(len, expected))
    known = [t for row in a_log().rows(named=True) for t in row["at"] or [] if t < row["time"]]
    begin = 1_704_067_200 if unit == "date" else 0  # 2024
    assert at.tolist() == [begin + 3600 * t for t in known]


@pytest.mark.parametrize(
    ("times", "keys", "message"),
    [
        ("1|x", "", "line 4: column 'at' of .*'x'; expected a time"),
        ("1||2", "", "line 4: .*expected as many values as 'hist' has"),
        ("2024-01-01|2024-01-02|2024-01-03", "", r"\[impressions\] are Int64, and those of \[hist"),
        ("1|2|3", 'time = ["at", "at"]', "a column of lists, or"),
        ("1|2|3", 'time = {column = "at", take = "last"}', "unknown key 'take'"),
        ("1650000000000|1650000000001|1650000000002", "", "beyond the year|different units"),
    ],
)
def test_times_as_text_that_cannot_be_read(tmp_path, times, keys, message):
    keys = keys or 'time = "at"'
    spec = spec_of(f'item = {{ column = "hist", separator = "|" }}\n{keys}', IMPRESSIONS)
    if "1650" in times:
        spec = spec.replace('time_unit = "h"\n', "")
    first = times.split("|")[0]
    frame = impressions(
        40,
        time=lambda k: 1_650_000_000 + k,
        hist=lambda k: ("", "11", "11|12|13")[min(k, 2)],
        at=lambda k: ("", first, times)[min(k, 2)],
    )
    with pytest.raises(DinError, match=message):
        prepared(tmp_path, spec, impressions_csv=frame)


def test_times_of_a_zone_and_without_one_are_not_compared(tmp_path):
    spec = spec_of('item = { column = "hist", separator = "|" }\ntime = "at"', IMPRESSIONS)
    frame = impressions(
        40,
        time=lambda k: as_moment(k),
        hist=lambda k: "11|12",
        at=lambda k: "2023-01-01T00:00:00Z|2023-01-02T00:00:00+02:00",
    )
    with pytest.raises(DinError, match=r"times of \[history\] have a zone, and those of \[impr"):
        prepared(tmp_path, spec.replace('time_unit = "h"\n', ""), impressions_csv=frame)


def test_fields_of_the_behaviours_and_several_lists(tmp_path):
    frame = a_log()
    more = 'ad = ["kind"]\n'
    spec = spec_of('item = "hist"\nad = {kind = {column = "kinds"}}', more=more)
    store = prepared(tmp_path / "one", spec, impressions_parquet=frame)
    assert histories(store, field="kind") == [kinds or [] for kinds in frame["kinds"].to_list()]
    spec = spec_of('item = "hist"').replace("[history]", "[history.bought]")
    spec = spec.replace("[split]", '[history.seen]\nitem = "other"\n[split]')
    frame = frame.with_columns(other=pl.col("hist").list.head(1))
    store = prepared(tmp_path / "two", spec, impressions_parquet=frame)
    for name, column in (("bought", "hist"), ("seen", "other")):
        assert histories(store, name) == [items or [] for items in frame[column].to_list()]


FIFTH = pl.int_range(pl.len()) == 4


@pytest.mark.parametrize(
    ("history", "change", "message"),
    [
        (
            'item = "hist"\ntime = "at"',
            pl.when(FIFTH).then([1, 2, 3, 4, 5, 6]).otherwise("at").alias("at"),
            r"row 5: column 'at' .* \[1, 2, 3, 4, 5, 6\]; expected as many values as 'hist' has",
        ),
        (
            'item = "hist"\ntime = "at"',
            pl.when(FIFTH).then([1, None]).otherwise("at").alias("at"),
            r"row 5: column 'at' .* is \[1, None\]; expected times",
        ),
        (
            'item = "item"',
            pl.col("item"),
            r"'item' .* Int64; expected a list of values in each row",
        ),
        (
            'item = "hist"\ntime = "time"',
            pl.col("time"),
            r"'time' .* Int64; expected a list of times",
        ),
        ("newest_first = true", pl.col("time"), r"has no 'item'"),
        ('item = "hits"', pl.col("time"), r"no column 'hits' \(\[history\]\) .did you mean 'hist'"),
        (
            'item = "hist"\nad = ["kinds"]',
            pl.col("time"),
            r"ad has 'kinds', but the ad has no field",
        ),
    ],
)
def test_what_is_no_history_is_one_clear_error(tmp_path, history, change, message):
    path = write(tmp_path, spec_of(history), impressions_parquet=a_log().with_columns(change))
    with pytest.raises(DinError, match=message):
        log.prepare(path, tmp_path / "store")
