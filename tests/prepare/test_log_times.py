"""The times of a log against its rows: ages in seconds, whatever the times are written as."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from log_oracle import behaviors_before, distinct, prepare, tables_of_a_log, write

from din_jax.data.packing import AGE_BUCKETS
from din_jax.data.source import BatchSource
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.prepare import log
from din_jax.prepare.log.times import in_seconds

SPEC = """
[impressions]
path = "impressions.FORMAT"
label = "click"
user = "user"
item = "film"
time = "at"
[split]
by = "time"
validation = 0.15
test = 0.25
"""
VIEWS = """
[behaviours]
path = "views.FORMAT"
user = "user"
item = "film"
time = "at"
"""
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def milliseconds(at):
    """The moment that a row's `at`, 0 to 59, stands for: some of 2022 and 2023, in ms."""
    return 1_650_000_000_000 + at**3 * 1_000_000 + at * 1_777


def moment(ms):
    return EPOCH + datetime.timedelta(milliseconds=ms)


def at_plus_two(ms):
    return moment(ms).astimezone(datetime.timezone(datetime.timedelta(hours=2))).isoformat()


# What a column of times may hold, and the unit that is guessed.
WRITTEN = {
    "s": (lambda ms: ms // 1000, "s"),
    "s, a fraction": (lambda ms: ms / 1000, "s"),
    "ms": (lambda ms: ms, "ms"),
    "us": (lambda ms: ms * 1000, "us"),
    "ns": (lambda ms: ms * 1_000_000, "ns"),
    "date with time": (lambda ms: moment(ms).replace(tzinfo=None), None),
    "with a zone": (at_plus_two, None),
    "date": (lambda ms: moment(ms).date(), None),
}


def in_whole_seconds(written):
    """By Python's own dates; of numbers, by their magnitude."""
    if isinstance(written, str):
        written = datetime.datetime.fromisoformat(written)
    if isinstance(written, datetime.datetime):
        written = written.replace(tzinfo=written.tzinfo or datetime.UTC)
        return (written - EPOCH) // datetime.timedelta(seconds=1)
    if isinstance(written, datetime.date):
        return (written - EPOCH.date()).days * 86_400
    return int(written // 10 ** (len(str(int(written))) - 10))


def ages_in(store):
    """The ages of each sample's behaviours, of all splits, by the store's columns."""
    starts, ends = (store.column(f"sequences/history.{e}").tolist() for e in ("start", "end"))
    then = store.column("events/history.time").tolist()
    now = store.column("samples/time").tolist()
    return [
        [t - then[i] for i in range(start, end)]
        for t, start, end in zip(now, starts, ends, strict=True)
    ]


def prepare_csv(folder, tables, spec):
    folder.mkdir()
    for name, rows in tables.items():
        pl.DataFrame(rows).write_csv(folder / f"{name}.csv")
    (folder / "spec.toml").write_text(spec)
    log.prepare(folder / "spec.toml", folder / "store")
    return Store(folder / "store")


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("form", ["parquet", "csv"])
@pytest.mark.parametrize("clicks", [True, False])
def test_ages_are_those_of_the_rows(tmp_path, written, form, clicks):
    write_time, guess = WRITTEN[written]
    tables = {
        name: [
            {key: row[key] for key in ("user", "film", "click") if key in row}
            | {"at": write_time(milliseconds(row["at"]))}
            for row in rows
        ]
        for name, rows in tables_of_a_log(impressions=200).items()
        if name in ("impressions", "views")
    }
    spec = (SPEC + ("" if clicks else VIEWS)).replace("FORMAT", form)
    store = (prepare_csv if form == "csv" else prepare)(tmp_path / "a", tables, spec)
    rows = sorted(distinct(tables["impressions"]), key=lambda r: r["at"])
    behaviors = [r for r in rows if r["click"]] if clicks else distinct(tables["views"])
    expected = [
        [
            in_whole_seconds(row["at"]) - in_whole_seconds(b["at"])
            for b in behaviors_before(row, behaviors)
        ]
        for row in rows
    ]
    assert ages_in(store) == expected
    ages = [age for of_sample in expected for age in of_sample]
    assert min(ages) > 0 and len(set(ages)) > 40  # a history ends strictly before its impression
    notes = [note for note in store.origin["notes"] if "taken as" in note]
    assert [f"taken as {guess} since 1970" in note for note in notes] == [True] * bool(guess)
    # They are what a batch has.
    batch = BatchSource(store, "train", len(store.split("train")), ages=True, shuffle=False)[0]
    train = [age for of_sample in expected[: len(batch.label)] for age in of_sample]
    assert batch.sequences["history"].age[: len(train)].tolist() == [
        min(int(np.log2(age + 1)), AGE_BUCKETS - 1) for age in train
    ]


ROWS = {
    "impressions": [
        {"user": 0, "film": i, "at": 10 * i, "click": i % 2, "order": i} for i in range(20)
    ],
    "views": [{"user": 0, "film": i, "at": 10 * i + 1, "order": i} for i in range(20)],
}
PARQUET, PARQUET_VIEWS = SPEC.replace("FORMAT", "parquet"), VIEWS.replace("FORMAT", "parquet")


def with_unit(unit):
    return PARQUET.replace('time = "at"', f'time = "at"\ntime_unit = "{unit}"') + PARQUET_VIEWS


@pytest.mark.parametrize(
    ("unit", "seconds"),
    [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)],
)
def test_a_spec_may_name_the_unit(tmp_path, unit, seconds):
    store = prepare(tmp_path, ROWS, with_unit(unit))
    assert store.column("samples/time").tolist() == [int(10 * i * seconds) for i in range(20)]
    assert store.column("events/history.time").tolist() == [
        int((10 * i + 1) * seconds) for i in range(20)
    ]
    assert not [note for note in store.origin["notes"] if "time" in note]


@pytest.mark.parametrize("latest", [190, 20_240_501, 2_024_050_112, 20_240_501_123_000])
def test_without_a_known_unit_there_are_no_times(tmp_path, latest):
    """Days of a study, and dates written as numbers."""
    tables = {"impressions": [r | {"at": latest - 190 + r["at"]} for r in ROWS["impressions"]]}
    store = prepare(tmp_path, tables, PARQUET)
    assert not store.schema.sequences[0].times
    assert [note for note in store.origin["notes"] if "times" in note] == [
        f"times are numbers, up to {latest}: their unit is unknown, so that behaviours have no "
        "ages; name their unit in [impressions] time_unit: d, h, min, s, ms, us, ns"
    ]
    with pytest.raises(DinError, match="no times of: history"):
        BatchSource(store, "train", 8, ages=True)


def test_behaviors_without_a_time_have_none(tmp_path):
    prior = 'prior = true\norder = "order"'
    store = prepare(tmp_path / "a", ROWS, PARQUET + PARQUET_VIEWS.replace('time = "at"', prior))
    description = json.loads((tmp_path / "a/store/schema.json").read_text())
    assert "times" not in description["schema"]["sequences"][0]
    assert not (tmp_path / "a/store/samples/time.npy").exists()
    assert not [note for note in store.origin["notes"] if "time" in note]
    # Another sequence may have times.
    views = PARQUET_VIEWS.replace("[behaviours]", "[behaviours.VIEWS]")
    two = views.replace("VIEWS", "views") + views.replace("VIEWS", "prior").replace(
        'time = "at"', prior
    )
    seconds = with_unit("s").removesuffix(PARQUET_VIEWS)
    store = prepare(tmp_path / "b", ROWS, seconds + two)
    assert [s.times for s in store.schema.sequences] == [True, False]
    assert len(store.column("samples/time")) == len(store.column("events/views.time")) == 20
    with pytest.raises(DinError, match="no times of: prior"):
        BatchSource(store, "train", 8, ages=True)


def later(rows, shift):
    return [row | {"at": shift + row["at"]} for row in rows]


@pytest.mark.parametrize(
    ("tables", "spec", "message"),
    [
        (ROWS, with_unit("sec"), r"time_unit = 'sec'; expected the unit .* numbers: d, h, min, s"),
        (
            {n: [r | {"at": moment(r["at"])} for r in rows] for n, rows in ROWS.items()},
            with_unit("s"),
            r"\[impressions\] time_unit = 's', but the times are dates; remove it",
        ),
        (
            {
                "impressions": later(ROWS["impressions"], 1_650_000_000_000),
                "views": later(ROWS["views"], 1_650_000_000),
            },
            PARQUET + PARQUET_VIEWS,
            r"different units: those of \[impressions\], up to 1650000000190, look like ms, those "
            r"of \[behaviours\], up to 1650000191, look like s; name the unit of each",
        ),
        (
            {n: later(rows, 1_650_000_000_000) for n, rows in ROWS.items()},
            with_unit("s"),
            r"time_unit = 's', in which the times of \[impressions\], up to 1650000000190, are "
            "beyond the year 9999; expected their unit: d, h, min, s, ms, us, ns",
        ),
        (
            {n: later(rows, -(2**62)) for n, rows in ROWS.items()},
            with_unit("d"),
            "beyond the year 9999",
        ),
    ],
)
def test_units_that_cannot_be_are_one_clear_error(tmp_path, tables, spec, message):
    write(tmp_path, tables, spec)
    with pytest.raises(DinError, match=message):
        log.prepare(tmp_path / "spec.toml", tmp_path / "store")


def test_seconds_before_1970_are_rounded_down():
    assert in_seconds(pl.Series([-1500, -1, 0, 999]), "ms").tolist() == [-2, -1, 0, 0]
    assert in_seconds(pl.Series([-1.5, 0.5]), "s").tolist() == [-2, 0]
