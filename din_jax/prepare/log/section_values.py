"""Reads what the sections of a spec have in common: files, columns, times, labels."""

from __future__ import annotations

import codecs
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from din_jax.data.numbers import TRANSFORMS
from din_jax.errors import DinError
from din_jax.prepare.log.spec import Column, Label, TableFiles, TableOptions, Time
from din_jax.prepare.log.times import UNITS
from din_jax.prepare.log.toml_section import Section

FILE_KEYS = (
    *("path", "delimiter", "quote", "escape", "encoding", "header"),
    *("null_values", "strip", "where", "duplicates"),
)
TIME_KEYS = ("time_unit", "time_format", "time_zone")
_COLUMN_KEYS = (
    "column",
    "table",
    "separator",
    "list",
    "weighted",
    "take",
    "numeric",
    "null_values",
)
_LABEL_KEYS = ("column", "positive", "at_least", "clicks", "impressions")


def files(section: Section, folder: Path, header: str = "columns") -> TableFiles:
    """The files of a section's table and how they are written.

    Args:
      folder: that paths start from.
      header: another key that may name the columns of files without a header.
    """
    expected = 'a file, a folder of files, a pattern such as "day-*.csv", or a list of them'
    paths = section.texts("path", expected)
    one = "one character"
    for key, what in (
        ("delimiter", "between the values of a CSV"),
        ("escape", 'before a quote that belongs to a value, "\\\\" for instance'),
    ):
        if key in section and len(section.text(key, f"{one} {what}").encode()) != 1:
            several = section.value[key]
            fix = f"; write one in place of several: sed 's/{several}/\\t/g'" * (key == "delimiter")
            raise section.invalid(key, f"{one} {what}{fix}")
    quote = section.value.get("quote", '"')
    if not isinstance(quote, str) or len(quote.encode()) > 1:
        raise section.invalid("quote", f'{one} around values, or "" if quotes are ordinary')
    marks = {"delimiter": section.value.get("delimiter"), "quote": quote, **section.value}
    marks = {key: marks[key] for key in ("delimiter", "quote", "escape") if marks.get(key)}
    for key, mark in marks.items():
        if mark in ("\n", "\r") or list(marks.values()).count(mark) > 1:
            raise DinError(
                f"{section.location} {key} = {mark!r}, which ends lines, or has another meaning "
                "already; expected delimiter, quote and escape to be different characters"
            )
    encoding = section.optional_text("encoding", 'an encoding such as "gbk"') or "utf-8"
    try:
        codecs.getincrementaldecoder(encoding)
        "".encode(encoding)  # an error for what encodes bytes
    except LookupError as error:
        raise section.invalid(
            "encoding", 'an encoding such as "utf-8", "gbk" or "cp1252"'
        ) from error
    names = [key for key in ("header", header) if key in section]
    if len(names) == 2:
        raise DinError(f"{section.location} has both {names[0]} and {names[1]}; remove one")
    columns = (
        section.texts(names[0], "the names of the columns, in order", one=False) if names else None
    )
    if columns is not None and len(set(columns)) < len(columns):
        twice = next(c for c in columns if columns.count(c) > 1)
        raise DinError(
            f"{section.location} {names[0]} names {twice!r} twice; name each column once"
        )
    # Rows without a user or a time say of no two that they are one event.
    event = section.name != "impressions" or {"user", "time"} <= {*section.value}
    duplicates = section.value.get("duplicates", "drop" if event else "keep")
    if duplicates not in ("drop", "keep"):
        raise section.invalid("duplicates", '"drop" or "keep"')
    return TableFiles(
        section=section.name,
        paths=tuple(folder / path for path in paths),
        delimiter=section.optional_text("delimiter"),
        quote=quote,
        escape=section.optional_text("escape"),
        encoding=encoding,
        header=columns,
        null_values=_null_values(section),
        strip=section.flag("strip"),
        where=_where(section),
        keep_duplicates=duplicates == "keep",
    )


def _null_values(section: Section) -> tuple[str, ...]:
    """Texts that mean a missing value, beside the empty one, which always does."""
    value = section.value.get("null_values", [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
        raise section.invalid("null_values", 'texts that mean a missing value, ["NULL", "-1"]')
    return tuple(filter(None, values))


def time(section: Section, key: str = "time") -> Time | None:
    """The time of a section's rows, or None."""
    if key not in section:
        for option in TIME_KEYS:
            if option in section:
                raise DinError(
                    f"{section.location} has {option} without {key}; remove it, or name the column"
                )
        return None
    expected = f"the unit of times that are numbers: {', '.join(UNITS)}"
    stated = section.optional_text("time_unit", expected)
    if stated is not None and stated not in UNITS:
        raise section.invalid("time_unit", expected)
    zone = section.optional_text("time_zone", 'a time zone such as "Asia/Shanghai"')
    if zone is not None:
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise section.invalid("time_zone", 'a name such as "Asia/Shanghai" or "UTC"') from error
    form = section.optional_text("time_format", 'how times are written: "%Y/%m/%d %H:%M:%S"')
    if form is not None and "%" not in form:
        raise section.invalid("time_format", "strptime's letters: %Y-%m-%d %H:%M:%S")
    if form is not None and stated is not None:
        raise DinError(
            f"{section.location} has time_format, which is for dates, and time_unit, which is for "
            "numbers. Remove one of the two"
        )
    columns = section.texts(key, "the name of a column, or of several that are joined by a space")
    return Time(columns, stated, form, zone)


def label(section: Section) -> Label | None:
    """The label of the impressions, or None."""
    if "label" not in section:
        return None
    value = section.value["label"]
    if not isinstance(value, dict):
        return Label(
            section.text(
                "label",
                'the name of a column, in quotes, or {column = "rating", at_least = 4}, '
                '{column = "behavior", positive = ["buy"]}, {clicks = "c", impressions = "n"}',
            )
        )
    inner = Section(section.path, f"{section.name}.label", value, _LABEL_KEYS)
    if "clicks" in inner or "impressions" in inner:
        if {*value} != {"clicks", "impressions"}:
            raise DinError(
                f"{inner.location} has {', '.join(value)}; expected clicks and impressions, the "
                "columns of their numbers, and nothing else"
            )
        return Label(inner.text("clicks"), impressions=inner.text("impressions"))
    column = inner.text("column")
    if ("positive" in inner) == ("at_least" in inner):
        raise DinError(
            f"{inner.location} expected one of positive = [values] and at_least = number"
        )
    if "positive" in inner:
        return Label(column, positive=_values(inner, "positive"))
    number = inner.value["at_least"]
    if type(number) not in (int, float):
        raise inner.invalid("at_least", "a number: values from it on are clicks")
    return Label(column, at_least=float(number))


def columns(section: Section, key: str, options: Mapping[str, TableOptions]) -> tuple[Column, ...]:
    """A list of columns, or a section {field: {column, table, separator, …}}."""
    value = section.value.get(key, [])
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = {name: {} for name in value}
    if not isinstance(value, dict):
        raise section.invalid(
            key, f'a list of columns, ["a", "b"], or a section [{section.name}.{key}] of them'
        )
    return tuple(column(section, key, name, inner, options) for name, inner in value.items())


def column(
    section: Section, key: str, name: str, value: Any, options: Mapping[str, TableOptions]
) -> Column:
    """One feature's column."""
    inner = Section(section.path, f"{section.name}.{key}.{name}", value, _COLUMN_KEYS)
    if not name.isidentifier():
        raise DinError(
            f"{section.location} {key}: {name!r} can't be a field's name, which has only "
            "letters, digits and _; give it another one: "
            f"[{section.name}.{key}] NAME = {{column = {name!r}}}"
        )
    table = inner.optional_text("table", "the name of an embedding table") or name
    notation = inner.optional_text("list", '"json" or "python"')
    if notation not in (None, "json", "python"):
        raise inner.invalid("list", '"json" for ["a", "b"], "python" for [\'a\', \'b\']')
    weighted = inner.optional_text("weighted", '"drop" or "use"')
    if weighted not in (None, "drop", "use"):
        raise inner.invalid(
            "weighted", '"use" for id:weight, or "drop", which reads it as the id alone'
        )
    result = Column(
        name=name,
        column=inner.optional_text("column") or name,
        table=table,
        separator=inner.optional_text("separator", "what stands between values"),
        list=notation,  # type: ignore[arg-type]
        weighted=weighted,  # type: ignore[arg-type]
        numeric=options.get(table, TableOptions()).buckets is not None or "numeric" in inner,
        transform=_transform(inner),
        take=_take(inner),
        null_values=_null_values(inner),
    )
    several = "a separator" if result.separator else "list" if result.list else ""
    if result.transform and table in options:
        raise DinError(
            f"{inner.location} is numeric, a number without an embedding table, but there is a "
            f"section [tables.{table}]. Remove one of the two"
        )
    if result.numeric and several:
        reason = "is numeric" if result.transform else f"is of table {table!r}, which has buckets"
        raise DinError(
            f"{inner.location} has {several}, but {reason}: it has one number a row. Remove one "
            "of the two"
        )
    if result.separator and result.list:
        raise DinError(f"{inner.location} has separator and list. Remove one of the two")
    if result.weighted and result.numeric:
        raise DinError(
            f"{inner.location} is numeric and has weighted, which is for ids. Remove one of the two"
        )
    if result.weighted == "use" and result.take:
        raise DinError(
            f'{inner.location} has weighted = "use", and take, which leaves one value: its weight '
            'would have no meaning. Write weighted = "drop", or remove take'
        )
    return result


def _take(section: Section) -> Literal["first", "last"] | None:
    take = section.value.get("take")
    if take not in (None, "first", "last"):
        raise section.invalid("take", '"first" or "last"')
    return take


def _transform(section: Section) -> str | None:
    """The transform of a numeric column: "log1p", or {transform = "log1p"}; None of others."""
    if "numeric" not in section:
        return None
    value = section.value["numeric"]
    if isinstance(value, dict):
        inner = Section(section.path, f"{section.name}.numeric", value, ("transform",))
        value = inner.text("transform", f"one of {', '.join(TRANSFORMS)}")
    if value not in TRANSFORMS:
        raise section.invalid("numeric", f"a transform: {', '.join(TRANSFORMS)}")
    return str(value)


def _values(section: Section, key: str) -> tuple[str, ...]:
    """A value or a list of values, as text."""
    value = section.value[key]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str | int | float) for v in values):
        raise section.invalid(key, "a value or a list of values")
    return tuple(
        str(int(v))
        if isinstance(v, bool) is False and isinstance(v, float) and v == int(v)
        else str(v).lower()
        if isinstance(v, bool)
        else str(v)
        for v in values
    )


def _where(section: Section) -> tuple[tuple[str, tuple[str, ...]], ...]:
    value = section.value.get("where", {})
    if not isinstance(value, dict):
        raise section.invalid(
            "where", 'columns and the values to read: {behavior = ["buy", "cart"]}'
        )
    inner = Section(section.path, f"{section.name}.where", value, value)
    return tuple((name, _values(inner, name)) for name in value)
