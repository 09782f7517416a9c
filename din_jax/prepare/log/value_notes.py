"""Notes of ids that are hardly meant: marks of missing values, lists as text, spaces, defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import polars as pl

_MARKERS = (
    *(
        "null",
        "NULL",
        "Null",
        "none",
        "None",
        "NONE",
        "nil",
        "nan",
        "NaN",
        "NAN",
        "NA",
        "N/A",
        "n/a",
    ),
    *(r"\N", "#N/A", "<NA>", "undefined", "-", "--", "?", "(null)", "<null>", "missing"),
)
_COMMON = 0.2  # of all rows
_SAMPLED = 200_000  # rows that are looked at, evenly spaced
_LIST = r"^\s*\[.*\]\s*$"
_WEIGHTED = r"^[^:]+:-?[0-9]+(?:\.[0-9]+)?$"


def notes(section: str, field: str, values: pl.Series, column: str, kind: str) -> Iterator[str]:
    """Yields notes of a column of ids, before lists are split.

    Args:
      section, column: where the ids are.
      field: what they are: the field's name, or "user" or "item".
      values: the ids; null where missing.
      kind: "key" for the user and the item, "feature" for others.
    """
    values = values.gather_every(-(-len(values) // _SAMPLED)) if len(values) > _SAMPLED else values
    rows = len(values)
    if not rows or isinstance(values.dtype, pl.List | pl.Array):
        return
    where = f"[{section}] {field}: column {column!r}"
    if values.dtype.is_integer():
        if values.min() == -1:
            yield _marker(where, ["-1"], int((values == -1).sum()), rows)
    elif values.dtype == pl.String:
        counts = values.filter(values.is_in(_MARKERS)).value_counts(sort=True)
        if len(counts):
            yield _marker(where, counts.to_series(0).to_list(), counts.to_series(1).sum(), rows)
        spaces = values.str.contains(r"^\s|\s$").fill_null(False)
        if spaces.any():
            yield (
                f"{where} has spaces around {_share(spaces.sum(), rows)} of its values, "
                f"{values.filter(spaces)[0]!r} for instance, which make them ids of their own; if "
                f"they do not belong to the values: strip = true in [{section}]"
            )
        if kind == "feature":
            yield from _list_notes(where, values, rows)
    if kind == "key" and rows >= 1000 and values.null_count() < rows:
        top = values.value_counts(sort=True, name="rows")
        value, number = top.row(0)
        if number > _COMMON * rows and len(top) > 5 and value is not None:
            yield (
                f"{where} is {value!r} in {_share(number, rows)} of the rows: is it a default, a "
                "crawler or "
                f"a test account? If it means a missing value: null_values = [{_quoted(value)}]; "
                "else leave its rows out, or bound histories with config.data.max_history"
            )


def part_notes(section: str, field: str, column: str, parts: pl.Series) -> Iterator[str]:
    """Yields notes of the parts into which text was split."""
    flat = parts.explode().drop_nulls()
    if not len(flat):
        return
    where = f"[{section}] {field}: column {column!r}"
    bracketed = flat.str.contains(r"^\s*\[|\]\s*$")
    if bracketed.mean() > 0.1:  # type: ignore[operator]
        yield (
            f"{where}: {_share(bracketed.sum(), len(flat))} of its values have brackets, "
            f"{flat.filter(bracketed)[0]!r} for instance; if the text is a list like [1, 2], write "
            'list = "json" in place of separator'
        )
    elif (spaces := flat.str.contains(r"^\s|\s$")).any():
        yield (
            f"{where} has spaces around {_share(spaces.sum(), len(flat))} of its values, "
            f"{flat.filter(spaces)[0]!r} for instance, which make them ids of their own; put the "
            "space into the separator, or if they do not belong to the values: "
            f"strip = true in [{section}]"
        )
    weighted = flat.str.contains(_WEIGHTED)
    if weighted.mean() > 0.9:  # type: ignore[operator]
        yield (
            f"{where}: {_share(weighted.sum(), len(flat))} of its values are like "
            f'{flat.filter(weighted)[0]!r}; if that is an id and its weight: weighted = "use", or '
            '"drop" for the id alone; now each such text is an id of its own'
        )


def _list_notes(where: str, values: pl.Series, rows: int) -> Iterator[str]:
    lists = values.str.contains(_LIST).fill_null(False)
    if lists.mean() > 0.1:  # type: ignore[operator]
        yield (
            f"{where}: {_share(lists.sum(), rows)} of its values are like "
            f"{values.filter(lists)[0]!r}, each an id of its own; if they are lists: "
            f'list = "json" for this column'
        )
    known = values.drop_nulls()
    weighted = known.str.contains(r"^[^:,;| ]+:-?[0-9]+(?:\.[0-9]+)?(?:[,;| ]|$)")
    if len(known) and weighted.mean() > 0.9 and not known.str.contains(r"^\d\d?:\d\d").any():  # type: ignore[operator]
        yield (
            f"{where}: its values are like {known[0]!r}, each an id of its own; if these are ids "
            'with weights, name the separator between them, and weighted = "use", or "drop" for '
            "the ids alone"
        )


def _marker(where: str, markers: list[str], number: Any, rows: int) -> str:
    return (
        f"{where} is {' or '.join(map(repr, markers))} in {_share(number, rows)} of the rows, an "
        "id like any other; if it means a missing value: null_values = "
        f"[{', '.join(map(_quoted, markers))}] in its section"
    )


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _share(number: Any, of: int) -> str:
    share = number / of
    return f"{share:.1%} ({number:,})" if share >= 0.001 else f"{number:,}"
