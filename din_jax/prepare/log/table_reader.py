"""Reads columns of one of the user's tables: Parquet, Feather, JSON lines or CSV, one file or many.

The values of CSV are text, so that no id changes ("007" stays "007"); columns that hold nothing but
whole numbers, each written in the usual way, become numbers, as they are in Parquet.
"""

from __future__ import annotations

import ast
import functools
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log import csv_blocks, table_files
from din_jax.prepare.log.file_text import open_bytes, read_errors
from din_jax.prepare.log.spec import TableFiles
from din_jax.prepare.log.table_files import File
from din_jax.prepare.log.toml_section import suggestion
from din_jax.prepare.log.value_types import compact, unify

_COMMON_DELIMITERS = (",", ";", "\t", "|")
_THREADS = 2
_JSON_BYTES = 1 << 26


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
        existing = self._existing(columns)
        parts: dict[str, list[pl.Series]] = {column: [] for column in columns}
        rows = 0
        with ThreadPoolExecutor(_THREADS) as threads:  # Polars releases the interpreter
            for file, frame in self._parts(columns, existing):
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

    def _parts(
        self, columns: Mapping[str, str], existing: Sequence[set[str]]
    ) -> Iterator[tuple[File, pl.DataFrame]]:
        """The columns of each file that it has, in parts."""
        for file, names in zip(self.files, existing, strict=True):
            for frame in self._frames(file, [column for column in columns if column in names]):
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
        existing = self._existing(columns)
        for file, names in zip(self.files, existing, strict=True):
            for whole in self._whole_frames(file, rows):
                cleaned = []
                for column in columns:
                    values = pl.Series([file.partition.get(column)], dtype=pl.String)
                    if column in names:
                        values = whole.select(_expression(column, whole.columns)).to_series()
                    elif len(whole):
                        values = values.new_from_index(0, len(whole))
                    cleaned.append(self._clean(values, compacts=file.format == "csv").alias(column))
                yield whole, pl.DataFrame(cleaned)

    def _whole_frames(self, file: File, rows: int) -> Iterator[pl.DataFrame]:
        if file.format == "csv":
            for block in csv_blocks.blocks(file.path, file.dialect, self._names(file)):
                yield block.frame
        elif file.format == "json":
            yield from self._json_frames(file)
        else:
            with _reading(file, self.section):
                scan = self._scan(file)
                for begin in range(0, scan.select(pl.len()).collect().item(), rows):
                    yield scan.slice(begin, rows).collect()

    def names(self) -> list[str]:
        """The columns of the first file."""
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
            for frame in self._frames(file, self._names(file)[:1]):
                yield len(frame), None
        else:
            yield self._scan(file).select(pl.len()).collect().item(), None

    def _clean(self, values: pl.Series, *, compacts: bool) -> pl.Series:
        """Applies what the spec says of missing values and spaces; `compacts`: text to numbers."""
        if values.dtype == pl.String:
            if self._options.strip:
                stripped = values.str.strip_chars()
                values = stripped.set(stripped == "", None) if (stripped == "").any() else stripped
            if self._options.null_values:
                missing = values.is_in(self._options.null_values).fill_null(False)
                values = values.set(missing, None) if missing.any() else values
            return compact(values) if compacts else values
        if values.dtype.is_integer() and self._options.null_values:
            missing = values.cast(pl.String).is_in(self._options.null_values).fill_null(False)
            values = values.set(missing, None) if missing.any() else values
        return values

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
            existing.append({c for c in columns if c in names or self._nested(file, c)})
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
            return csv_blocks.header(file.path, file.dialect)
        if file.format == "json":
            names: dict[str, None] = {}
            for frame in self._json_frames(file):
                names |= dict.fromkeys(frame.columns)
            return list(names)
        with _reading(file, self.section):
            return self._scan(file).collect_schema().names()

    def _nested(self, file: File, column: str) -> bool:
        """Whether a name like a.b is a field of a nested column."""
        if file.format == "csv" or "." not in column:
            return False
        if file.format == "json":
            return any(_field(frame.schema, column) for frame in self._json_frames(file))
        with _reading(file, self.section):
            return _field(self._scan(file).collect_schema(), column)

    def _frames(self, file: File, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The columns of a file, in parts."""
        if file.format == "csv":
            for block in csv_blocks.blocks(file.path, file.dialect, columns):
                yield block.frame
        elif file.format == "json":
            for frame in self._json_frames(file):
                names = frame.columns
                if not columns:
                    yield frame
                    continue
                yield frame.select(
                    _expression(c).alias(c)
                    if c in names or _field(frame.schema, c)
                    else pl.lit(None).alias(c)
                    for c in columns
                )
        else:
            with _reading(file, self.section):
                scan = self._scan(file)
                names = scan.collect_schema().names()
                if not columns:
                    rows = scan.select(pl.len()).collect().item()
                    yield pl.DataFrame({"": pl.Series([None]).new_from_index(0, rows)})
                    return
                yield scan.select(
                    (pl.col(c) if c in names else _expression(c)).alias(c) for c in columns
                ).collect()

    def _json_frames(self, file: File) -> Iterator[pl.DataFrame]:
        """JSON lines in parts; types may differ between the parts."""
        line = 1
        for data in _whole_lines(file.path):
            try:
                yield pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
            except pl.exceptions.PolarsError as error:
                objects = _python_literals(data)
                if objects is None:
                    raise _json_error(file.path, data, line, str(error)) from error
                yield objects
            line += data.count(b"\n")

    def _scan(self, file: File) -> pl.LazyFrame:
        if file.format == "parquet":
            return pl.scan_parquet(file.path, hive_partitioning=False)
        return pl.scan_ipc(file.path)


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


def _expression(column: str, names: Sequence[str] = ()) -> pl.Expr:
    """A column, one of `names` or not nested; or the field that a.b has in a nested one."""
    if column in names:
        return pl.col(column)
    first, *rest = column.split(".")
    expression = pl.col(first)
    for name in rest:
        expression = expression.struct.field(name)
    return expression if rest else pl.col(column)


def _field(schema: Mapping[str, pl.DataType], column: str) -> bool:
    first, *rest = column.split(".")
    kind: object = schema.get(first)
    for name in rest:
        fields = {f.name: f.dtype for f in kind.fields} if isinstance(kind, pl.Struct) else {}
        kind = fields.get(name)
    return kind is not None and bool(rest)


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    try:
        with open_bytes(path) as file:
            for data in itertools.chain(iter(lambda: file.read(_JSON_BYTES), b""), [b""]):
                head, newline, tail = (rest + data).rpartition(b"\n")
                if not data:
                    head, newline, tail = rest, b"", b""
                rest = tail
                if (head + newline).strip():
                    yield head + newline
    except DinError:
        raise
    except Exception as error:
        raise read_errors(path, error) from error


def _python_literals(data: bytes) -> pl.DataFrame | None:
    """Lines that are Python literals, {'a': 1}, as in some public data; None if they aren't."""
    rows = []
    try:
        for text in io.BytesIO(data):
            if text.strip():
                value = ast.literal_eval(text.decode().strip())
                if not isinstance(value, dict):
                    return None
                rows.append(json.dumps(value))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return pl.read_ndjson(io.BytesIO("\n".join(rows).encode()), infer_schema_length=None)


def _json_error(path: Path, data: bytes, line: int, reason: str) -> DinError:
    for number, text in enumerate(io.BytesIO(data), line):
        if not text.strip():
            continue
        try:
            valid = isinstance(json.loads(text), dict)
        except ValueError as error:
            valid, reason = False, str(error)
        if not valid:
            return DinError(
                f"{path}, line {number:,}: {text[:80].decode(errors='replace').strip()!r} is not a "
                f"JSON object ({reason.splitlines()[0]}); expected one object a line"
            )
    return DinError(f"{path}: cannot be read as JSON lines ({reason.splitlines()[0]})")
