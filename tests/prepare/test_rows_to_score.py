"""Rows to score, in blocks, against the store that was prepared of them."""

import numpy as np
import polars as pl
import pytest
from small_logs import IMPRESSIONS, SPLIT, impressions, prepared, write

from din_jax.data.packing import Packer
from din_jax.errors import DinError
from din_jax.prepare.log.rows_to_score import RowsToScore

SIDE = """[impressions.context]
hour = {column = "time", table = "hour"}
[impressions.ad]
price = {numeric = "log1p"}
shown = {column = "price", table = "shown"}
[items]
path = "items.csv"
item = "item"
[items.columns]
brand = {}
tags = {column = "tags", separator = "|"}
[users]
path = "users.csv"
user = "user"
[users.columns]
age = {}
[tables.shown]
buckets = 4
"""
BEHAVIOURS = """[behaviours]
path = "behaviours.csv"
user = "user"
item = "item"
time = "time"
ad = {price = {numeric = "log1p"}, shown = {column = "price", table = "shown"}}
"""
ITEMS = pl.DataFrame(
    {
        "item": list(range(10, 17)),
        "brand": ["a", "b", None, "a", "c", "b", "a"],
        "tags": ["x|y", "y", None, "z|x|w", "", "w", "x"],
    }
)
USERS = pl.DataFrame({"user": range(5), "age": [20, 30, None, 20, 40]})


def a_log(rows=60):
    return impressions(rows, price=lambda k: None if k % 9 == 4 else 1.5 * (k % 11))


def batches(store, samples):
    """One batch of each sample: everything that a model reads."""
    packer = Packer(store, 4, ages=True)
    result = []
    for sample in samples:
        one = np.array([sample])
        lengths = dict(zip(packer.axes, packer.lengths(one)[0].tolist(), strict=True))
        (batch,) = packer.pack([one], 1, [lengths])
        fields = {n: v for n, v in batch.fields.items() if n != "user_id"}
        result.append((fields, batch.sequences))
    return result


def assert_equal(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_equal(found[name], expected[name])
    elif isinstance(expected, tuple):
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    else:
        np.testing.assert_array_equal(found, expected)


def scored(rows, size=7):
    """The batch of each row, in the order of the file."""
    result = []
    for frame, store, row_of_sample, _ in rows.blocks(size):
        of_block = [None] * len(frame)
        for row, batch in zip(row_of_sample, batches(store, range(len(frame))), strict=True):
            of_block[row] = batch
        result += of_block
    return result


def assert_rows_are_samples(store, frame, found):
    """Each row has the batch of the store's sample of its user and time."""
    times = store.column("samples/time") // 3600
    users = store.vocabulary("user").ids.to_list()
    sample_of = {}
    for sample in range(len(store)):
        user = users[store.column("fields/user_id")[sample]]
        sample_of.setdefault((user, int(times[sample])), sample)
    compared = 0
    for row, batch in zip(frame.iter_rows(named=True), found, strict=True):
        sample = sample_of.get((row["user"], row["time"]))
        if sample is not None:
            assert_equal(batch, batches(store, [sample])[0])
            compared += 1
    assert compared > 40
    assert any(len(s.segment_ids) > 2 for _, sequences in found for s in sequences.values())


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_rows_with_clicks_have_the_batches_of_their_samples(tmp_path, suffix):
    frame = a_log()
    store = prepared(
        tmp_path,
        IMPRESSIONS + SIDE + SPLIT,
        impressions_csv=frame,
        items_csv=ITEMS,
        users_csv=USERS,
    )
    shuffled = frame.sample(fraction=1, shuffle=True, seed=3)
    path = tmp_path / f"rows.{suffix}"
    {"csv": shuffled.write_csv, "parquet": shuffled.write_parquet}.get(
        suffix, shuffled.write_ndjson
    )(path)
    assert_rows_are_samples(store, shuffled, scored(RowsToScore(store, (path,))))
    # The clicks in a file of their own, and rows without labels.
    unlabelled = tmp_path / "new.parquet"
    shuffled.drop("click").write_parquet(unlabelled)
    with pytest.raises(DinError, match="have no label; name the file of the users' clicks"):
        RowsToScore(store, (unlabelled,))
    rows = RowsToScore(store, (unlabelled,), behaviors=path)
    assert_rows_are_samples(store, shuffled, scored(rows))


def test_rows_beside_a_table_of_behaviours_have_the_batches_of_their_samples(tmp_path):
    frame = a_log()
    behaviours = a_log(80).drop("click").with_columns(pl.col("time") - 15)
    tables = {"items_csv": ITEMS, "users_csv": USERS, "behaviours_csv": behaviours}
    store = prepared(
        tmp_path, IMPRESSIONS + SIDE + BEHAVIOURS + SPLIT, impressions_csv=frame, **tables
    )
    path = tmp_path / "new.parquet"
    frame.drop("click").write_parquet(path)
    found = scored(RowsToScore(store, (path,)))
    assert_rows_are_samples(store, frame, found)
    # Behaviours elsewhere, and the other tables in another folder.
    moved = tmp_path / "moved"
    write(moved, "", items_csv=ITEMS, users_csv=USERS, clicks_csv=behaviours.head(0))
    behaviours.write_csv(tmp_path / "later.csv")
    for name in ("items", "users", "behaviours"):
        (tmp_path / f"{name}.csv").unlink()
    rows = RowsToScore(store, (path,), behaviors=tmp_path / "later.csv", folder=moved)
    assert_equal(tuple(scored(rows)), tuple(found))


def test_rows_with_counts_of_clicks_are_one_row_each(tmp_path):
    frame = a_log().with_columns(clicks=pl.col("click"), shown=pl.lit(3)).drop("click")
    label = 'label = { clicks = "clicks", impressions = "shown" }\n'
    spec = IMPRESSIONS.replace('label = "click"\n', label) + SIDE + BEHAVIOURS + SPLIT
    tables = {"items_csv": ITEMS, "users_csv": USERS, "behaviours_csv": a_log().drop("click")}
    store = prepared(tmp_path, spec, impressions_csv=frame, **tables)
    rows = RowsToScore(store, (tmp_path / "impressions.csv",))
    assert_rows_are_samples(store, frame, scored(rows))


def test_interactions_are_the_histories_of_rows_to_score(tmp_path):
    item = 10 + pl.col("user") + pl.col("time").sub(1000) // 25  # three items a user
    frame = a_log().drop("click").with_columns(item=item)
    spec = IMPRESSIONS.replace('label = "click"\n', "") + SIDE
    spec += '[negatives]\nper_positive = 1\nby = "uniform"\n' + SPLIT
    store = prepared(tmp_path, spec, impressions_csv=frame, items_csv=ITEMS, users_csv=USERS)
    path = tmp_path / "new.csv"
    frame.write_csv(path)
    rows = RowsToScore(store, (path,), behaviors=tmp_path / "impressions.csv")
    assert_rows_are_samples(store, frame, scored(rows))
