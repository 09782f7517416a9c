"""Looks ids up among others, counts them and lists them, fast where they are whole numbers.

Whole numbers that are not much more spread than there are of them are indices of an array. Other
ids are joined, counted and listed by Polars' hash tables, which take ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

_SPREAD = 8  # times as many entries as there are numbers
_FEW = 1000  # texts that are looked up as the values of an enumeration
_TEXTS = 1 << 20  # ids that a dict holds in 150 MB or so
_ENTRIES = 1 << 22  # an array of so many entries costs nothing
EXACT = 2**53  # floats are exact whole numbers below it
WHOLE = r"^-?(?:0|[1-9][0-9]*)(?:\.0*)?(?:[eE]\+?[0-9]+)?$"  # text that is a whole number


def as_ids_of(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Text and floats among ids that are whole numbers: whole ones become numbers.

    What is no whole number, or is a float of 2⁵³ or more, is null.
    """
    if not dtype.is_integer() or not (values.dtype == pl.String or values.dtype.is_float()):
        return values
    if values.dtype.is_float():
        return _whole_floats(values).cast(dtype, strict=False)
    usual = values.cast(dtype, strict=False)
    as_written = usual.cast(pl.String) == values
    floats = values.cast(pl.Float64, strict=False)
    floats = _whole_floats(floats.set(~values.str.contains(WHOLE), None))
    return pl.select(
        pl.when(as_written).then(usual).otherwise(floats.cast(dtype, strict=False))
    ).to_series()


def _whole_floats(values: pl.Series) -> pl.Series:
    return values.set(~((values == values.floor()) & (values.abs() < EXACT)), None)


def index_in(ids: pl.Series, values: pl.Series) -> np.ndarray:
    """int64 [values] the index of each value in `ids`, which are distinct; −1 for all others.

    Whole numbers and text are equal if the numbers are written so.
    """
    return _index_in(ids, values, 0, np.int64)


def rows_in(ids: pl.Series, values: pl.Series) -> np.ndarray:
    """uint32 [values] as `index_in`, but counted from 1; 0 for all others."""
    return _index_in(ids, values, 1, np.uint32)


def _index_in(ids: pl.Series, values: pl.Series, first: int, dtype: type) -> np.ndarray:
    ids, values = _of_one_type(ids, values)
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


def _of_one_type(ids: pl.Series, values: pl.Series) -> tuple[pl.Series, pl.Series]:
    if ids.dtype.is_integer() and values.dtype == pl.String:
        ids = ids.cast(pl.String)
    return ids, values.cast(ids.dtype, strict=False)


class IdIndex:
    """Distinct ids, indexed once for many lookups of a few values.

    `rows_in` takes a time that grows with the number of ids; a lookup here does not.

    Args:
      ids: distinct, whole numbers or of another type.
    """

    def __init__(self, ids: pl.Series):
        self._ids = ids
        self._order: np.ndarray | None = None
        self._row_of_text: dict[str, int] | None = None
        if ids.dtype == pl.String and len(ids) <= _TEXTS:
            self._row_of_text = {text: row for row, text in enumerate(ids.to_list(), 1)}
            return
        self._sorted, self._seed = self._keys(ids, 0), 0
        while not ids.dtype.is_integer() and self._sorted.size > np.unique(self._sorted).size:
            self._seed += 1  # two ids have one hash
            self._sorted = self._keys(ids, self._seed)
        if (self._sorted[1:] <= self._sorted[:-1]).any():
            self._order = np.argsort(self._sorted).astype(np.uint32)
            self._sorted = self._sorted[self._order]

    def rows_of(self, values: Sequence[Any]) -> np.ndarray | None:
        """As `rows`, of a list whose values are of the ids' own type or None; else None.

        It takes a few microseconds, where a series takes a millisecond.
        """
        types = {*map(type, values)} - {type(None)}
        if self._row_of_text is not None:
            row_of = self._row_of_text.get
            found = [row_of(value, 0) for value in values] if types == {str} else None
            return None if found is None else np.array(found, np.uint32)
        if types != {int} or self._sorted.dtype != np.int64 or not len(self._ids):
            return None
        known = np.array([value is not None for value in values])
        try:
            keys = np.array([value or 0 for value in values], np.int64)
        except OverflowError:
            return None
        return self._found(keys, known)

    def _found(self, keys: np.ndarray, known: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        known = known & (self._sorted[place] == keys)
        if self._order is not None:
            place = self._order[place]
        return np.where(known, place + 1, 0).astype(np.uint32)

    def rows(self, values: pl.Series) -> np.ndarray:
        """uint32 [values] the place of each value among the ids, from 1; 0 for all others.

        As `rows_in(ids, as_ids_of(values, ids.dtype))`.
        """
        values = as_ids_of(values, self._ids.dtype).cast(self._ids.dtype, strict=False)
        if self._row_of_text is not None:
            row_of = self._row_of_text.get
            return np.array([row_of(text, 0) for text in values.to_list()], np.uint32)
        known = np.ones(len(values), bool)
        if values.null_count():
            known = values.is_not_null().to_numpy()
        if not len(self._ids) or not known.any():
            return np.zeros(len(values), np.uint32)
        keys = self._keys(values if known.all() else values.fill_null(self._ids[0]), self._seed)
        rows = self._found(keys, known)
        if not self._ids.dtype.is_integer():  # equal hashes are not yet equal values
            equal = self._ids.gather(np.maximum(rows, 1) - 1) == values
            rows[~equal.fill_null(False).to_numpy()] = 0
        return rows

    @staticmethod
    def _keys(values: pl.Series, seed: int) -> np.ndarray:
        keys = values if values.dtype.is_integer() else values.hash(seed)
        numbers: np.ndarray = keys.to_numpy()
        return numbers


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
