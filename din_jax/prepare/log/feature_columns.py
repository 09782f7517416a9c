"""Converts the columns that are features: ids, lists of ids with or without weights, numbers."""

from __future__ import annotations

import polars as pl

from din_jax.prepare.log import text_values, value_notes
from din_jax.prepare.log.spec import Column
from din_jax.prepare.log.text_values import NotAList, as_text
from din_jax.prepare.log.typed_columns import TypedColumns
from din_jax.prepare.log.value_types import without_nulls


def add_feature(table: TypedColumns, column: Column) -> None:
    """Adds ids, lists of ids, or (of a table with buckets) numbers; null for missing values."""
    _add_feature(table, column)
    values = table.converted[column.name]
    if column.take is not None and isinstance(values.dtype, pl.List):
        taken = values.list.first() if column.take == "first" else values.list.last()
        table.add(column.name, taken)


def _add_feature(table: TypedColumns, column: Column) -> None:
    name, raw = column.name, table.raw[column.column]
    if isinstance(raw.dtype, pl.List) and isinstance(raw.dtype.inner, pl.List) and column.take:
        raw = raw.list.eval(pl.element().explode())  # paths, end to end
    nulls = (
        *(table.files.null_values if isinstance(raw.dtype, pl.List) else ()),
        *column.null_values,
    )
    if column.separator is None and column.list is None:
        raw = without_nulls(raw, nulls)
    if column.numeric:
        if isinstance(raw.dtype, pl.List | pl.Array):
            inner: object = raw.dtype.inner
            if not (isinstance(inner, pl.DataType) and inner.is_numeric()):
                raise table.type_error(column.column, raw.dtype, "numbers")
            if column.transform is not None and column.take is None:
                raise table.type_error(
                    column.column,
                    raw.dtype,
                    "one number a row",
                    'or name which one of the list is read, take = "first" or "last"',
                )
            table.add(name, raw.cast(pl.List(pl.Float64)))
        else:
            table.add(name, table.numbers(column.column, raw).fill_nan(None))
    elif column.list is not None or (
        column.weighted is not None and isinstance(raw.dtype, pl.List | pl.Array)
    ):
        table.add(name, _without_weights(table, column, parsed_lists(table, column, raw)))
    elif column.separator is None and column.weighted is not None:
        raise table.type_error(
            column.column,
            raw.dtype,
            f'lists of id:weight, as weighted = "{column.weighted}" of {name} says',
            "if it is text, name the separator between the values",
        )
    elif column.separator is None:
        stays_text = column.table in table.text_tables and raw.dtype == pl.String
        ids = raw if stays_text else table.ids(column.column, raw, lists=True)
        table.notes += value_notes.notes(table.section, name, ids, column.column, "feature")
        table.add(name, ids)
    elif raw.dtype == pl.String or raw.dtype.is_integer():
        text = as_text(raw)
        parts = text.str.split(column.separator)
        if not (parts.list.len() > 1).any() and text.null_count() < len(text):
            table.notes.append(
                f"[{table.section}] {name.removeprefix('.')}: the separator "
                f"{column.separator!r} is in no value of column {column.column!r}; each value "
                "counts as one"
            )
        if table.files.strip:
            parts = parts.list.eval(pl.element().str.strip_chars())
        parts = parts.list.eval(pl.element().filter(pl.element() != ""))
        parts = without_nulls(parts, nulls)
        if column.weighted is None:
            table.notes += value_notes.part_notes(table.section, name, column.column, parts)
        table.add(name, _without_weights(table, column, parts))
    elif raw.dtype == pl.Null:
        table.add(name, _without_weights(table, column, raw.cast(pl.List(pl.String))))
    else:
        raise table.type_error(
            column.column, raw.dtype, "text to split at the separator", "remove separator"
        )


def parsed_lists(table: TypedColumns, column: Column, raw: pl.Series) -> pl.Series:
    """Lists that are written as text, parsed once for each distinct text."""
    if isinstance(raw.dtype, pl.List | pl.Array):
        return table.ids(column.column, raw, lists=True)
    text = as_text(raw)
    try:
        lists = text_values.parsed_lists(text, column.list or "json")
        return without_nulls(lists, (*table.files.null_values, *column.null_values))
    except NotAList as error:
        invalid = (text == error.value).fill_null(False)
        table.refuse(column.column, invalid, error.expected)
        raise


def _without_weights(table: TypedColumns, column: Column, parts: pl.Series) -> pl.Series:
    """Lists of id:weight as lists of ids; with weighted = "use" of {"id", "weight"}."""
    if column.weighted is None:
        return parts
    parts = parts.cast(pl.List(pl.String)).list.drop_nulls()
    row = pl.element().str.extract_groups(r"^(?<id>.+):(?<weight>[^:]*)$")
    pairs = parts.list.eval(row)
    weight = pl.element().struct.field("weight").cast(pl.Float32, strict=False)
    table.refuse(
        column.column,
        ~pairs.list.eval(weight.is_finite().fill_null(False)).list.all().fill_null(True),
        f'values like id:0.5, as weighted = "{column.weighted}" says',
    )
    if column.weighted == "drop":
        return pairs.list.eval(pl.element().struct.field("id"))
    return pairs.list.eval(pl.struct(pl.element().struct.field("id"), weight))
