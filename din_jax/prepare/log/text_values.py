"""What text means: values as a spec writes them, and lists that are written as text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from din_jax.prepare.log.value_types import whole_numbers


class NotAList(Exception):
    """A text is no list; `value` is the text, `expected` an example."""

    def __init__(self, value: str, expected: str):
        super().__init__(value)
        self.value, self.expected = value, expected


def as_text(raw: pl.Series) -> pl.Series:
    """Values as the spec writes them: whole floats without a point."""
    if raw.dtype.is_float():
        try:
            whole = whole_numbers(raw)
        except OverflowError:
            whole = None
        raw = raw if whole is None else whole
    return raw if raw.dtype == pl.String else raw.cast(pl.String)


def is_one_of(raw: pl.Series, values: Sequence[str]) -> tuple[pl.Series, list[str]]:
    """Which values are among those that a spec names, null where missing; and which are in no row.

    2.0 is 2, and True is true.
    """
    text = as_text(raw)
    distinct = text.drop_nulls().unique()
    named: dict[str, str] = {}
    for value in distinct.to_list():
        written = value.lower() if value.lower() in ("true", "false") else value
        if re.fullmatch(r"-?[0-9]+\.0+", value):
            written = value.partition(".")[0]
        for candidate in (value, written):
            if candidate in values:
                named[value] = candidate
    absent = [value for value in values if value not in named.values()]
    return text.is_in([*named]), absent


def parsed_lists(text: pl.Series, notation: str) -> pl.Series:
    """Lists that are written as text, "json" or "python", parsed once for each distinct text.

    Raises:
      NotAList: a text is none.
    """
    parse = _from_json if notation == "json" else ast.literal_eval
    distinct = text.drop_nulls().unique(maintain_order=True)
    lists: list[list[str] | None] = []
    for value in distinct:
        try:
            parsed = parse(value)
            if parsed is None:  # null
                lists.append(None)
                continue
            if not isinstance(parsed, list | tuple) or any(
                isinstance(p, list | dict | tuple) for p in parsed
            ):
                raise ValueError
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            example = '["a", "b"] or [1, 2]' if notation == "json" else "['a', 'b']"
            raise NotAList(value, f"a list like {example}") from error
        lists.append([_id_text(p) for p in parsed if p is not None])
    index = text.to_frame("text").join(
        pl.DataFrame({"text": distinct, "list": pl.Series(lists, dtype=pl.List(pl.String))}),
        on="text",
        how="left",
        maintain_order="left",
    )
    values = index["list"]
    flat = values.explode().drop_nulls()
    if len(flat) and flat.str.contains(r"^(?:0|-?[1-9][0-9]{0,17})$").all():
        return values.cast(pl.List(pl.Int64))
    return values


def most_frequent(raw: pl.Series) -> str:
    """The most frequent values of a column, as a message lists them."""
    values = raw.alias("value").value_counts(sort=True)
    top = [f"{rows:,} × {value!r}" for value, rows in values.head(5).iter_rows()]
    return ", ".join(top) + (f" and {len(values) - 5:,} other values" * (len(values) > 5))


def _id_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _from_json(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: None)  # of NaN and Infinity
