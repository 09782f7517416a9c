"""Looks ids up among others, counts them and lists them, fast where they are whole numbers.

Whole numbers that are not much more spread than there are of them are indices of an array. Other
ids are joined, counted and listed by Polars' hash tables, which take ten times as long.
"""

from __future__ import annotations

import numpy as np
import polars as pl

_SPREAD = 8  # times as many entries as there are numbers
_FEW = 1000  # texts that are looked up as the values of an enumeration
_ENTRIES = 1 << 22  # an array of so many entries costs nothing


def index_in(ids: pl.Series, values: pl.Series) -> np.ndarray:
    """int64 [values] the index of each value in `ids`, which are distinct; −1 for all others.

    Whole numbers and text are equal if the numbers are written so.
    """
    return _index_in(ids, values, 0, np.int64)


def rows_in(ids: pl.Series, values: pl.Series) -> np.ndarray:
    """uint32 [values] as `index_in`, but counted from 1; 0 for all others."""
    return _index_in(ids, values, 1, np.uint32)


def _index_in(ids: pl.Series, values: pl.Series, first: int, dtype: type) -> np.ndarray:
    if ids.dtype.is_integer() and values.dtype == pl.String:
        ids = ids.cast(pl.String)
    values = values.cast(ids.dtype, strict=False)
    span = _span(ids, len(ids) + len(values))
    if span is None and ids.dtype == pl.String and 0 < len(ids) <= _FEW:
        few = pl.Enum(ids)
        codes = values.cast(few, strict=False).to_physical().cast(pl.Int64).fill_null(-1)
        few_result: np.ndarray = (codes.to_numpy() + first).astype(dtype)
        return few_result
    if span is None:
        index = pl.Series("index", np.arange(len(ids), dtype=np.uint32))
        table = pl.DataFrame({"id": ids, "index": index})
        joined = pl.DataFrame({"id": values}).join(
            table, on="id", how="left", maintain_order="left"
        )
        found = joined["index"].cast(pl.Int64).fill_null(-1).to_numpy() + first
        result: np.ndarray = found.astype(dtype)
        return result
    low, size = span
    # The last place is for values that are not in the range.
    place: np.ndarray = np.full(size + 1, first - 1, dtype)
    place[ids.to_numpy().astype(np.int64) - low] = np.arange(first, first + len(ids), dtype=dtype)
    result = place[_offsets(values, low, size)]
    return result


def counts(values: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """The distinct values, ascending, and how often each occurs; nulls are passed over."""
    values = values.drop_nulls()
    span = _span(values, len(values))
    if span is None:
        counted = values.rename("id").value_counts(name="count").sort("id")
        return counted["id"], counted["count"].to_numpy().astype(np.int64)
    low, size = span
    number = np.bincount(values.to_numpy().astype(np.int64) - low, minlength=size)
    present = np.flatnonzero(number)
    ids = pl.Series(values.name, present + low).cast(values.dtype)
    return ids, number[present].astype(np.int64)


def distinct(values: pl.Series) -> pl.Series:
    """The distinct values in any order, without null."""
    known = values.drop_nulls()
    span = _span(known, len(known))
    if span is None:
        return known.unique()
    low, size = span
    present = np.zeros(size, bool)
    present[known.to_numpy().astype(np.int64) - low] = True
    return pl.Series(values.name, np.flatnonzero(present) + low).cast(values.dtype)


def _span(values: pl.Series, entries: int) -> tuple[int, int] | None:
    """(least number, size of an array from it to the greatest), or None if that is too large."""
    if not values.dtype.is_integer() or values.dtype == pl.Int128 or not len(values):
        return None
    if values.null_count():
        return None
    low, high = int(values.min()), int(values.max())  # type: ignore[arg-type]
    size = high - low + 1
    small = size <= max(_SPREAD * entries, _ENTRIES) and high < 2**62 and low > -(2**62)
    return (low, size) if small and len(values) < 2**31 else None


def _offsets(values: pl.Series, low: int, size: int) -> np.ndarray:
    """Where the values are in the array; `size` for null and for those that are not in it."""
    if values.dtype == pl.UInt64:
        values = values.clip(0, 2**62).cast(pl.Int64)
    if values.null_count():
        values = values.fill_null(low - 1)
    offset: np.ndarray = values.to_numpy().astype(np.int64) - low
    outside = (offset < 0) | (offset >= size)
    if outside.any():
        offset = np.where(outside, size, offset)
    return offset
