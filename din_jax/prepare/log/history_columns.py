"""Reads histories that stand in the impressions' own rows as lists."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log.spec import ListedHistory
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
                f'{table.path}: {column.column!r} of [{history.name}] has weighted = "use", but '
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
        table.add_feature(dataclasses.replace(column, name=f".{history.name}.{column.name}"))
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
    column = history.time.columns[0]
    raw = table.raw[column]
    if not isinstance(raw.dtype, pl.List | pl.Array):
        raise table.type_error(
            column, raw.dtype, "a list of times in each row", "Parquet and JSON have lists"
        )
    flat = TypedColumns(
        dataclasses.replace(table.files, where=()),
        table.reader,
        pl.DataFrame([raw.explode().drop_nulls().alias(column)])
        if raw.list.len().sum()
        else pl.DataFrame([pl.Series(column, [0])]),
    )
    flat.add_time(".time", dataclasses.replace(history.time, columns=(column,)))
    values = flat.converted[".time"]
    lengths = raw.list.len().fill_null(0)
    if not lengths.sum():
        values = values.clear()
    if len(values) != lengths.sum():
        table.refuse(
            column, raw.list.eval(pl.element().is_null()).list.any().fill_null(False), "times"
        )
    row = np.repeat(np.arange(len(raw)), lengths.to_numpy())
    lists = (
        pl.DataFrame({"row": row, "time": values}).group_by("row", maintain_order=True).agg("time")
    )
    rows = pl.DataFrame({"row": np.arange(len(raw))})
    table.add(
        f".{history.name}.time",
        rows.join(lists, on="row", how="left", maintain_order="left")["time"],
    )
