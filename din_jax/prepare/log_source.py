"""The user's tables: Parquet or CSV, one file or a folder of them, column by column and checked.

CSV is read as text, so that no id is taken for a number ("007" stays "007") and what a column is
does not depend on how its first lines look; what has to be a number or a time is made one here.
"""

from __future__ import annotations

import csv
import itertools
import json
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from din_jax.errors import DinError
from din_jax.prepare import csv_lines
from din_jax.prepare.log_spec import Column, Place, nearest

_SUFFIXES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
}
_DELIMITERS = (",", ";", "\t", "|")  # that a message proposes
_ENDS_EMPTY = "whether the last value of a line is missing"
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
                ".parquet, or all with one of " + ", ".join([*_SUFFIXES][1:])
            )

    def read(self, wanted: Mapping[str, str]) -> pl.DataFrame:
        """The columns wanted, {column: the key of the spec that names it}, of all files in order.

        Raises:
          DinError: a file has no such column, or can't be read.
        """
        frames = []
        for file in self.files:
            is_csv, delimiter = _kind(file) == "csv", self._delimiter_of(file)
            try:
                scan = self._scan(file)
                names = scan.collect_schema().names()
                ends_empty = pl.col(names[-1]).is_null() if is_csv else pl.lit(False)
                scan = scan.with_columns(ends_empty.alias(_ENDS_EMPTY))
                keys = _keys(file.relative_to(self.path))
                self._check_columns(file, [*names, *keys], wanted)
                frame = scan.with_columns(**keys).select(*wanted, _ENDS_EMPTY).collect()
            except (pl.exceptions.PolarsError, OSError) as error:
                if is_csv:
                    csv_lines.check(file, delimiter)  # knows what is wrong, and in which line
                reason = str(error).strip().splitlines()[0]
                raise DinError(
                    f"{file}: can not be read ({reason}); expected the table [{self.section}] as "
                    f"{_kind(file)}"
                ) from error
            # Polars fills up a line that is too short with nulls, and does not tell.
            if frame[_ENDS_EMPTY].any() and csv_lines.may_be_short(file, delimiter, len(names)):
                csv_lines.check(file, delimiter)
            frames.append(frame.drop(_ENDS_EMPTY))
        try:
            return pl.concat(frames, how="vertical_relaxed", rechunk=False)
        except pl.exceptions.PolarsError as error:
            raise DinError(
                f"{self.path}: its files hold one column as different types "
                f"({str(error).splitlines()[0]}); write them alike"
            ) from error

    def row(self, index: int) -> str:
        """The file and the line or the row, counted from 1, of a row of `read`."""
        for file in self.files:
            rows = self._scan(file).select(pl.len()).collect().item()
            if index < rows:
                if _kind(file) == "parquet":
                    return f"{file}, row {index + 1:,}"
                rows_of_file = csv_lines.rows(file, self._delimiter_of(file))
                line, _ = next(itertools.islice(rows_of_file, index + 1, None))
                return f"{file}, line {line:,}"
            index -= rows
        raise IndexError(index)

    def _check_columns(self, file: Path, have: list[str], wanted: Mapping[str, str]) -> None:
        """Raises if a column is missing, or stands twice in the header of a CSV."""
        is_csv, delimiter = _kind(file) == "csv", self._delimiter_of(file)
        header = csv_lines.header(file) if is_csv else ""
        times = Counter(next(csv.reader([header], delimiter=delimiter), []))
        for column, key in wanted.items():
            if times[column] > 1:
                raise DinError(
                    f"{file}: the header has {column!r} ({key} of [{self.section}]) "
                    f"{times[column]} times; expected it once. Rename or delete the others"
                )
            if column not in have:
                used = f", with delimiter = {json.dumps(delimiter)}" if is_csv else ""
                likely = max(_DELIMITERS, key=header.count)
                mend = ""
                if header.count(likely) > header.count(delimiter):
                    mend = f"; by its header it needs delimiter = {json.dumps(likely)}"
                raise DinError(
                    f"{file}: the table [{self.section}] has no column {column!r} ({key})"
                    f"{nearest(column, have)}; its columns are{used}: {', '.join(have)}{mend}"
                )

    def _delimiter_of(self, file: Path) -> str:
        tabs = file.name.lower().removesuffix(".gz").endswith(".tsv")
        return self._delimiter or ("\t" if tabs else ",")

    def _scan(self, file: Path) -> pl.LazyFrame:
        if _kind(file) == "parquet":
            return pl.scan_parquet(file, hive_partitioning=False)
        delimiter = self._delimiter_of(file)
        return pl.scan_csv(file, separator=delimiter, infer_schema=False, null_values="")


def _keys(path: Path) -> dict[str, pl.Expr]:
    """The columns whose values folders named key=value hold."""
    keys = [part.partition("=") for part in path.parent.parts if "=" in part]
    return {
        key: pl.lit(None if value == _NO_VALUE else urllib.parse.unquote(value), pl.String)
        for key, _, value in keys
    }


class Rows:
    """The columns of a table that a spec reads, each as what it has to be.

    The first row that is not is an error of its file, row and column.

    Args:
      place: where the table is.
      wanted: (column, key of the spec that names it); those of no column are passed over.

    Attributes:
      section: of the spec.
      read: how many rows the files have.
      notes: what is no error, and yet may not be meant.
    """

    def __init__(self, place: Place, *wanted: tuple[str | None, str]):
        self.section, self.source = place.section, Source(place)
        self._raw = self.source.read({column: key for column, key in wanted if column is not None})
        self.read = len(self._raw)
        self.notes: list[str] = []
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
        bad = ~((label == 0) | (label == 1)).fill_null(False)
        if bad.any():
            self._refuse(
                column,
                bad,
                "a label, 0 or 1",
                f"Write the column as 0 and 1; it holds {_held(raw)}",
            )
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
            if not (parts.list.len() > 1).any():
                self.notes.append(
                    f"[{self.section}] {column.name}: the separator {column.separator!r} is in no "
                    f"value of column {column.column!r}; each counts as one"
                )
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
        zoned = raw.str.contains(r"\d\d:\d\d.*([Zz]|[+-]\d\d(:?\d\d)?)$")
        if zoned.any():
            self._refuse(
                column,
                ~zoned,
                "a zone such as Z or +02:00, which other rows have, in all or in none",
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

    def _present(self, column: str, raw: pl.Series) -> pl.Series:
        self._refuse(column, raw.is_null(), "a value in every row")
        return raw

    def _refuse(self, column: str, bad: pl.Series, expected: str, mend: str = "") -> None:
        at = bad.arg_max() if bad.any() else None
        if at is not None:
            found = self._raw[column][at]
            if not mend:
                mend = (
                    "Mend or delete the row" if 2 * bad.sum() < len(bad) else "Write the column so"
                )
                mend += f" ({bad.sum():,} of {len(bad):,} rows are like it)"
            raise DinError(
                f"{self.source.row(at)}: column {column!r} of [{self.source.section}] is "
                f"{'empty' if found is None else repr(found)}; expected {expected}. {mend}"
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


def _held(raw: pl.Series) -> str:
    """The values of a column that most rows have."""
    values = raw.alias("value").value_counts(sort=True)
    shown = [f"{rows:,} × {value!r}" for value, rows in values.head(5).iter_rows()]
    return ", ".join(shown) + (f" and {len(values) - 5:,} other values" * (len(values) > 5))
