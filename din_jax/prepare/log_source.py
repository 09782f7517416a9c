"""The user's tables: Parquet or CSV, one file or a folder of them, column by column and checked.

CSV is read as text, so that no id is taken for a number ("007" stays "007") and what a column is
does not depend on how its first lines look; what has to be a number or a time is made one here.
"""

from __future__ import annotations

import csv
import gzip
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log_spec import Column, Place, nearest

_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv"}
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes null in a folder's name


class Source:
    """One of the user's tables.

    Raises:
      DinError: there is no file, or files of several kinds.
    """

    def __init__(self, place: Place):
        self.section, self.path, self._delimiter = place.section, place.path, place.delimiter
        if self.path.is_dir():
            # Hidden files, and those that writers of partitioned tables leave beside the data.
            found = (
                file
                for file in sorted(self.path.rglob("*"))
                if not any(
                    part.startswith((".", "_")) for part in file.relative_to(self.path).parts
                )
            )
            self.files = [file for file in found if file.is_file() and _kind(file)]
            if not self.files:
                raise DinError(
                    f"{self.path}: no file in this folder ends with {' or '.join(_SUFFIXES)}; "
                    f"expected the table [{self.section}]"
                )
        elif self.path.is_file():
            self.files = [self.path]
        else:
            raise DinError(
                f"{self.path}: no such file or folder; expected the table [{self.section}]. Paths "
                "of a spec start from its own folder, or from --data"
            )
        kinds = {_kind(file) for file in self.files}
        if len(kinds) != 1 or None in kinds:
            raise DinError(
                f"{self.path}: expected the table [{self.section}] as files that all end with "
                ".parquet, or all with .csv or .csv.gz"
            )

    def read(self, wanted: Mapping[str, str]) -> pl.DataFrame:
        """The columns wanted, {column: the key of the spec that names it}, of all files in order.

        Raises:
          DinError: a file has no such column, or can't be read.
        """
        frames = []
        for file in self.files:
            try:
                frame = self._scan(file)
                have = frame.collect_schema().names()
                for column, key in wanted.items():
                    if column not in have:
                        alone = len(have) == 1 and _kind(file) == "csv"
                        raise DinError(
                            f"{file}: the table [{self.section}] has no column {column!r} ({key})"
                            f"{nearest(column, have)}; its columns are: {', '.join(have)}"
                            + "; if something else than a comma stands between values, say so: "
                            'delimiter = ";"' * alone
                        )
                frames.append(frame.select(*wanted).collect())
            except pl.exceptions.PolarsError as error:
                reason = str(error).strip().splitlines()[0]
                raise DinError(
                    f"{file}: {self._malformed(file) or f'can not be read ({reason})'}; expected "
                    f"the table [{self.section}] as {_kind(file)}"
                ) from error
        try:
            return pl.concat(frames, how="vertical_relaxed", rechunk=False)
        except pl.exceptions.PolarsError as error:
            raise DinError(
                f"{self.path}: its files hold one column as different types "
                f"({str(error).splitlines()[0]}); write them alike"
            ) from error

    def row(self, index: int) -> str:
        """The file and the row of it, counted from 1 after any header, of a row of `read`."""
        for file in self.files:
            rows = self._scan(file).select(pl.len()).collect().item()
            if index < rows:
                below = " below the header" if _kind(file) == "csv" else ""
                return f"{file}, row {index + 1:,}{below}"
            index -= rows
        raise IndexError(index)

    def _malformed(self, file: Path) -> str:
        """What is wrong with a CSV, and in which line, which Polars won't say."""
        if _kind(file) != "csv":
            return ""
        with (gzip.open if file.suffix == ".gz" else open)(file, "rt", errors="replace") as lines:
            rows = csv.reader(lines, delimiter=self._delimiter, strict=True)
            columns, begin = 0, 1
            try:
                for row in rows:
                    columns = columns or len(row)
                    if len(row) > columns:
                        return (
                            f"line {rows.line_num:,} has {len(row)} values, the header {columns}; "
                            f"put values that hold {self._delimiter!r} in quotes"
                        )
                    begin = rows.line_num + 1
            except csv.Error:  # a value without end, or text behind a closing quote
                return (
                    f"line {begin:,} has a quote that does not stand round a whole value; take it "
                    "out, or put the value in quotes and write each quote in it twice"
                )
        return ""

    def _scan(self, file: Path) -> pl.LazyFrame:
        if _kind(file) == "parquet":
            frame = pl.scan_parquet(file, hive_partitioning=False)
        else:
            frame = pl.scan_csv(file, separator=self._delimiter, infer_schema=False)
        # Folders named key=value hold the value of a column.
        keys = [
            part.partition("=") for part in file.relative_to(self.path).parent.parts if "=" in part
        ]
        return frame.with_columns(
            pl.lit(None if value == _NO_VALUE else urllib.parse.unquote(value), pl.String).alias(
                key
            )
            for key, _, value in keys
        )


class Rows:
    """The columns of a table that a spec reads, each as what it has to be.

    The first row that is not is an error of its file, row and column.

    Args:
      place: where the table is.
      wanted: (column, key of the spec that names it); those of no column are passed over.

    Attributes:
      section: of the spec.
      read: how many rows the files have.
    """

    def __init__(self, place: Place, *wanted: tuple[str | None, str]):
        self.section, self.source = place.section, Source(place)
        self._raw = self.source.read({column: key for column, key in wanted if column is not None})
        self.read = len(self._raw)
        self._added: dict[str, pl.Series] = {}
        if not self.read:
            raise DinError(f"{place.path}: the table [{self.section}] has no rows")

    def distinct(self) -> pl.DataFrame:
        """All columns added; rows that are equal in every column wanted stand once, the first."""
        at = "row of the table"
        first = self._raw.with_row_index(at).unique(
            subset=self._raw.columns, keep="first", maintain_order=True
        )[at]
        frame = pl.DataFrame(list(self._added.values()))
        return frame if len(first) == len(frame) else frame[first]

    def add_id(self, name: str, column: str) -> None:
        """An id of every row: whole numbers or text."""
        self._add(name, self._present(column, self._id(column, self._raw[column])))

    def add_label(self, name: str, column: str) -> None:
        """0 or 1."""
        raw = self._present(column, self._raw[column])
        if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Boolean)):
            raise self._type(column, raw.dtype, "labels, 0 or 1")
        label = raw.cast(pl.Float64, strict=False)
        good = (label == 0) | (label == 1)
        self._refuse(column, ~good.fill_null(False), "a label, 0 or 1")
        self._add(name, label.cast(pl.UInt8))

    def add_time(self, name: str, column: str) -> None:
        """A time of every row: numbers, dates or dates with times, those in UTC."""
        raw = self._present(column, self._raw[column])
        if raw.dtype == pl.String:
            time = self._time_of_text(column, raw)
        elif raw.dtype == pl.Date:
            time = raw.cast(pl.Datetime("us"))
        elif isinstance(raw.dtype, pl.Datetime):
            if raw.dtype.time_zone is not None:
                raw = raw.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            time = raw.cast(pl.Datetime("us"))
        elif raw.dtype.is_integer():
            time = raw.cast(pl.Int64, strict=False)
        elif raw.dtype.is_float():
            time = _finite(raw.cast(pl.Float64))
        else:
            raise self._type(column, raw.dtype, "times: numbers, dates or dates with times")
        self._refuse(column, time.is_null(), "a time")
        self._add(name, time)

    def add_text(self, name: str, column: str) -> None:
        """Names of every row, as text: of splits."""
        self._add(name, self._present(column, self._id(column, self._raw[column]).cast(pl.String)))

    def add_feature(self, column: Column) -> None:
        """Ids, lists of ids, or (of a table of buckets) numbers; null where there is none."""
        name, raw = column.name, self._raw[column.column]
        if column.numeric:
            self._add(name, self._numbers(column.column, raw))
        elif column.separator is None:
            self._add(name, self._id(column.column, raw, lists=True))
        elif raw.dtype == pl.String:
            parts = raw.str.split(column.separator)
            self._add(name, parts.list.eval(pl.element().filter(pl.element() != "")))
        else:
            raise self._type(
                column.column, raw.dtype, "text to cut at the separator", "take separator out"
            )

    def _add(self, name: str, values: pl.Series) -> None:
        self._added[name] = values.alias(name)

    def _id(self, column: str, raw: pl.Series, lists: bool = False) -> pl.Series:
        inner = raw.dtype
        if lists and isinstance(inner, (pl.List, pl.Array)):
            raw = raw.cast(pl.List(inner.inner))
            inner = inner.inner  # type: ignore[assignment]
        if inner.is_integer() or inner == pl.String:
            return raw
        if inner in (pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Null):
            return raw.cast(pl.List(pl.String) if raw.dtype == pl.List else pl.String)
        raise self._type(
            column,
            raw.dtype,
            "ids: whole numbers or text" + (", or lists of them" if lists else ""),
            "write them as whole numbers, or give their table buckets: [tables.NAME] buckets = 20"
            if inner.is_float() and lists
            else "write them so",
        )

    def _numbers(self, column: str, raw: pl.Series) -> pl.Series:
        if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Boolean)):
            raise self._type(column, raw.dtype, "numbers, since their table is of buckets")
        numbers = raw.cast(pl.Float64, strict=False)
        self._refuse(column, numbers.is_null() & raw.is_not_null(), "a number")
        return numbers.fill_nan(None)

    def _time_of_text(self, column: str, raw: pl.Series) -> pl.Series:
        """The first value says whether numbers or dates are expected."""
        for kind in (pl.Int64, pl.Float64):
            time = raw.cast(kind, strict=False)
            if time[0] is not None and (kind == pl.Float64 or not time.has_nulls()):
                time = _finite(time) if kind == pl.Float64 else time
                self._refuse(column, time.is_null(), "a time, a number as in the first row")
                return time
        iso = raw.str.contains(r"^\d{4}-\d\d-\d\d([T ]|$)")
        self._refuse(column, ~iso, "a time: a number, or a date and time like 2024-05-01 12:00:00")
        try:
            time = raw.str.to_datetime(time_unit="us", strict=False)
        except pl.exceptions.PolarsError:
            time = pl.Series([None] * len(raw), dtype=pl.Datetime("us"))
        if time.dtype == pl.Datetime("us", "UTC"):
            time = time.dt.replace_time_zone(None)
        self._refuse(column, time.is_null(), "a date and time like 2024-05-01 12:00:00")
        return time

    def _present(self, column: str, raw: pl.Series) -> pl.Series:
        self._refuse(column, raw.is_null(), "a value in every row")
        return raw

    def _refuse(self, column: str, bad: pl.Series, expected: str) -> None:
        at = bad.arg_max() if bad.any() else None
        if at is not None:
            found = self._raw[column][at]
            raise DinError(
                f"{self.source.row(at)}: column {column!r} of [{self.source.section}] is "
                f"{'empty' if found is None else repr(found)}; expected {expected}. Mend or delete "
                f"the row ({bad.sum():,} of {len(bad):,} rows are like it)"
            )

    def _type(
        self, column: str, found: pl.DataType, expected: str, mend: str = "write them so"
    ) -> DinError:
        return DinError(
            f"{self.source.path}: column {column!r} of [{self.source.section}] holds {found}; "
            f"expected {expected}; {mend}"
        )


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)


def _finite(numbers: pl.Series) -> pl.Series:
    """Null in place of infinities and what is not a number."""
    return pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
