"""The preparation of a log against plain loops over its rows; planted leaks; clear errors."""

import datetime
import gzip
import subprocess
import sys
import zoneinfo

import numpy as np
import polars as pl
import pytest

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.prepare import log
from din_jax.prepare.log_source import Rows, Source
from din_jax.prepare.log_spec import Place

SPEC = """
[impressions]
path = "impressions.parquet"
label = "click"
user = "user"
item = "film"
time = "at"
context = ["tab", "price"]

[items]
path = "films.parquet"
item = "film"
valid_from = "since"
columns = ["category", "tags"]

[users]
path = "users.parquet"
user = "user"
columns = ["age"]

[split]
by = "time"
validation = 0.15
test = 0.25

[tables]
item.unknown_share = 0
user.unknown_share = 0
tab.unknown_share = 0
category.unknown_share = 0
tags.unknown_share = 0
age.unknown_share = 0
price.buckets = 4
"""
VIEWS = """
[behaviours]
path = "views.parquet"
user = "user"
item = "film"
time = "at"
"""
IDS = ("user", "item", "tab", "category", "tags", "age")  # all tables but that of prices


def tables_of_a_log(seed=0, impressions=400, users=8, films=25, times=60):
    """Rows of each table. Times are few, so that many are equal; some rows stand twice."""
    rng = np.random.default_rng(seed)

    def some(n):
        return [int(v) for v in rng.integers(n, size=impressions)]

    rows = [
        {
            "user": user,
            "film": film,
            "at": at,
            "click": click,
            "tab": (None, "home", "search", "new")[tab],
            "price": None if tab == 3 else at % 7 + film / 2,
        }
        for user, film, at, click, tab in zip(
            some(users), some(films), some(times), some(2), some(4), strict=True
        )
    ]
    views = [
        {"user": u, "film": f, "at": at}
        for u, f, at in zip(some(users + 3), some(films + 9), some(times), strict=True)
    ]
    return {
        "impressions": rows + rows[::9],
        "views": views + views[:5],
        "films": [
            {
                "film": film,
                "since": since,
                "category": [None, "a", "b", f"c{film}"][film % 4],
                "tags": [f"t{int(t) + 3 * (since // 50)}" for t in rng.integers(6, size=film % 3)],
            }
            for film in range(2, films + 30)
            for since in rng.choice(times, size=1 + film % 3, replace=False).tolist()
        ],
        "users": [{"user": user, "age": user % 3} for user in range(1, users)],
    }


def write(folder, tables, spec):
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(folder / f"{name}.parquet")
    (folder / "spec.toml").write_text(spec)


def prepare(folder, tables, spec, **options):
    write(folder, tables, spec)
    log.prepare(folder / "spec.toml", folder / "store", **options)
    return Store(folder / "store")


# --- The same in plain Python -------------------------------------------------------------------


def distinct(rows):
    return list({tuple(row.items()): row for row in rows}.values())


def as_of(rows, key, value, time):
    """The row of this key that held at a time; of a table without times, the row."""
    held = [r for r in rows if r[key] == value and ("since" not in r or r["since"] <= time)]
    return max(held, key=lambda r: r.get("since", 0)) if held else {}


def behaviors_before(impression, behaviors):
    mine = [b for b in behaviors if b["user"] == impression["user"]]
    earlier = [b for b in mine if b["at"] < impression["at"]]
    return sorted(earlier, key=lambda b: b["at"])


def by_time(rows, validation=0.15, test=0.25):
    """The split of each row: whole times, from the back."""
    times = sorted(r["at"] for r in rows)
    begin = {
        "test": times[round(len(rows) * (1 - test))],
        "validation": times[round(len(rows) * (1 - test - validation))],
    }
    return [
        next((name for name, time in begin.items() if row["at"] >= time), "train") for row in rows
    ]


def oracle(tables, split_of=by_time, clicks=True):
    """{split: samples} with raw values; ids that training does not hold are None."""
    rows = distinct(tables["impressions"])
    behaviors = [r for r in rows if r["click"]] if clicks else distinct(tables["views"])

    def of_item(film, time):
        held = as_of(tables["films"], "film", film, time)
        return {"category": held.get("category"), "tags": held.get("tags", [])}

    splits = {name: [] for name in SPLITS}
    for row, split in sorted(
        zip(rows, split_of(rows), strict=True), key=lambda p: (SPLITS.index(p[1]), p[0]["at"])
    ):
        splits[split].append(
            {
                "label": row["click"],
                "price": row["price"],
                "user_id": row["user"],
                "age": as_of(tables["users"], "user", row["user"], None).get("age"),
                "item": row["film"],
                "tab": row["tab"],
                **of_item(row["film"], row["at"]),
                "history": [
                    {"event": id(b), "item": b["film"], **of_item(b["film"], b["at"])}
                    for b in behaviors_before(row, behaviors)
                ],
            }
        )
    # What training holds of each table: its samples, and the events of their histories once each.
    events = {b["event"]: b for s in splits["train"] for b in s["history"]}
    seen = {table: [] for table in IDS}
    for holder in [*splits["train"], *events.values()]:
        for field, value in holder.items():
            table = "user" if field == "user_id" else field
            if table in seen:
                seen[table] += value if isinstance(value, list) else [value]

    held = {table: set(values) for table, values in seen.items()}

    def known(table, value):
        return value if value in held[table] else None

    for sample in [s for samples in splits.values() for s in samples]:
        for holder in [sample, *sample["history"]]:
            holder.pop("event", None)
            for field in ("user_id", "item", "tab", "age", "category"):
                if field in holder:
                    holder[field] = known("user" if field == "user_id" else field, holder[field])
            holder["tags"] = [known("tags", tag) for tag in holder["tags"]]
    return splits, {table: [v for v in values if v is not None] for table, values in seen.items()}


def decoded(store):
    """{split: samples} of a store, as the oracle has them; prices as rows of their table."""
    ids = {t.name: store.vocabulary(t.name).ids for t in store.schema.tables}

    def value(name, field, at):
        column = store.column(name)
        raw = ids[field.table] if field.table in IDS else range(99)
        if not field.multi_hot:
            return raw[int(column[at])]
        offsets = store.column(f"{name}.offsets")
        return [raw[int(row)] for row in column[int(offsets[at]) : int(offsets[at + 1])]]

    def sample(i):
        found = {f.name: value(f"fields/{f.name}", f, i) for f in store.schema.fields}
        for s in store.schema.sequences:
            start, end = (int(store.column(f"sequences/{s.name}.{e}")[i]) for e in ("start", "end"))
            found[s.name] = [
                {f.name: value(f"events/{s.name}/{f.name}", f, at) for f in s.fields}
                for at in range(start, end)
            ]
        return found | {"label": int(store.column("samples/label")[i])}

    return {split: [sample(i) for i in store.split(split)] for split in SPLITS}


def without(samples, *fields):
    return [{k: v for k, v in s.items() if k not in fields} for s in samples]


# --- Against it ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("clicks", [True, False])
def test_samples_histories_and_side_tables_are_those_of_plain_loops(tmp_path, seed, clicks):
    tables = tables_of_a_log(seed)
    store = prepare(tmp_path, tables, SPEC + ("" if clicks else VIEWS))
    expected, seen = oracle(tables, clicks=clicks)
    found = decoded(store)
    for split in SPLITS:
        assert without(found[split], "price") == without(expected[split], "price")
    for table in IDS:
        ids, counts = store.vocabulary(table)
        assert ids.to_list()[1:] == sorted(set(seen[table]))
        assert counts.tolist()[1:] == [seen[table].count(i) for i in ids[1:]]


def test_prices_fall_in_buckets_between_quantiles_of_training(tmp_path):
    tables = tables_of_a_log()
    store = prepare(tmp_path, tables, SPEC)
    expected, _ = oracle(tables)
    ends, counts = store.vocabulary("price")
    prices = np.array(sorted(s["price"] for s in expected["train"] if s["price"] is not None))
    # The smallest prices that a quarter, a half and three quarters of training do not exceed.
    quartiles = [prices[int(np.ceil(len(prices) * q)) - 1] for q in (0.25, 0.5, 0.75)]
    assert ends.to_list() == [None, -np.inf, *quartiles]
    assert ends.dtype == pl.Float64
    for split, samples in decoded(store).items():
        for sample, plain in zip(samples, expected[split], strict=True):
            price = plain["price"]
            row = 0 if price is None else 1 + sum(price >= end for end in quartiles)
            assert sample["price"] == row
    rows = store.column("fields/price")[: len(expected["train"])]
    assert counts.tolist()[1:] == np.bincount(rows, minlength=5)[1:].tolist()


def test_the_report_counts_what_went_in_and_came_out(tmp_path):
    tables = tables_of_a_log()
    origin = prepare(tmp_path, tables, SPEC + VIEWS).origin
    expected, seen = oracle(tables, clicks=False)
    views = distinct(tables["views"])
    assert origin["rows"]["impressions"] == {
        "read": len(tables["impressions"]),
        "duplicates": len(tables["impressions"]) - len(distinct(tables["impressions"])),
        "in no split": 0,
    }
    assert origin["rows"]["behaviours"] == {
        "read": len(tables["views"]),
        "duplicates": len(tables["views"]) - len(views),
        "of users without impressions": sum(v["user"] >= 8 for v in views),
    }
    for split, samples in expected.items():
        lengths = [len(s["history"]) for s in samples]
        assert origin["samples"][split] == len(samples)
        assert origin["label rate"][split] == pytest.approx(
            np.mean([s["label"] for s in samples]), abs=1e-6
        )
        assert origin["histories"]["history"][split] == {
            "mean": pytest.approx(np.mean(lengths), abs=1e-3),
            "longest": max(lengths),
            "empty": pytest.approx(lengths.count(0) / len(lengths), abs=1e-6),
        }
        unknown = {
            "age": [s["age"] is None for s in samples],
            "category": [s["category"] is None for s in samples],
            "tags": [tag is None for s in samples for tag in s["tags"]],
            "price": [s["price"] is None for s in samples],
        }
        for field, values in unknown.items():
            assert origin["unknown"][field][split] == pytest.approx(np.mean(values))
    assert origin["tables"]["item"]["ids"] == len(set(seen["item"]))
    impressions = distinct(tables["impressions"])

    def share_in_films(rows):
        held = [as_of(tables["films"], "film", r["film"], r["at"]) for r in rows]
        return pytest.approx(np.mean([bool(row) for row in held]), abs=1e-6)

    known = {r["user"] for r in tables["users"]}
    assert origin["found"] == {
        "items": {
            "samples": share_in_films(impressions),
            "history": share_in_films([v for v in views if v["user"] < 8]),
        },
        "users": {
            "samples": pytest.approx(np.mean([r["user"] in known for r in impressions]), abs=1e-6)
        },
    }


def test_a_separator_that_is_in_no_value_is_noted(tmp_path):
    tables = tables_of_a_log()
    tables["films"] = [r | {"tags": "|".join(r["tags"])} for r in tables["films"]]
    spec = SPEC.replace('["category", "tags"]', '{category = {}, tags = {separator = "SEPARATOR"}}')
    for separator, notes in (("|", 0), (",", 1)):
        origin = prepare(tmp_path / str(notes), tables, spec.replace("SEPARATOR", separator)).origin
        assert len(origin["notes"]) == notes
    assert "[items] tags: the separator ',' is in no value of column 'tags'" in origin["notes"][0]
    assert origin["notes"][0] in "\n".join(log._report(origin))


def test_the_command_reports_and_writes(tmp_path):
    write(tmp_path, tables_of_a_log(), SPEC)
    command = [sys.executable, "-m", "din_jax.prepare", "log", "--out", str(tmp_path / "store")]
    done = subprocess.run(
        [*command, "--spec", str(tmp_path / "spec.toml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    origin = Store(tmp_path / "store").origin
    assert f"train samples               {origin['samples']['train']:,}, label" in done.stdout
    assert f"read {origin['rows']['impressions']['read']:,}, duplicates" in done.stdout


# --- Leaks --------------------------------------------------------------------------------------


def test_a_click_is_in_no_history_of_its_own_time_or_before(tmp_path):
    # Every impression has a film of its own, and all of a user's at one time: a history that held
    # what was clicked at the same time would give the label away.
    tables = tables_of_a_log(impressions=300, times=20)
    tables["impressions"] = [r | {"film": i} for i, r in enumerate(tables["impressions"])]
    time_of = {r["film"]: r["at"] for r in tables["impressions"]}
    tables["views"] = [r for r in tables["impressions"] if r["click"]]
    for spec in (SPEC, SPEC + VIEWS):
        # The films' rows, not their ids: those of validation and test are unknown.
        store = prepare(tmp_path / str(len(spec)), tables, spec)
        samples = [s for split in decoded(store).values() for s in split]
        known = [s for s in samples if s["item"] is not None]
        assert sum(len(s["history"]) for s in known) > 500
        for sample in known:
            at = time_of[sample["item"]]
            assert all(time_of[b["item"]] < at for b in sample["history"])


def spoiled(tables, cut):
    """The log with everything changed that is not before `cut`, and as many rows."""
    rng = np.random.default_rng(7)
    changed = {name: [dict(r) for r in rows] for name, rows in tables.items()}
    for name in ("impressions", "views"):
        late = [r for r in changed[name] if r["at"] >= cut]
        for key in late[0]:
            if key not in ("at", "split"):
                values = [r[key] for r in late]
                for row, i in zip(late, rng.permutation(len(late)), strict=True):
                    row[key] = values[i]
        for row in late[::3]:
            row |= {"film": 1000 + row["film"]} | ({"tab": "later"} if "tab" in row else {})
            if "price" in row:
                row["price"] = 1e6
        for row in late[::4]:
            row["user"] -= 500
    return changed


@pytest.mark.parametrize("behaviors", ["", VIEWS])
@pytest.mark.parametrize("split", ["time", "column"])
def test_nothing_of_validation_and_test_changes_training(tmp_path, behaviors, split):
    tables = tables_of_a_log(impressions=1500)
    cut = 36
    for row in tables["impressions"]:
        row["split"] = "old" if row["at"] < 45 else "new"
    spec = SPEC.replace("unknown_share = 0", "unknown_share = 0.01") + behaviors
    if split == "time":
        spec = spec.replace("0.15", str(cut)).replace("0.25", "45")
    else:
        share = sum(cut <= r["at"] < 45 for r in distinct(tables["impressions"])) / sum(
            r["at"] < 45 for r in distinct(tables["impressions"])
        )
        spec = spec.replace(
            'by = "time"\nvalidation = 0.15\ntest = 0.25',
            f'by = "column"\ncolumn = "split"\ntrain = "old"\nvalidation = {share}\ntest = "new"',
        )
    before = prepare(tmp_path / "before", tables, spec)
    after = prepare(tmp_path / "after", spoiled(tables, cut), spec)
    assert before.split("train") == after.split("train")
    assert before.fingerprint != after.fingerprint
    assert decoded(before)["test"] != decoded(after)["test"]
    for table in before.schema.tables:
        path = f"vocab/{table.name}.parquet"
        assert (before.path / path).read_bytes() == (after.path / path).read_bytes()
    assert before.origin["tables"] == after.origin["tables"]
    assert before.origin["tables"]["item"]["made unknown"] == 0  # none is seen once
    train = slice(0, len(before.split("train")))
    columns = ["samples/label", "samples/user"] + [
        f"fields/{f.name}" for f in before.schema.fields if not f.multi_hot
    ]
    for name in columns:
        a, b = before.column(name)[train], after.column(name)[train]
        assert a.tobytes() == b.tobytes(), name
    # Later events of other users may move where a history lies, and nothing else.
    assert decoded(before)["train"] == decoded(after)["train"]


def test_a_click_of_a_later_split_may_not_be_in_a_training_history(tmp_path):
    tables = tables_of_a_log()
    for i, row in enumerate(tables["impressions"]):
        row["split"] = ("train", "train", "validation", "test")[i % 4]
    spec = SPEC.replace('by = "time"\nvalidation = 0.15\ntest = 0.25', NAMED)
    with pytest.raises(DinError, match=r"samples of the split train, of user \d+ .*later split"):
        prepare(tmp_path, tables, spec)
    # Behaviours of a table of their own are not labels.
    assert len(prepare(tmp_path, tables, spec + VIEWS)) == len(distinct(tables["impressions"]))


# --- Splits -------------------------------------------------------------------------------------

NAMED = """by = "column"
column = "split"
train = "train"
validation = "validation"
test = "test"
"""


def users_by_split(store):
    user = store.column("samples/user")
    return [set(user[store.split(s).start : store.split(s).stop].tolist()) for s in SPLITS]


def test_a_split_by_user_is_seeded_and_keeps_users_whole(tmp_path):
    tables = tables_of_a_log(users=40, impressions=900)
    spec = SPEC.replace('"time"\nv', '"user"\nv')
    stores = [prepare(tmp_path / f"{i}", tables, spec, seed=s) for i, s in enumerate((0, 0, 1))]
    train, validation, test = users_by_split(stores[0])
    assert (len(train), len(validation), len(test)) == (24, 6, 10)
    assert not (train & validation or train & test or validation & test)
    assert stores[0].fingerprint == stores[1].fingerprint != stores[2].fingerprint
    # All users of the others are unknown to training.
    assert {s["user_id"] for s in decoded(stores[0])["test"]} == {None}


def test_a_split_at_points_in_time(tmp_path):
    tables = tables_of_a_log()
    store = prepare(tmp_path, tables, SPEC.replace("0.15", "30").replace("0.25", "50"))
    times = [r["at"] for r in distinct(tables["impressions"])]
    assert [len(store.split(s)) for s in SPLITS] == [
        sum(t < 30 for t in times),
        sum(30 <= t < 50 for t in times),
        sum(t >= 50 for t in times),
    ]


def test_a_split_by_column_with_the_latest_of_train_as_validation(tmp_path):
    tables = tables_of_a_log()
    for row in tables["impressions"]:
        row["split"] = "early" if row["at"] < 40 else ("late", "odd")[row["film"] % 2]
    spec = SPEC.replace(
        'by = "time"\nvalidation = 0.15\ntest = 0.25',
        'by = "column"\ncolumn = "split"\ntrain = "early"\nvalidation = 0.1\ntest = ["late"]\n'
        'ignore = "odd"',
    )
    store = prepare(tmp_path, tables, spec)
    rows = distinct(tables["impressions"])
    early = [r for r in rows if r["split"] == "early"]
    times = sorted(r["at"] for r in early)
    begin = times[round(len(early) * 0.9)]
    assert [len(store.split(s)) for s in SPLITS] == [
        sum(t < begin for t in times),
        sum(t >= begin for t in times),
        sum(r["split"] == "late" for r in rows),
    ]
    odd = sum(r["split"] == "odd" for r in rows)
    assert store.origin["rows"]["impressions"]["in no split"] == odd > 0


# --- What tables may look like ------------------------------------------------------------------


def as_text(value):
    """The same with every id as text, as CSV has them."""
    if isinstance(value, dict):
        return {k: v if k in ("label", "price") else as_text(v) for k, v in value.items()}
    if isinstance(value, list):
        return [as_text(v) for v in value]
    return None if value is None else str(value)


@pytest.mark.parametrize(
    ("suffix", "separator", "quotes"),
    [(".csv", ",", "necessary"), (".csv", ",", "always"), (".tsv.gz", "\t", "necessary")],
)
def test_csv_gives_what_parquet_gives(tmp_path, suffix, separator, quotes):
    tables = tables_of_a_log()
    spec = SPEC + VIEWS
    expected = decoded(prepare(tmp_path / "parquet", tables, spec))
    folder = tmp_path / "csv"
    write(folder, {}, spec.replace(".parquet", suffix))
    for name, rows in tables.items():
        frame = pl.DataFrame(rows, infer_schema_length=None)
        if name == "films":
            frame = frame.with_columns(pl.col("tags").list.join("|"))
        text = frame.write_csv(separator=";" if name == "users" else separator, quote_style=quotes)
        data = gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode()
        (folder / f"{name}{suffix}").write_bytes(data)
    text = (folder / "spec.toml").read_text()
    text = text.replace(
        'columns = ["category", "tags"]', 'columns = {category = {}, tags = {separator = "|"}}'
    ).replace('columns = ["age"]', 'columns = ["age"]\ndelimiter = ";"')
    (folder / "spec.toml").write_text(text)
    log.prepare(folder / "spec.toml", folder / "store")
    found = decoded(Store(folder / "store"))
    assert {s: as_text(found[s]) for s in SPLITS} == {s: as_text(expected[s]) for s in SPLITS}

    # Ids that are numbers in one table and text in another are the same ids.
    pl.DataFrame(tables["impressions"], infer_schema_length=None).write_parquet(
        folder / "impressions.parquet"
    )
    (folder / "spec.toml").write_text(text.replace(f"impressions{suffix}", "impressions.parquet"))
    log.prepare(folder / "spec.toml", folder / "mixed")
    mixed = decoded(Store(folder / "mixed"))
    assert {s: as_text(mixed[s]) for s in SPLITS} == {s: as_text(expected[s]) for s in SPLITS}


def test_folders_of_files_and_of_partitions(tmp_path):
    tables = tables_of_a_log()
    spec = SPEC + VIEWS
    whole = prepare(tmp_path / "whole", tables, spec)
    folder = tmp_path / "parts"
    write(folder, {n: t for n, t in tables.items() if n in ("films", "users")}, spec)
    text = spec.replace("impressions.parquet", "log").replace("views.parquet", "views")
    (folder / "spec.toml").write_text(text)
    # In their order, one file after another: as if they were one.
    views = pl.DataFrame(tables["views"])
    (folder / "views").mkdir()
    for i in range(4):
        views[i * 110 : (i + 1) * 110].write_parquet(folder / f"views/part-{i}.parquet")
    for name in ("_SUCCESS", "notes.txt", ".part-0.parquet", "_temporary/part-0.parquet"):
        (folder / "views" / name).parent.mkdir(exist_ok=True)
        (folder / "views" / name).write_text("no part of the table")
    (folder / "log").mkdir()
    rows = pl.DataFrame(tables["impressions"], infer_schema_length=None)
    rows.write_parquet(folder / "log/all.parquet")
    log.prepare(folder / "spec.toml", folder / "store")
    assert Store(folder / "store").fingerprint == whole.fingerprint
    # By the values of a column: the same rows in another order.
    (folder / "log/all.parquet").unlink()
    for (tab,), part in rows.partition_by("tab", as_dict=True, include_key=False).items():
        place = folder / f"log/tab={'__HIVE_DEFAULT_PARTITION__' if tab is None else tab}"
        place.mkdir()
        part.write_parquet(place / "part-0.parquet")
    log.prepare(folder / "spec.toml", folder / "partitioned")
    found, expected = decoded(Store(folder / "partitioned")), decoded(whole)
    for split in SPLITS:
        assert sorted(map(repr, found[split])) == sorted(map(repr, expected[split]))


def test_dates_are_times(tmp_path):
    tables = tables_of_a_log()
    expected = prepare(tmp_path / "numbers", tables, SPEC + VIEWS).fingerprint

    def dated(rows, key, of):
        return [row | {key: of(row[key])} for row in rows]

    def day(n):
        return datetime.date(2024, 1, 1) + datetime.timedelta(days=n)

    def midnight(n):
        return datetime.datetime.combine(day(n), datetime.time())

    def elsewhere(n):  # the same moment, on a clock three hours ahead
        zone = datetime.timezone(datetime.timedelta(hours=3))
        return midnight(n).replace(tzinfo=datetime.UTC).astimezone(zone).isoformat()

    def in_tokyo(n):
        zone = zoneinfo.ZoneInfo("Asia/Tokyo")
        return midnight(n).replace(tzinfo=datetime.UTC).astimezone(zone)

    dates = tables | {
        "impressions": dated(tables["impressions"], "at", in_tokyo),
        "views": dated(tables["views"], "at", elsewhere),
        "films": dated(tables["films"], "since", day),
    }
    assert prepare(tmp_path / "dates", dates, SPEC + VIEWS).fingerprint == expected
    cut = (
        (SPEC + VIEWS).replace("0.15", "'2024-02-01'").replace("0.25", "2024-02-20T03:00:00+03:00")
    )
    numbers = (SPEC + VIEWS).replace("0.15", "31").replace("0.25", "50")
    assert (
        prepare(tmp_path / "cut", dates, cut).fingerprint
        == prepare(tmp_path / "cut-numbers", tables, numbers).fingerprint
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
        rows = Rows(Place("impressions", path, None), ("at", "time"), ("n", "item"))
        rows.add_time("at", "at")
        plain = [datetime.datetime.fromisoformat(moment) for moment in text]
        in_utc = [m.astimezone(datetime.UTC).replace(tzinfo=None) if m.tzinfo else m for m in plain]
        assert rows.distinct()["at"].to_list() == in_utc


def test_several_sequences_and_prior_behaviours_in_their_order(tmp_path):
    tables = tables_of_a_log()
    rng = np.random.default_rng(3)
    tables["earlier"] = [
        {"user": u, "film": int(rng.integers(25)), "place": int(place)}
        for u in range(6)
        for place in rng.permutation(7)
    ]
    spec = SPEC.replace('valid_from = "since"', "").replace('"category", "tags"', '"category"')
    spec = spec.replace("tags.unknown_share = 0", "")
    tables["films"] = list({r["film"]: r for r in tables["films"]}.values())
    spec += VIEWS.replace("[behaviours]", "[behaviours.views]") + (
        "[behaviours.earlier]\n"
        'path = "earlier.parquet"\nuser = "user"\nitem = "film"\nprior = true\norder = "place"\n'
    )
    store = prepare(tmp_path, tables, spec)
    assert [s.name for s in store.schema.sequences] == ["views", "earlier"]
    views = distinct(tables["views"])
    rows = sorted(distinct(tables["impressions"]), key=lambda r: r["at"])
    samples = [s for split in decoded(store).values() for s in split]
    for row, sample in zip(rows, samples, strict=True):
        mine = [r for r in tables["earlier"] if r["user"] == row["user"]]
        mine = sorted(mine, key=lambda r: r["place"])
        assert [b["item"] for b in sample["earlier"]] == [r["film"] for r in mine]
        seen = [b["film"] for b in behaviors_before(row, views)]
        assert len(sample["views"]) == len(seen)
        # A film that training does not hold is unknown.
        assert all(b["item"] in (None, s) for b, s in zip(sample["views"], seen, strict=True))


def test_columns_of_the_impressions_are_fields_of_all_groups(tmp_path):
    tables = tables_of_a_log()
    for row in tables["impressions"]:
        row |= {"Shop Name": f"shop{row['film'] % 3}", "vip": row["user"] % 2 == 1}
    for row in tables["views"]:
        row["shop"] = f"shop{row['film'] % 3}"
    ad = '\n[impressions.ad]\nshop = {column = "Shop Name", table = "firm"}\n'
    spec = SPEC.replace('context = ["tab", "price"]', 'context = ["tab", "price"]\n' + ad)
    spec = spec.replace('time = "at"', 'time = "at"\nprofile = ["vip"]')
    store = prepare(tmp_path / "clicks", tables, spec)
    groups = {f.name: (f.group, f.table) for f in store.schema.fields}
    assert (groups["shop"], groups["vip"]) == (("ad", "firm"), ("user", "vip"))
    assert store.vocabulary("vip").ids.to_list() == [None, "false", "true"]
    spec += VIEWS + 'ad = {shop = {table = "firm"}}\n'
    for found in (store, prepare(tmp_path / "views", tables, spec)):
        for sample in [s for split in decoded_with(found, "firm", "vip").values() for s in split]:
            for holder in [sample, *sample["history"]]:
                if holder["item"] is not None:
                    assert holder["shop"] == f"shop{holder['item'] % 3}"


def decoded_with(store, *tables):
    global IDS
    before, IDS = IDS, (*IDS, *tables)
    try:
        return decoded(store)
    finally:
        IDS = before


def test_rare_ids_are_unknown(tmp_path):
    tables = tables_of_a_log()
    store = prepare(tmp_path, tables, SPEC.replace("item.unknown_share = 0", "item.min_count = 20"))
    _, seen = oracle(tables)
    frequent = {film for film in seen["item"] if seen["item"].count(film) >= 20}
    assert set(store.vocabulary("item").ids[1:]) == frequent
    assert store.origin["tables"]["item"] == {
        "ids": len(frequent),
        "made unknown": 0,
        "too rare": len(set(seen["item"])) - len(frequent),
    }
    assert 0 < len(frequent) < len(set(seen["item"]))


# --- Errors -------------------------------------------------------------------------------------


def spec_with(old, new):
    def change(folder):
        text = (folder / "spec.toml").read_text()
        assert old in text
        (folder / "spec.toml").write_text(text.replace(old, new, 1))

    return change


def views_with(old, new):
    def change(folder):
        assert old in VIEWS
        with (folder / "spec.toml").open("a") as spec:
            spec.write(VIEWS.replace(old, new))

    return change


def frame_with(name, *expressions, **columns):
    def change(folder):
        path = folder / f"{name}.parquet"
        pl.read_parquet(path).with_columns(*expressions, **columns).write_parquet(path)

    return change


def users_as(content, name="users.csv", delimiter=""):
    def change(folder):
        spec_with('"users.parquet"', f'"{name}"{delimiter}')(folder)
        (folder / name).write_bytes(content)

    return change


def value_at(column, row, value, otherwise=None):
    here = pl.int_range(pl.len()) == row
    return (
        pl.when(here)
        .then(value)
        .otherwise(column if otherwise is None else otherwise)
        .alias(column)
    )


NOON = "2024-05-01 12:00:00"
QUOTED = b'user,note,age\n1,"two\nlines, with a comma",2\n'  # lines 1 to 3 of a file


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        # The spec.
        (lambda f: (f / "spec.toml").unlink(), r"spec.toml: no such file; expected the spec of a"),
        (
            lambda f: [(f / "spec.toml").unlink(), (f / "spec.toml").mkdir()],
            r"spec.toml: is a folder; expected the spec of a log, a TOML file",
        ),
        (spec_with('item = "film"', 'item = "user"'), r"user and item are both 'user'; expected"),
        (spec_with('label = "click"', 'label = "at"'), r"\[impressions\] label and time are both"),
        (
            spec_with('valid_from = "since"', 'valid_from = "film"'),
            r"\[items\] item and valid_from are both 'film'",
        ),
        (
            spec_with('["tab", ', '["history", "tab", '),
            r"spec.toml: \[impressions\] has a field 'history', .* sequence of the clicked impr",
        ),
        (spec_with("[users]", "[users"), r"spec.toml: not TOML: .*line 16"),
        (spec_with("[users]", "[user]"), r"unknown section 'user' \(did you mean 'users'\?\)"),
        (spec_with("label", "lable"), r"\[impressions\] unknown key 'lable' \(did you mean 'label"),
        (spec_with('label = "click"', ""), r"\[impressions\] has no 'label'; expected the name of"),
        (spec_with('"click"', "3"), r"\[impressions\] label = 3; expected .* in quotes"),
        (spec_with('["age"]', '"age"'), r"\[users\] columns = 'age'; expected a list of columns"),
        (
            spec_with('["age"]', '{age = {seperator = "|"}}'),
            r"users.columns.age\] unknown key 'sep",
        ),
        (
            spec_with('["age"]', '["my age"]'),
            r"'my age' can't be a field's name.*NAME = \{column =",
        ),
        (
            spec_with('["age"]', '["age", "tab"]'),
            r"\[users\] has a field 'tab', a name that a field of",
        ),
        (spec_with('["age"]', "[]"), r"\[users\] has no 'columns'"),
        (spec_with('["tab", ', '["click", "tab", '), r"has the label, 'click', as a field"),
        (spec_with("item.unk", "itm.unk"), r"\[tables.itm\] is of no table \(did you mean 'item'"),
        (spec_with("price.buckets = 4", "price.buckets = 1"), r"buckets = 1; .* number from 2 on"),
        (spec_with("item.unknown_share = 0", "item.unknown_share = 2"), r"= 2; expected a share"),
        (spec_with("item.unknown_share = 0", "item.buckets = 9"), r"has buckets, but holds ids"),
        (spec_with('"time"\nv', '"tim"\nv'), r"by = 'tim'; .*did you mean 'time'"),
        (spec_with("0.15", "0.75"), r"the shares leave nothing to train on"),
        (spec_with("validation = 0.15", ""), r"\[split\] has no 'validation'; expected the time"),
        (
            spec_with("0.25", "15"),
            r"point in time: validation = 0.15, test = 15; give two of a kind. A share lies betw",
        ),
        (spec_with("0.15", "'15%'"), r"validation = '15%'; expected .* or a share such as 0.1"),
        (
            spec_with("0.15\ntest = 0.25", "50\ntest = 30"),
            r"begins at 50, not before test at 30. A share lies between 0 and 1",
        ),
        (
            spec_with("0.15\ntest = 0.25", "2024-01-01\ntest = 2024-01-02"),
            r"\[split\] .* 2024-01-.*, but the times of \[impressions\], 'at', are Int64 from 0",
        ),
        (
            spec_with("0.15\ntest = 0.25", "50\ntest = 99"),
            r"without impressions: .*test has 0; .* A share lies between 0 and 1",
        ),
        (spec_with('by = "time"', 'by = "column"'), r"\[split\] has no 'train'"),
        # The tables.
        (
            lambda f: (f / "films.parquet").unlink(),
            r"films.parquet: no such file or folder.*\[items",
        ),
        (lambda f: (f / "films.parquet").write_text("no"), r"films.parquet: can not be read \("),
        (spec_with('"click"', '"clck"'), r"no column 'clck' \(label\) \(did you mean 'click'\?\)"),
        (
            frame_with("impressions", value_at("click", 6, 2)),
            r"impressions.parquet, row 7: column 'click' of \[impressions\] is 2; expected a label",
        ),
        (
            frame_with("impressions", value_at("click", 6, None)),
            r"impressions.parquet, row 7: column 'click' .* is empty; expected a value",
        ),
        (
            frame_with(
                "impressions",
                click=pl.when(pl.col("click") == 1).then(pl.lit("yes")).otherwise(pl.lit("no")),
            ),
            r"'click' .* expected a label, 0 or 1. Write .* as 0 and 1; it holds \d+ × '(no|yes)'",
        ),
        (frame_with("impressions", value_at("user", 0, None)), r"row 1: column 'user' .* is empty"),
        (frame_with("impressions", value_at("film", 3, None)), r"row 4: column 'film' .* is empty"),
        (frame_with("impressions", value_at("at", 9, None)), r"row 10: column 'at' .* is empty"),
        (
            frame_with("impressions", pl.col("at") / 0),
            r"row 1: column 'at' .* is inf; expected a time",
        ),
        (frame_with("impressions", pl.col("user") / 2), r"'user' .* holds Float64; expected ids"),
        (
            frame_with("impressions", at=pl.lit("soon")),
            r"is 'soon'; expected a time.* Write the column so \(\d+ of",
        ),
        (
            frame_with("impressions", value_at("at", 5, pl.lit(NOON), pl.lit(f"{NOON}Z"))),
            r"row 6: column 'at' .* is '2024-05-01 12:00:00'; expected a zone such as Z or \+02:00",
        ),
        (
            frame_with("impressions", price=pl.lit("dear")),
            r"'price' .* is 'dear'; expected a number",
        ),
        (
            frame_with("impressions", tab=pl.col("price")),
            r"'tab' .* holds Float64; expected ids.*give their table buckets",
        ),
        (
            frame_with("impressions", at=pl.from_epoch("at", time_unit="d")),
            r"times are numbers in some tables and dates in others: \[impressions\] Datetime",
        ),
        (
            frame_with("films", since=pl.lit(1)),
            r"\[items\] has \d different rows of film = \d+ and",
        ),
        (
            frame_with("users", user=pl.lit(1)),
            r"\[users\] has 3 different rows of user = 1 \(1 such",
        ),
        (
            lambda f: pl.DataFrame({"user": [], "age": []}).write_parquet(f / "users.parquet"),
            "no rows",
        ),
        (
            frame_with("users", user=pl.format("u{}", "user")),
            r"users.parquet: no user of \[users\], user = 'u",
        ),
        # CSV.
        (
            users_as(b"user,age\n1,2\n2,3,4\n"),
            r"users.csv, line 3: 3 values, but the header has 2; put values that hold ',' in",
        ),
        (
            users_as(b"user,age\n1,2\n2\n3,4\n"),
            r"users.csv, line 3: 1 values, but the header has 2",
        ),
        (
            users_as(b'user,note,age\n1,"x, y"\n'),
            r"users.csv, line 2: 2 values, but the header has 3; write",
        ),
        (users_as(b"user,age\n1,2\n\n2,3\n"), r"users.csv, line 3: 0 values, but the header has 2"),
        (users_as(QUOTED + b",x,3\n"), r"users.csv, line 4: column 'user' of \[users\] is empty"),
        (
            users_as(b"\n\nuser,age\n1,2\n,3\n"),
            r"users.csv, line 5: column 'user' of \[users\] is empty",
        ),
        (
            users_as(b"user,age,user\n1,2,1\n"),
            r"users.csv: the header has 'user' \(user of \[users\]\) 2 times; expected it once",
        ),
        (
            users_as(b"user;age\n1;2\n"),
            r"no column 'age' .* with delimiter = \",\": user;age; .* needs delimiter = \";\"",
        ),
        (users_as(b"user\tage\n1\t2\n"), r"by its header it needs delimiter = \"\\t\""),
        (users_as(b'"user"|"age"\n"1"|"2"\n'), r"by its header it needs delimiter = \"\|\""),
        (
            users_as(b"user,age\n1,2\n", delimiter='\ndelimiter = ";"'),
            r"with delimiter = \";\": user,age; by its header it needs delimiter = \",\"",
        ),
        (
            users_as(b"user,age\n1,2\n", name="users.tsv"),
            r"with delimiter = \"\\t\": user,age; by its header it needs delimiter = \",\"",
        ),
        (
            users_as("user,age\n1,2\n2,né\n".encode("latin-1")),
            r"users.csv, line 3: '2,n�' is not UTF-8, .* iconv -f latin1 -t utf-8 OLD > NEW",
        ),
        (
            users_as(gzip.compress(b"user,age\n1,2\n" * 99)[:-9], name="users.csv.gz"),
            r"users.csv.gz: cut short or damaged",
        ),
        # A table of behaviours.
        (views_with('time = "at"\n', ""), r"\[behaviours\] has no 'time': .*prior = true"),
        (
            views_with('time = "at"\n', 'time = "at"\nprior = true\n'),
            r"has both time and prior = true",
        ),
        (
            views_with('time = "at"\n', "prior = true\n"),
            r"\[items\] has valid_from, but the behaviours of",
        ),
        (
            views_with('time = "at"\n', 'time = "at"\nad = ["shop"]\n'),
            r"ad has 'shop', .*those are: none",
        ),
        (
            views_with('item = "film"', 'item = "user"'),
            r"\[behaviours\] user and item are both 'user'",
        ),
        (
            views_with("[behaviours]", "[behaviours.user_id]"),
            r"'user_id' can't be a sequence's name",
        ),
        (
            views_with("[behaviours]", "[behaviours.tab]"),
            r"a field 'tab', a name that the sequence of \[behaviours.tab",
        ),
    ],
)
def test_bad_input_is_one_clear_error_and_no_store(tmp_path, damage, message):
    write(tmp_path, tables_of_a_log(), SPEC)
    damage(tmp_path)
    with pytest.raises(DinError, match=message):
        log.prepare(tmp_path / "spec.toml", tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir() if "store" in p.name] == []


def test_names_of_splits_that_the_spec_lacks_are_listed(tmp_path):
    tables = tables_of_a_log()
    for i, row in enumerate(tables["impressions"]):
        row["split"] = ("train", "validation", "test", "spare")[i % 4]
    spec = SPEC.replace('by = "time"\nvalidation = 0.15\ntest = 0.25', NAMED)
    with pytest.raises(DinError, match=r"'split' names splits .*'spare' \(\d+ rows\).*ignore = \["):
        prepare(tmp_path, tables, spec + VIEWS)


@pytest.mark.parametrize("rows", [100, 40_000])  # as a value the latter is too long for csv
def test_a_quote_that_is_not_closed_is_named(tmp_path, rows):
    path = tmp_path / "impressions.csv"
    lines = ["time,user,item,click", *(f"{i},u{i % 7},g{i % 5},{i % 2}" for i in range(rows))]
    lines[8] = '7,"u0,g2,1'
    path.write_text("\n".join(lines) + "\n")
    place = Place("impressions", path, ",")
    with pytest.raises(DinError, match="line 9: a quote does not stand round a whole value"):
        Source(place).read({"user": "user", "click": "label"})
