"""Splits of a log, and that nothing of a later split reaches an earlier one."""

import numpy as np
import polars as pl
import pytest
from log_oracle import (
    BY_COLUMN,
    BY_TIME,
    SPEC,
    VIEWS,
    decoded,
    distinct,
    prepare,
    tables_of_a_log,
)

from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError
from din_jax.prepare import log


def test_a_click_is_in_no_history_of_its_own_time_or_before(tmp_path):
    # Every impression has a film of its own, and many of a user's have one time: a history with
    # what was clicked at the sample's time would reveal the label.
    tables = tables_of_a_log(impressions=300, times=20)
    tables["impressions"] = [r | {"film": i} for i, r in enumerate(tables["impressions"])]
    time_of = {r["film"]: r["at"] for r in tables["impressions"]}
    tables["views"] = [r for r in tables["impressions"] if r["click"]]
    for name, spec in (("clicks", SPEC), ("views", SPEC + VIEWS)):
        store = prepare(tmp_path / name, tables, spec)
        samples = [s for split in decoded(store).values() for s in split]
        # Films of validation and test are unknown.
        known = [s for s in samples if s["item"] is not None]
        assert sum(len(s["history"]) for s in known) > 500
        for sample in known:
            at = time_of[sample["item"]]
            assert all(time_of[b["item"]] < at for b in sample["history"])


def changed_from(tables, cut):
    """The log with all rows changed whose time is `cut` or later, and as many rows."""
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


@pytest.mark.parametrize("behaviors", ["", VIEWS], ids=["clicks", "views"])
@pytest.mark.parametrize("split", ["time", "column"])
def test_nothing_of_validation_and_test_changes_training(tmp_path, behaviors, split):
    tables = tables_of_a_log(impressions=300)
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
            BY_TIME,
            f'by = "column"\ncolumn = "split"\ntrain = "old"\nvalidation = {share}\ntest = "new"',
        )
    before = prepare(tmp_path / "before", tables, spec)
    after = prepare(tmp_path / "after", changed_from(tables, cut), spec)
    assert before.split("train") == after.split("train")
    assert before.fingerprint != after.fingerprint
    for table in before.schema.tables:
        path = f"vocab/{table.name}.parquet"
        assert (before.path / path).read_bytes() == (after.path / path).read_bytes()
    assert before.origin["tables"] == after.origin["tables"]
    assert before.origin["tables"]["item"]["made unknown"] == 0  # no item occurs once
    train = slice(0, len(before.split("train")))
    columns = ["samples/label", "samples/user"] + [
        f"fields/{f.name}" for f in before.schema.fields if not f.multi_hot
    ]
    for name in columns:
        a, b = before.column(name)[train], after.column(name)[train]
        assert a.tobytes() == b.tobytes(), name
    # Later events of other users may change the offsets of a history, and nothing else.
    samples_before, samples_after = decoded(before), decoded(after)
    assert samples_before["train"] == samples_after["train"]
    assert samples_before["test"] != samples_after["test"]


def test_a_click_of_a_later_split_may_not_be_in_a_training_history(tmp_path):
    tables = tables_of_a_log()
    for i, row in enumerate(tables["impressions"]):
        row["split"] = ("train", "train", "validation", "test")[i % 4]
    spec = SPEC.replace(BY_TIME, BY_COLUMN)
    with pytest.raises(DinError, match=r"samples of the split train, of user \d+ .*later split"):
        prepare(tmp_path, tables, spec)
    # Behaviours of a separate table are not labels.
    assert len(prepare(tmp_path, tables, spec + VIEWS)) == len(distinct(tables["impressions"]))


def users_by_split(store):
    user = store.column("samples/user")
    return [set(user[store.split(s).start : store.split(s).stop].tolist()) for s in SPLITS]


def test_a_split_by_user_is_seeded_and_does_not_divide_users(tmp_path):
    tables = tables_of_a_log(users=40, impressions=400)
    spec = SPEC.replace('"time"\nv', '"user"\nv')
    stores = [prepare(tmp_path / f"{i}", tables, spec, seed=s) for i, s in enumerate((0, 0, 1))]
    train, validation, test = users_by_split(stores[0])
    assert (len(train), len(validation), len(test)) == (24, 6, 10)
    assert not (train & validation or train & test or validation & test)
    assert stores[0].fingerprint == stores[1].fingerprint != stores[2].fingerprint
    # Training knows none of the other splits' users.
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
        BY_TIME,
        'by = "column"\ncolumn = "split"\ntrain = "early"\nvalidation = 0.1\ntest = ["late"]\n'
        'ignore = "odd"',
    )
    store = prepare(tmp_path, tables, spec)
    rows = distinct(tables["impressions"])
    early = [r for r in rows if r["split"] == "early"]
    times = sorted(r["at"] for r in early)
    start = times[round(len(early) * 0.9)]
    assert [len(store.split(s)) for s in SPLITS] == [
        sum(t < start for t in times),
        sum(t >= start for t in times),
        sum(r["split"] == "late" for r in rows),
    ]
    odd = sum(r["split"] == "odd" for r in rows)
    assert store.origin["rows"]["impressions"]["in no split"] == odd > 0


def test_names_of_splits_that_the_spec_lacks_are_listed(tmp_path):
    tables = tables_of_a_log()
    for i, row in enumerate(tables["impressions"]):
        row["split"] = ("train", "validation", "test", "spare")[i % 4]
    spec = SPEC.replace(BY_TIME, BY_COLUMN)
    with pytest.raises(DinError, match=r"'split' names splits .*'spare' \(\d+ rows\).*ignore = \["):
        prepare(tmp_path, tables, spec + VIEWS)


@pytest.mark.parametrize(("unit", "factor"), [("ms", 1000), ("s", 1), ("", 1000)])
def test_a_date_splits_times_that_are_numbers(tmp_path, unit, factor):
    began = 1_714_521_600  # 2024-05-01 00:00:00 UTC
    rows = [
        {"user": i % 7, "item": i % 5, "at": factor * (began + 3600 * i), "click": int(i % 3 == 0)}
        for i in range(96)
    ]
    folder = tmp_path / "log"
    folder.mkdir()
    pl.DataFrame(rows).write_csv(folder / "impressions.csv")
    spec = f"""
[impressions]
path = "impressions.csv"
label = "click"
user = "user"
item = "item"
time = "at"
{f'time_unit = "{unit}"' if unit else ""}

[split]
by = "time"
validation = 2024-05-03
test = "2024-05-03 12:00:00.5"
"""
    (folder / "spec.toml").write_text(spec)
    log.prepare(folder / "spec.toml", tmp_path / "store")
    store = Store(tmp_path / "store")
    assert [len(store.split(name)) for name in SPLITS] == [48, 13, 35]
