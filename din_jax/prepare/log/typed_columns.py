"""Converts the columns of a table to the types that a spec needs: labels, ids, times, features."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log.spec import Column, TableFiles
from din_jax.prepare.log.table_reader import TableReader


class TypedColumns:
    """The columns of a table that a spec names, checked and converted one by one.

    A value that can't be converted is an error, which names the first such row.

    Args:
      files: the files of the table.
      columns: (column, key of the spec that names it); entries without a column are ignored.

    Attributes:
      section: of the spec.
      row_count: how many rows the files have.
      notes: of what is not an error but may be a mistake.
    """

    def __init__(self, files: TableFiles, *columns: tuple[str | None, str]):
        self.section, self.reader = files.section, TableReader(files)
        self._raw = self.reader.read({column: key for column, key in columns if column is not None})
        self.row_count = len(self._raw)
        self.notes: list[str] = []
        self._converted: dict[str, pl.Series] = {}
        if not self.row_count:
            raise DinError(f"{files.path}: the table [{self.section}] has no rows")

    def distinct(self) -> pl.DataFrame:
        """All converted columns, without rows that equal an earlier one in every column read."""
        row = "row of the table"
        rows = self._raw.with_row_index(row).unique(
            subset=self._raw.columns, keep="first", maintain_order=True
        )[row]
        frame = pl.DataFrame(list(self._converted.values()))
        return frame if len(rows) == len(frame) else frame[rows]

    def add_id(self, name: str, column: str) -> None:
        """Adds an id, which every row must have: integers or text."""
        self._add(name, self._require_values(column, self._ids(column, self._raw[column])))

    def add_label(self, name: str, column: str) -> None:
        """Adds labels, 0 or 1."""
        raw = self._require_values(column, self._raw[column])
        if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Boolean)):
            raise self._type_error(column, raw.dtype, "labels, 0 or 1")
        label = raw.cast(pl.Float64, strict=False)
        self._refuse(
            column,
            ~((label == 0) | (label == 1)).fill_null(False),
            "a label, 0 or 1",
            lambda: f"Write the column as 0 and 1; it has {_most_frequent(raw)}",
        )
        self._add(name, label.cast(pl.UInt8))

    def add_time(self, name: str, column: str) -> None:
        """Adds a time, which every row must have: numbers, dates or date-times, those in UTC."""
        raw = self._require_values(column, self._raw[column])
        if raw.dtype == pl.String:
            time = self._parse_times(column, raw)
        elif raw.dtype == pl.Date:
            time = raw.cast(pl.Datetime("us"))
        elif isinstance(raw.dtype, pl.Datetime):
            if raw.dtype.time_zone is not None:
                raw = raw.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            time = raw.cast(pl.Datetime("us"))
        elif raw.dtype.is_integer():
            time = raw.cast(pl.Int64, strict=False)
        elif raw.dtype.is_float():
            time = _finite_or_null(raw.cast(pl.Float64))
        else:
            raise self._type_error(column, raw.dtype, "times: numbers, dates or dates with times")
        self._refuse(column, time.is_null(), "a time")
        self._add(name, time)

    def add_text(self, name: str, column: str) -> None:
        """Adds text, which every row must have: the names of splits."""
        ids = self._require_values(column, self._ids(column, self._raw[column]))
        self._add(name, ids.cast(pl.String))

    def add_feature(self, column: Column) -> None:
        """Adds ids, lists of ids, or (of a table with buckets) numbers; null for missing values."""
        name, raw = column.name, self._raw[column.column]
        if column.numeric:
            self._add(name, self._numbers(column.column, raw))
        elif column.separator is None:
            self._add(name, self._ids(column.column, raw, lists=True))
        elif raw.dtype == pl.String:
            parts = raw.str.split(column.separator)
            if not (parts.list.len() > 1).any():
                self.notes.append(
                    f"[{self.section}] {column.name}: the separator {column.separator!r} is in no "
                    f"value of column {column.column!r}; each value counts as one"
                )
            self._add(name, parts.list.eval(pl.element().filter(pl.element() != "")))
        else:
            raise self._type_error(
                column.column, raw.dtype, "text to split at the separator", "remove separator"
            )

    def _add(self, name: str, values: pl.Series) -> None:
        self._converted[name] = values.alias(name)

    def _ids(self, column: str, raw: pl.Series, lists: bool = False) -> pl.Series:
        inner = raw.dtype
        if lists and isinstance(inner, (pl.List, pl.Array)):
            raw = raw.cast(pl.List(inner.inner))
            inner = inner.inner  # type: ignore[assignment]
        if inner.is_integer() or inner == pl.String:
            return raw
        if inner in (pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Null):
            return raw.cast(pl.List(pl.String) if raw.dtype == pl.List else pl.String)
        raise self._type_error(
            column,
            raw.dtype,
            "ids: whole numbers or text" + (", or lists of them" if lists else ""),
            "write them as whole numbers, or give their table buckets: [tables.NAME] buckets = 20"
            if inner.is_float() and lists
            else "write them so",
        )

    def _numbers(self, column: str, raw: pl.Series) -> pl.Series:
        if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Boolean)):
            raise self._type_error(column, raw.dtype, "numbers, since their table has buckets")
        numbers = raw.cast(pl.Float64, strict=False)
        self._refuse(column, numbers.is_null() & raw.is_not_null(), "a number")
        return numbers.fill_nan(None)

    def _parse_times(self, column: str, raw: pl.Series) -> pl.Series:
        """Parses text; the first value decides whether all must be numbers or dates."""
        for dtype in (pl.Int64, pl.Float64):
            time = raw.cast(dtype, strict=False)
            if time[0] is not None and (dtype == pl.Float64 or not time.has_nulls()):
                time = _finite_or_null(time) if dtype == pl.Float64 else time
                self._refuse(column, time.is_null(), "a time, a number as in the first row")
                return time
        is_date = raw.str.contains(r"^\d{4}-\d\d-\d\d([T ]|$)")
        self._refuse(
            column, ~is_date, "a time: a number, or a date and time like 2024-05-01 12:00:00"
        )
        has_zone = raw.str.contains(r"\d\d:\d\d.*([Zz]|[+-]\d\d(:?\d\d)?)$")
        if has_zone.any():
            self._refuse(
                column,
                ~has_zone,
                "a zone such as Z or +02:00, which other rows have, in all rows or in none",
            )
        try:
            time = raw.str.to_datetime(time_unit="us", strict=False)
        except pl.exceptions.PolarsError:
            time = pl.Series([None] * len(raw), dtype=pl.Datetime("us"))
        if time.dtype == pl.Datetime("us", "UTC"):
            time = time.dt.replace_time_zone(None)
        self._refuse(
            column, time.is_null(), "a date and time like 2024-05-01 12:00:00 or …T12:00:00+02:00"
        )
        return time

    def _require_values(self, column: str, raw: pl.Series) -> pl.Series:
        self._refuse(column, raw.is_null(), "a value in every row")
        return raw

    def _refuse(
        self,
        column: str,
        invalid: pl.Series,
        expected: str,
        fix: Callable[[], str] | None = None,
    ) -> None:
        """Raises for the first invalid row, if there is one."""
        row = invalid.arg_max() if invalid.any() else None
        if row is None:
            return
        value = self._raw[column][row]
        few = 2 * invalid.sum() < len(invalid)
        advice = (
            fix()
            if fix
            else ("Fix or delete the row" if few else "Write the column so")
            + f" ({invalid.sum():,} of {len(invalid):,} rows have this error)"
        )
        raise DinError(
            f"{self.reader.row_location(row)}: column {column!r} of [{self.section}] is "
            f"{'empty' if value is None else repr(value)}; expected {expected}. {advice}"
        )

    def _type_error(
        self, column: str, dtype: pl.DataType, expected: str, fix: str = "write them so"
    ) -> DinError:
        return DinError(
            f"{self.reader.path}: column {column!r} of [{self.section}] has type {dtype}; "
            f"expected {expected}; {fix}"
        )


def _finite_or_null(numbers: pl.Series) -> pl.Series:
    """Null in place of infinities and NaN."""
    return pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()


def _most_frequent(raw: pl.Series) -> str:
    """The most frequent values of a column, as a message lists them."""
    values = raw.alias("value").value_counts(sort=True)
    top = [f"{rows:,} × {value!r}" for value, rows in values.head(5).iter_rows()]
    return ", ".join(top) + (f" and {len(values) - 5:,} other values" * (len(values) > 5))
