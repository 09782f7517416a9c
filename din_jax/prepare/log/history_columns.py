"""Reads histories that stand in the impressions' own rows as lists."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log.feature_columns import add_feature, parsed_lists
from din_jax.prepare.log.spec import ListedHistory
from din_jax.prepare.log.text_values import as_text
from din_jax.prepare.log.typed_columns import TypedColumns


def add_history(table: TypedColumns, history: ListedHistory) -> None:
    """Adds the lists of a history in the row, as ".NAME.item", ".NAME.time" and ".NAME.FIELD".

    They have one length in each row.
    """
    length, first = None, ""
    columns = [*([history.item] if history.item else []), *history.ad]
    for column in columns:
        raw = table.raw[column.column]
        if column.weighted == "use":
            raise DinError(
                f'{table.path}: {column.column!r} of [{history.section}] has weighted = "use", but '
                'its values are behaviours, which have no weights; write weighted = "drop"'
            )
        if not (isinstance(raw.dtype, pl.List | pl.Array) or column.list or column.separator):
            raise table.type_error(
                column.column,
                raw.dtype,
                "a list of values in each row",
                f'if it is text, say how: {{column = {column.column!r}, separator = ","}}, or '
                'list = "json"',
            )
        add_feature(table, dataclasses.replace(column, name=f".{history.name}.{column.name}"))
    if history.time is not None:
        _add_list_of_times(table, history)
    names = [c.column for c in columns] + list(history.time.columns if history.time else ())
    parts = [n for n in table.converted if n.startswith(f".{history.name}.")]
    for name, column_name in zip(parts, names, strict=True):
        here = table.converted[name].list.len().fill_null(0)
        if length is None:
            length, first = here, column_name
        else:
            table.refuse(column_name, here != length, f"as many values as {first!r} has in the row")


def _add_list_of_times(table: TypedColumns, history: ListedHistory) -> None:
    assert history.time is not None
    column, name = history.time.columns[0], f".{history.name}.time"
    lists = _lists_of_times(table, history)
    lengths = lists.list.len().fill_null(0)
    table.refuse(
        column, lists.list.eval(pl.element().is_null()).list.any().fill_null(False), "times"
    )
    flat = table.of_elements(column, lists)
    if not len(flat.raw):
        table.add(name, lists.cast(pl.List(pl.Int64)))
        return
    flat.add_time(name, history.time)
    table.notes += flat.notes
    table.zoned |= flat.zoned
    row = np.repeat(np.arange(len(lists)), lengths.to_numpy())
    times = pl.DataFrame({"row": row, "time": flat.converted[name]})
    of_row = times.group_by("row", maintain_order=True).agg("time")
    rows = pl.DataFrame({"row": np.arange(len(lists))})
    table.add(name, rows.join(of_row, on="row", how="left", maintain_order="left")["time"])


def _lists_of_times(table: TypedColumns, history: ListedHistory) -> pl.Series:
    column = history.time_lists
    assert column is not None
    raw = table.raw[column.column]
    if isinstance(raw.dtype, pl.List | pl.Array):
        return raw.cast(pl.List(raw.dtype.inner))
    if column.list is not None:
        return parsed_lists(table, column, raw)
    if column.separator is None:
        raise table.type_error(
            column.column,
            raw.dtype,
            "a list of times in each row",
            f'if it is text, say how: time = {{column = {column.column!r}, separator = ","}}, or '
            'list = "json"',
        )
    parts = as_text(raw).str.split(column.separator).list.eval(pl.element().str.strip_chars())
    return parts.list.eval(pl.element().filter(pl.element() != ""))
