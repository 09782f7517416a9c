"""Reads columns of one of the user's tables: Parquet, Feather, JSON lines or CSV, one file or many.

The values of CSV are text, so that no id changes ("007" stays "007"); columns that hold nothing but
whole numbers, each written in the usual way, become numbers, as they are in Parquet.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log import csv_blocks, json_lines, table_files
from din_jax.prepare.log.spec import TableFiles
from din_jax.prepare.log.table_files import File
from din_jax.prepare.log.toml_section import suggestion
from din_jax.prepare.log.value_types import compact, plain, unify, without_nulls

_COMMON_DELIMITERS = (",", ";", "\t", "|")
_THREADS = 2


class TableReader:
    """Reads one of the user's tables.

    Attributes:
      notes: of what is not an error but may be a mistake.

    Raises:
      DinError: there is no file, or a file's format can't be told.
    """

    def __init__(self, files: TableFiles):
        self.section, self._options = files.section, files
        self.files = table_files.find(files)
        self._json: dict[Path, _Loaded] = {}
        self.path = files.paths[0] if len(files.paths) == 1 else files.paths[0].parent
        self.notes: list[str] = []

    def read(self, columns: Mapping[str, str], limit: int | None = None) -> pl.DataFrame:
        """Reads columns, {column: the key of the spec that names it}, of all files in order.

        Args:
          columns: of which each is in at least one file; where it is missing, its values are null.
          limit: how many rows to read, about.

        Raises:
          DinError: no file has a column, or a file can't be read.
        """
        self._load_json(columns, limit)
        existing = self._existing(columns)
        parts: dict[str, list[pl.Series]] = {column: [] for column in columns}
        rows = 0
        with ThreadPoolExecutor(_THREADS) as threads:  # Polars releases the interpreter
            for file, frame in self._parts(columns, existing, limit):
                cleaned = threads.map(
                    functools.partial(self._clean, compacts=file.format == "csv"),
                    frame.get_columns(),
                )
                here = dict(zip(frame.columns, cleaned, strict=True))
                for column, values in parts.items():
                    partition = pl.Series([file.partition.get(column)], dtype=pl.String)
                    values.append(here.get(column, partition.new_from_index(0, len(frame))))
                rows += len(frame)
                if limit is not None and rows >= limit:
                    break
        frame = pl.DataFrame([self._joined(name, values) for name, values in parts.items()])
        return frame if limit is None else frame.head(limit)

    def _load_json(self, columns: Mapping[str, str], limit: int | None) -> None:
        """Reads the columns of files of JSON, whose names only their content tells, once."""
        rows = 0
        for i, file in enumerate(self.files):
            if file.format != "json":
                continue
            if limit is not None and rows >= limit:
                self.files = self.files[:i]
                return
            loaded = self._json[file.path] = _Loaded({}, [])
            for frame in json_lines.frames(file.path):
                loaded.names.update(dict.fromkeys(_all_names(frame.schema)))
                found = {c: _expression(c, frame.schema) for c in columns}
                here = {c: expression for c, expression in found.items() if expression is not None}
                # Of a file that has none of them the rows count.
                kept = [*here.values()] or [pl.lit(None).alias("")]
                loaded.frames.append(frame.with_columns(kept).select([*here] or [""]))
                rows += len(frame)
                if limit is not None and rows >= limit:
                    break

    def _parts(
        self, columns: Mapping[str, str], existing: Sequence[set[str]], limit: int | None
    ) -> Iterator[tuple[File, pl.DataFrame]]:
        """The columns of each file that it has, in parts."""
        for file, names in zip(self.files, existing, strict=True):
            for frame in self._frames(file, [c for c in columns if c in names], limit):
                yield file, frame

    def blocks(
        self, columns: Mapping[str, str], rows: int
    ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Yields the rows in parts: all their columns as in the file, and those asked as in `read`.

        Args:
          columns: see `read`.
          rows: of a part, about.

        Raises:
          DinError: see `read`.
        """
        self._load_json_names()
        existing = self._existing(columns)
        for file, names in zip(self.files, existing, strict=True):
            for whole in self._whole_frames(file, rows):
                cleaned = []
                for column in columns:
                    expression = _expression(column, whole.schema) if column in names else None
                    if expression is not None:
                        values = whole.select(expression).to_series()
                    else:
                        partition = pl.Series([file.partition.get(column)], dtype=pl.String)
                        values = partition.new_from_index(0, len(whole))
                    cleaned.append(self._clean(values, compacts=file.format == "csv").alias(column))
                yield whole, pl.DataFrame(cleaned)

    def _whole_frames(self, file: File, rows: int) -> Iterator[pl.DataFrame]:
        if file.format == "csv":
            for block in csv_blocks.blocks(file.path, file.dialect, self._names(file)):
                yield block.frame
        elif file.format == "json":
            yield from json_lines.frames(file.path)
        else:
            with _reading(file, self.section):
                scan = self._scan(file)
                for begin in range(0, scan.select(pl.len()).collect().item(), rows):
                    yield scan.slice(begin, rows).collect()

    def _load_json_names(self) -> None:
        for file in self.files:
            if file.format == "json" and file.path not in self._json:
                loaded = self._json[file.path] = _Loaded({}, [])
                for frame in json_lines.frames(file.path):
                    loaded.names.update(dict.fromkeys(_all_names(frame.schema)))

    def names(self) -> list[str]:
        """The columns of the first file."""
        self._load_json_names()
        file = self.files[0]
        return [*self._names(file), *file.partition]

    def row_location(self, index: int) -> str:
        """The file and the line or row, counted from 1, of a row of `read`."""
        for file in self.files:
            before = index
            for rows, lines in self._row_counts(file):
                if index < rows:
                    if lines is None:
                        return f"{file.path}, row {before + 1:,}"
                    return f"{file.path}, line {int(lines()[index]):,}"
                index -= rows
        raise IndexError(index)

    def _row_counts(self, file: File) -> Iterator[tuple[int, Callable[[], np.ndarray] | None]]:
        if file.format == "csv":
            name = csv_blocks.header(file.path, file.dialect)[:1]
            for block in csv_blocks.blocks(file.path, file.dialect, name):
                yield len(block.frame), block.lines
        elif file.format == "json":
            for lines in json_lines.line_numbers(file.path):
                yield len(lines), functools.partial(np.copy, lines)
        else:
            yield self._scan(file).select(pl.len()).collect().item(), None

    def _clean(self, values: pl.Series, *, compacts: bool) -> pl.Series:
        """Applies what the spec says of missing values and spaces; `compacts`: text to numbers."""
        values = plain(values)
        if values.dtype == pl.String:
            if self._options.strip:
                stripped = values.str.strip_chars()
                values = stripped.set(stripped == "", None) if (stripped == "").any() else stripped
            values = without_nulls(values, self._options.null_values)
            return compact(values) if compacts else values
        if isinstance(values.dtype, pl.List):  # see `feature_columns`: those of times have none
            return values
        return without_nulls(values, self._options.null_values)

    def _joined(self, name: str, parts: Sequence[pl.Series]) -> pl.Series:
        if not parts:
            return pl.Series(name, [], dtype=pl.String)
        try:
            return unify(parts).alias(name)
        except (pl.exceptions.PolarsError, ValueError) as error:
            types = {str(part.dtype) for part in parts}
            raise DinError(
                f"{self.path}: column {name!r} of [{self.section}] has different types in its "
                f"files, {', '.join(sorted(types))} ({str(error).splitlines()[0]}); write it with "
                "one type"
            ) from error

    def _existing(self, columns: Mapping[str, str]) -> list[set[str]]:
        """The asked columns that each file has itself; raises if no file has one."""
        existing = []
        for file in self.files:
            names = self._names(file)
            if file.format == "csv":
                self._check_header(file, names, columns)
            existing.append(set(names) & set(columns))
        for column, key in columns.items():
            lacking = [
                f
                for f, names in zip(self.files, existing, strict=True)
                if column not in names and column not in f.partition
            ]
            if len(lacking) == len(self.files):
                raise self._no_column(self.files[0], column, key)
            if lacking:
                self.notes.append(
                    f"[{self.section}] {column!r} ({key}) is missing in {len(lacking):,} of "
                    f"{len(self.files):,} files, {lacking[0].path.name} for instance; their rows "
                    "count as having no value"
                )
        return existing

    def _check_header(self, file: File, names: list[str], columns: Mapping[str, str]) -> None:
        occurrences = Counter(names)
        for column, key in columns.items():
            if occurrences[column] > 1:
                raise DinError(
                    f"{file.path}: the header has {column!r} ({key} of [{self.section}]) "
                    f"{occurrences[column]} times; expected it once. Rename or delete the others"
                )

    def _no_column(self, file: File, column: str, key: str) -> DinError:
        existing = [*self._names(file), *file.partition]
        used = fix = ""
        if file.format == "csv":
            used = f", with delimiter = {json.dumps(file.dialect.delimiter)}"
            text = file.dialect.delimiter.join(existing)
            likely = max(_COMMON_DELIMITERS, key=text.count)
            if text.count(likely) > text.count(file.dialect.delimiter):
                fix = f"; by its header it needs delimiter = {json.dumps(likely)}"
            elif file.dialect.columns is None and existing[0].startswith(("#", "sep=")):
                fix = "; if the names are in a later line, delete those before it"
            elif file.dialect.columns is None and _looks_like_data(existing):
                name = "header" if self.section.split(".")[0] in ("items", "users") else "columns"
                return DinError(
                    f"{file.path}: the table [{self.section}] has no column {column!r} ({key}): "
                    "its "
                    f"first line, {text[:80]!r}, has no names. If the file has no header, name its "
                    f'columns in [{self.section}]: {name} = ["…", "…"], in order, '
                    f"{len(existing)} of them"
                )
        return DinError(
            f"{file.path}: the table [{self.section}] has no column {column!r} ({key})"
            f"{suggestion(column, existing)}; its columns are{used}: {', '.join(existing)}{fix}"
        )

    def _names(self, file: File) -> list[str]:
        if file.format == "csv":
            return [self._stripped(name) for name in csv_blocks.header(file.path, file.dialect)]
        if file.format == "json":
            return list(self._json[file.path].names)
        with _reading(file, self.section):
            return list(_all_names(self._scan(file).collect_schema()))

    def _stripped(self, name: str) -> str:
        return name.strip() if self._options.strip else name

    def _frames(
        self, file: File, columns: Sequence[str], limit: int | None
    ) -> Iterator[pl.DataFrame]:
        """The columns of a file, in parts; about `limit` rows if that is given."""
        if file.format == "csv":
            named = {self._stripped(n): n for n in csv_blocks.header(file.path, file.dialect)}
            for block in csv_blocks.blocks(file.path, file.dialect, [named[c] for c in columns]):
                frame = block.frame
                yield frame.rename({named[c]: c for c in columns}) if columns else frame
        elif file.format == "json":
            loaded = self._json.pop(file.path).frames
            for i, frame in enumerate(loaded):
                loaded[i] = frame.clear()  # its memory is not needed twice
                yield frame
        else:
            with _reading(file, self.section):
                scan = self._scan(file)
                schema = scan.collect_schema()
                scan = scan if limit is None else scan.head(limit)
                if not columns:
                    rows = scan.select(pl.len()).collect().item()
                    yield pl.DataFrame({"": pl.Series([None]).new_from_index(0, rows)})
                    return
                yield scan.select([_expression(c, schema) for c in columns]).collect()

    def _scan(self, file: File) -> pl.LazyFrame:
        if file.format == "parquet":
            return pl.scan_parquet(file.path, hive_partitioning=False)
        return pl.scan_ipc(file.path)


class _Loaded(NamedTuple):
    """A file of JSON: the names of all its columns, and those asked."""

    names: dict[str, None]
    frames: list[pl.DataFrame]


class _reading:
    """Turns the errors of reading a file into `DinError`."""

    def __init__(self, file: File, section: str):
        self._file, self._section = file, section

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, pl.exceptions.PolarsError | OSError):
            reason = str(error).strip().splitlines()[0]
            raise DinError(
                f"{self._file.path}: cannot be read ({reason}); expected the table "
                f"[{self._section}] as {self._file.format}"
            ) from error


def _looks_like_data(names: Sequence[str]) -> bool:
    """Whether a first line is data rather than names: it has numbers, empty or equal values."""
    numbers = sum(name.strip().lstrip("+-").replace(".", "", 1).isdigit() for name in names)
    return numbers > 0 or "" in names or len(set(names)) < len(names)


def _expression(column: str, schema: Mapping[str, pl.DataType]) -> pl.Expr | None:
    """A column, or what a name like a.b has in a nested one, or in each of a list of these."""
    if column in schema:
        return pl.col(column)
    first, *rest = column.split(".")
    found = _field(pl.col(first), schema[first], rest) if first in schema else None
    return None if found is None else found.alias(column)


def _field(value: pl.Expr, dtype: object, names: Sequence[str]) -> pl.Expr | None:
    if not names:
        return value
    if isinstance(dtype, pl.List | pl.Array):
        inner = _field(pl.element(), dtype.inner, names)
        if inner is None:
            return None
        of_list = value.list if isinstance(dtype, pl.List) else value.arr.to_list().list
        return of_list.eval(inner)
    fields = {f.name: f.dtype for f in dtype.fields} if isinstance(dtype, pl.Struct) else {}
    if names[0] not in fields:
        return None
    return _field(value.struct.field(names[0]), fields[names[0]], names[1:])


def _all_names(schema: Mapping[str, object]) -> Iterator[str]:
    """The names of columns, and after each nested one those of its fields."""
    for name, dtype in schema.items():
        yield name
        while isinstance(dtype, pl.List | pl.Array):
            dtype = dtype.inner
        if isinstance(dtype, pl.Struct):
            yield from _all_names({f"{name}.{f.name}": f.dtype for f in dtype.fields})
