"""Reads the columns of one of the user's tables: Parquet or CSV, one file or a folder of files.

CSV is read as text, so that no id is parsed as a number ("007" stays "007") and a column's type
does not depend on the first lines.
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
from din_jax.prepare.log import csv_check
from din_jax.prepare.log.spec import TableFiles
from din_jax.prepare.log.toml_section import suggestion

_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
}
_COMMON_DELIMITERS = (",", ";", "\t", "|")
_LAST_IS_NULL = "whether the last value of a line is null"
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes null in a folder's name


class TableReader:
    """Reads one of the user's tables.

    Raises:
      DinError: there is no file, or there are files of several formats.
    """

    def __init__(self, files: TableFiles):
        self.section, self.path, self._delimiter = files.section, files.path, files.delimiter
        if self.path.is_dir():
            # Skips hidden files, and files that writers of partitioned tables leave with the data.
            visible = (
                file
                for file in sorted(self.path.rglob("*"))
                if not any(
                    part.startswith((".", "_")) for part in file.relative_to(self.path).parts
                )
            )
            self.files = [file for file in visible if file.is_file() and _format(file)]
            if not self.files:
                raise DinError(
                    f"{self.path}: no file in this folder ends with {' or '.join(_FORMATS)}; "
                    f"expected the table [{self.section}]"
                )
        elif self.path.is_file():
            self.files = [self.path]
        else:
            raise DinError(
                f"{self.path}: no such file or folder; expected the table [{self.section}]. Paths "
                "of a spec start from its own folder, or from --data"
            )
        formats = {_format(file) for file in self.files}
        if len(formats) != 1 or None in formats:
            raise DinError(
                f"{self.path}: expected the table [{self.section}] as files that all end with "
                ".parquet, or all with one of " + ", ".join([*_FORMATS][1:])
            )

    def read(self, columns: Mapping[str, str]) -> pl.DataFrame:
        """Reads columns, {column: the key of the spec that names it}, of all files in order.

        Raises:
          DinError: a file lacks a column, or can't be read.
        """
        frames = []
        for file in self.files:
            is_csv, delimiter = _format(file) == "csv", self._delimiter_of(file)
            try:
                scan = self._scan(file)
                names = scan.collect_schema().names()
                last_is_null = pl.col(names[-1]).is_null() if is_csv else pl.lit(False)
                scan = scan.with_columns(last_is_null.alias(_LAST_IS_NULL))
                partition = _partition_columns(file.relative_to(self.path))
                self._check_columns(file, [*names, *partition], columns)
                frame = scan.with_columns(**partition).select(*columns, _LAST_IS_NULL).collect()
            except (pl.exceptions.PolarsError, OSError) as error:
                if is_csv:
                    csv_check.check(file, delimiter)  # its errors name the line
                reason = str(error).strip().splitlines()[0]
                raise DinError(
                    f"{file}: cannot be read ({reason}); expected the table [{self.section}] as "
                    f"{_format(file)}"
                ) from error
            # Polars silently fills a line that is too short with nulls.
            if frame[_LAST_IS_NULL].any() and csv_check.may_have_short_rows(
                file, delimiter, len(names)
            ):
                csv_check.check(file, delimiter)
            frames.append(frame.drop(_LAST_IS_NULL))
        try:
            return pl.concat(frames, how="vertical_relaxed", rechunk=False)
        except pl.exceptions.PolarsError as error:
            raise DinError(
                f"{self.path}: a column has different types in its files "
                f"({str(error).splitlines()[0]}); write it with one type"
            ) from error

    def row_location(self, index: int) -> str:
        """The file and the line or row, counted from 1, of a row of `read`."""
        for file in self.files:
            rows = self._scan(file).select(pl.len()).collect().item()
            if index < rows:
                if _format(file) == "parquet":
                    return f"{file}, row {index + 1:,}"
                csv_rows = csv_check.rows(file, self._delimiter_of(file))
                line, _ = next(itertools.islice(csv_rows, index + 1, None))
                return f"{file}, line {line:,}"
            index -= rows
        raise IndexError(index)

    def _check_columns(self, file: Path, existing: list[str], columns: Mapping[str, str]) -> None:
        """Raises if a column is missing, or occurs twice in the header of a CSV."""
        is_csv, delimiter = _format(file) == "csv", self._delimiter_of(file)
        header = csv_check.header(file) if is_csv else ""
        occurrences = Counter(next(csv.reader([header], delimiter=delimiter), []))
        for column, key in columns.items():
            if occurrences[column] > 1:
                raise DinError(
                    f"{file}: the header has {column!r} ({key} of [{self.section}]) "
                    f"{occurrences[column]} times; expected it once. Rename or delete the others"
                )
            if column not in existing:
                used = f", with delimiter = {json.dumps(delimiter)}" if is_csv else ""
                likely = max(_COMMON_DELIMITERS, key=header.count)
                fix = ""
                if header.count(likely) > header.count(delimiter):
                    fix = f"; by its header it needs delimiter = {json.dumps(likely)}"
                raise DinError(
                    f"{file}: the table [{self.section}] has no column {column!r} ({key})"
                    f"{suggestion(column, existing)}; its columns are{used}: "
                    f"{', '.join(existing)}{fix}"
                )

    def _delimiter_of(self, file: Path) -> str:
        tabs = file.name.lower().removesuffix(".gz").endswith(".tsv")
        return self._delimiter or ("\t" if tabs else ",")

    def _scan(self, file: Path) -> pl.LazyFrame:
        if _format(file) == "parquet":
            return pl.scan_parquet(file, hive_partitioning=False)
        delimiter = self._delimiter_of(file)
        return pl.scan_csv(file, separator=delimiter, infer_schema=False, null_values="")


def _format(file: Path) -> str | None:
    name = file.name.lower()
    return next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)


def _partition_columns(path: Path) -> dict[str, pl.Expr]:
    """The columns that folders named key=value add."""
    keys = [part.partition("=") for part in path.parent.parts if "=" in part]
    return {
        key: pl.lit(None if value == _HIVE_NULL else urllib.parse.unquote(value), pl.String)
        for key, _, value in keys
    }
