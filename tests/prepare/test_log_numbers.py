"""Columns of numbers in a log: of the samples, of side tables and of behaviours."""

import numpy as np
import polars as pl
import pytest
from small_logs import IMPRESSIONS, KNOWN, SPLIT, impressions, prepared, write

from din_jax.data import numbers
from din_jax.errors import DinError
from din_jax.prepare import log

SPEC = """[impressions.context]
wait = {numeric = "TRANSFORM"}
[items]
path = "items.csv"
item = "item"
[items.columns]
price = {numeric = {transform = "TRANSFORM"}}
"""
PRICE = {item: [None, 0.5, 3.0, -2.0, 1e6, "nan", "inf"][item - 10] for item in range(10, 17)}


def number(value):
    value = np.nan if value is None else float(value)
    return value if np.isfinite(value) else np.nan


@pytest.mark.parametrize("transform", numbers.TRANSFORMS)
@pytest.mark.parametrize("parquet", [False, True])
def test_numbers_are_transformed_by_what_is_fitted_on_training(tmp_path, transform, parquet):
    frame = impressions(wait=lambda k: None if k % 6 == 0 else k * 1.5)
    items = pl.DataFrame({"item": list(PRICE), "price": [str(v or "") for v in PRICE.values()]})
    spec = IMPRESSIONS + SPEC.replace("TRANSFORM", transform) + SPLIT + KNOWN
    tables = {"impressions_csv": frame}
    if parquet:
        spec = spec.replace(".csv", ".parquet")
        tables = {"impressions_parquet": frame.with_columns(pl.col("wait").cast(pl.Float32))}
        items = items.with_columns(price=pl.Series(map(number, PRICE.values())))
    tables["items_parquet" if parquet else "items_csv"] = items
    store = prepared(tmp_path, spec, **tables)
    assert [(n.name, n.group) for n in store.schema.numbers] == [
        ("price", "ad"),
        ("wait", "context"),
    ]
    rows = frame.rows(named=True)
    wait = np.array([number(row["wait"]) for row in rows])
    price = np.array([number(PRICE[row["item"]]) for row in rows])
    # The clicks, by user and time; those in a history of training are fitted on, once each.
    clicks = sorted((r["user"], r["time"]) for r in rows if r["click"])
    last = {r["user"]: r["time"] for r in rows[:30]}
    in_histories = [number(PRICE[rows[t - 1000]["item"]]) for u, t in clicks if t < last[u]]
    for name, fitted_on, of_samples in (
        ("wait", wait[:30], wait),
        ("price", np.append(price[:30], in_histories), price),
    ):
        fitted = numbers.fit(fitted_on, transform)
        column = store.column(f"fields/{name}")
        np.testing.assert_array_equal(column, fitted.apply(of_samples))
        assert np.isnan(column).any()
        assert store.origin["numbers"][name] == fitted.to_json()
    events = [number(PRICE[rows[t - 1000]["item"]]) for _, t in clicks]
    np.testing.assert_array_equal(store.column("events/history/price"), fitted.apply(events))


@pytest.mark.parametrize(
    ("wait", "more", "message"),
    [
        ('{numeric = "log"}', "", "numeric = 'log'; expected a transform: none, standard"),
        ("{numeric = {kind = 1}}", "", "unknown key 'kind'"),
        ('{numeric = "log1p", separator = "|"}', "", "has a separator, but is numeric"),
        ('{numeric = "log1p"}', "wait.buckets = 4\n", r"but there is a section \[tables.wait\]"),
        (
            '{numeric = "log1p", table = "item"}',
            "",
            r"is numeric, .* but there is a section .tables.item.",
        ),
        (
            '{numeric = "log1p"}\nlonger = {column = "wait", table = "wait", numeric = "none"}',
            "",
            "'wait' is numeric, and another column .* by another transform",
        ),
        (
            '{numeric = "standard"}',
            "",
            r"impressions.csv, line 9: column 'wait' .* is 'x'; expected a n",
        ),
    ],
)
def test_invalid_numbers(tmp_path, wait, more, message):
    spec = IMPRESSIONS + f"[impressions.context]\nwait = {wait}\n" + SPLIT + KNOWN + more
    frame = impressions(wait=lambda k: "x" if k == 7 else str(k))
    with pytest.raises(DinError, match=message):
        log.prepare(write(tmp_path, spec, impressions_csv=frame), tmp_path / "store")
