"""Reads CSV as RFC 4180 has it, strictly, in blocks of whole records.

Polars parses the values, but it fills short records, cuts long ones and guesses at stray quotes in
silence. So each block is checked first: its quotes enclose whole values, and each record has as
many values as the header. The check works on the bytes of a block at once.
"""

from __future__ import annotations

import codecs
import csv
import functools
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log.csv_structure import NEWLINE, RETURN, Structure
from din_jax.prepare.log.file_text import utf8_blocks
from din_jax.prepare.log.value_types import compact

_T = TypeVar("_T")
_ESCAPED_ROWS = 1 << 16  # rows of a block of a file with escapes, which Python's csv module reads
_NULL = "\ufdd0"  # stands for an escaped N; Unicode has it for such uses
_LONGEST_RECORD = 1 << 28  # bytes; what is longer has a quote that nothing closes


class Dialect(NamedTuple):
    """How a CSV is written.

    Attributes:
      delimiter: between the values; a single byte.
      quote: encloses values that hold delimiters, line ends or quotes; "" if quotes are
        ordinary characters.
      escape: precedes a quote or delimiter that belongs to a value; None: quotes are doubled.
      encoding: of the text.
      columns: names of the columns of files without a header; None: the first record has them.
    """

    delimiter: str = ","
    quote: str = '"'
    escape: str | None = None
    encoding: str = "utf-8"
    columns: tuple[str, ...] | None = None


class Block(NamedTuple):
    """Records of a file as text, and the line on which each begins, counted from 1."""

    frame: pl.DataFrame
    lines: Callable[[], np.ndarray]


def blocks(path: Path, dialect: Dialect, columns: Sequence[str]) -> Iterator[Block]:
    """Yields the given columns of the records; an empty value is null, empty lines are passed over.

    Without columns it yields the first one: a file that lacks what is asked for has rows all the
    same.

    Raises:
      DinError: the file can't be read, or isn't of this dialect; the message names the line.
    """
    names = header(path, dialect)
    columns = columns or names[:1]
    if dialect.escape is not None:
        yield from _escaped_blocks(path, dialect, names, columns)
        return
    skip = dialect.columns is None
    # Columns of whole numbers, by the first block, are parsed so where none is written unusually.
    numbers: list[int] | None = None
    tried: list[int] = []
    records = _whole_records(path, dialect, len(names), tried)
    for lines, block, has_empty, usual in _ahead(records):
        if skip:  # the header
            end = _first_record_end(block, dialect)
            skip = not end
            lines, block = lines + block.count(b"\n", 0, end), block[end:]
            if skip:
                continue
        text = _without_empty_lines(block, dialect) if has_empty else block
        if text:
            frame = _parse(path, text, dialect, names, columns, usual)
            if numbers is None:
                numbers = [names.index(c) for c in columns if compact(frame[c]).dtype == pl.Int64]
                tried += numbers
            yield Block(frame, functools.partial(_record_lines, block, lines, dialect))


def header(path: Path, dialect: Dialect) -> list[str]:
    """The names of the columns.

    Raises:
      DinError: the file has no records; or the dialect names the columns, but their number differs
        or the file has a header with them.
    """
    first = next((row for _, row in _rows(path, dialect, strict=False)), [])
    if any("\n" in name for name in first):  # unless a quote goes astray
        first = next((row for _, row in _rows(path, dialect)), [])
    if dialect.columns is None:
        if not first:
            raise DinError(
                f"{path}: the file is empty; expected a first line with the names of the columns"
            )
        return first
    names = list(dialect.columns)
    if first == names:
        raise DinError(
            f"{path}: the first line has the names of the columns; remove columns from its section "
            "of the spec"
        )
    if first and len(first) != len(names):
        raise DinError(
            f"{path}: the first line has {len(first)} values, but columns names {len(names)}; "
            "name each column, in order"
        )
    return names


def records(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, values) of each record after the header, slowly, for messages and escapes."""
    names = header(path, dialect)
    rows = _rows(path, dialect)
    for line, row in rows if dialect.columns is not None else itertools.islice(rows, 1, None):
        if len(row) != len(names):
            _wrong_length(path, line, len(row), len(names), dialect)
        yield line, row


def _rows(path: Path, dialect: Dialect, *, strict: bool = True) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, values) of each record that is not empty, by Python's csv module."""
    csv.field_size_limit(_LONGEST_RECORD)
    reader = csv.reader(
        _lines(path, dialect),
        delimiter=dialect.delimiter,
        quotechar=dialect.quote or None,
        quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
        escapechar=dialect.escape,
        strict=strict,
    )
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row if dialect.escape is None else [_with_nulls(v) for v in row]
            line = reader.line_num + 1
    except csv.Error as error:
        if "new-line" in str(error):
            raise _lone_return(path, line) from error
        raise _misplaced_quote(path, line, dialect, "") from error


def _lines(path: Path, dialect: Dialect) -> Iterator[str]:
    """Lines of text, with their ends; the \\N of files with escapes as `_NULL`."""
    escaped = re.compile(rf"{re.escape(dialect.escape)}(.)", re.DOTALL) if dialect.escape else None
    rest = b""
    for data in itertools.chain(utf8_blocks(path, dialect.encoding), [b""]):
        cut = data.rfind(b"\n") + 1
        whole, rest = (rest + data[:cut], data[cut:]) if cut else (b"", rest + data)
        for line in io.BytesIO(whole if data else rest):
            text = line.decode()
            if escaped is not None and f"{dialect.escape}N" in text:
                text = escaped.sub(lambda pair: _NULL if pair[1] == "N" else pair[0], text)
            yield text


def _with_nulls(value: str) -> str:
    """A value of a file with escapes: empty if it is \\N, quoted or not, as MySQL reads it."""
    return "" if value == _NULL else value.replace(_NULL, "N")


def _escaped_blocks(
    path: Path, dialect: Dialect, names: list[str], columns: Sequence[str]
) -> Iterator[Block]:
    places = [names.index(column) for column in columns]
    rows = records(path, dialect)
    while part := list(itertools.islice(rows, _ESCAPED_ROWS)):
        values = list(zip(*(row for _, row in part), strict=True))
        frame = pl.DataFrame(
            {c: pl.Series(values[i], dtype=pl.String) for c, i in zip(columns, places, strict=True)}
        )
        frame = frame.with_columns(pl.all().replace("", None))
        lines = np.array([line for line, _ in part])
        yield Block(frame, functools.partial(np.copy, lines))


def _whole_records(
    path: Path, dialect: Dialect, columns: int, tried: Sequence[int]
) -> Iterator[tuple[int, bytes, bool, list[int]]]:
    """Yields checked records.

    Each time (number of the first line, records, whether there are empty lines, which of the
    `tried` columns have no number like 007 or +1).
    """
    rest, line = b"", 1
    for data in itertools.chain(utf8_blocks(path, dialect.encoding), [b""]):
        final = not data
        data = rest + data
        if final and data and not data.endswith(b"\n"):
            data += b"\n"
        structure = _structure(data, dialect)
        fault = structure.fault(at_end=final or len(data) - structure.end > _LONGEST_RECORD)
        begin = len(data) if fault is None else structure.begin_of_record(fault)
        wrong = structure.wrong_length(columns)
        if wrong is not None and wrong[0] < begin:
            offset, values = wrong
            record = data[offset : data.find(b"\n", offset)].rstrip(b"\r")
            ends = record.endswith(dialect.delimiter.encode())
            _wrong_length(path, line + data.count(b"\n", 0, offset), values, columns, dialect, ends)
        if fault is not None:
            line += data.count(b"\n", 0, begin)
            if data[fault] == RETURN:
                raise _lone_return(path, line)
            start, stop = data.rfind(b"\n", 0, fault) + 1, data.find(b"\n", fault)
            text = data[start : stop if stop >= 0 else len(data)].decode()
            raise _misplaced_quote(path, line, dialect, text)
        end = structure.end
        if end:
            block = data[:end]
            yield line, block, structure.has_empty, structure.usual(tried, columns)
            line += data.count(b"\n", 0, end)
        rest = data[end:]


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """Yields items while a thread computes the next one."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def _structure(data: bytes, dialect: Dialect) -> Structure:
    return Structure(data, dialect.delimiter.encode(), dialect.quote.encode())


def _first_record_end(data: bytes, dialect: Dialect) -> int:
    """Where the first record that is not empty ends; 0 if there is none."""
    ends = _structure(data, dialect).records()[1]
    return int(ends[0]) if len(ends) else 0


def _without_empty_lines(block: bytes, dialect: Dialect) -> bytes:
    if not block:
        return block
    begins, ends = _structure(block, dialect).records()
    return b"".join(block[b:e] for b, e in zip(begins.tolist(), ends.tolist(), strict=True))


def _record_lines(data: bytes, first_line: int, dialect: Dialect) -> np.ndarray:
    begins, _ = _structure(data, dialect).records()
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE)
    lines: np.ndarray = first_line + np.searchsorted(newlines, begins)
    return lines


def _parse(
    path: Path,
    block: bytes,
    dialect: Dialect,
    names: list[str],
    columns: Sequence[str],
    whole_numbers: Sequence[int],
) -> pl.DataFrame:
    """Parses records: as text, or as int64 the columns of `whole_numbers` if they are."""
    places = {names.index(column): column for column in columns}
    ordered, original = sorted(places), block
    if block.startswith(codecs.BOM_UTF8):
        block = codecs.BOM_UTF8 + block  # Polars takes the first one away
    types = {
        f"column_{i}": pl.Int64() if i in whole_numbers else pl.String() for i in range(len(names))
    }
    try:
        frame = pl.read_csv(
            block,
            has_header=False,
            columns=[f"column_{i}" for i in ordered],
            schema=types,
            separator=dialect.delimiter,
            quote_char=dialect.quote or None,
            null_values=[""],
        )
    except pl.exceptions.PolarsError as error:
        if whole_numbers:  # some are not, or too large
            return _parse(path, original, dialect, names, columns, ())
        raise DinError(
            f"{path}: cannot be read as CSV ({str(error).strip().splitlines()[0]})"
        ) from error
    return frame.select(pl.col(f"column_{i}").alias(places[i]) for i in map(names.index, columns))


def _wrong_length(
    path: Path, line: int, values: int, columns: int, dialect: Dialect, ends: bool = False
) -> NoReturn:
    if values == columns + 1 and ends:
        fix = f"the line ends with {dialect.delimiter!r}: remove it, or end the header so too"
    elif values > columns:
        fix = f"put values that contain {dialect.delimiter!r} in quotes"
        if dialect.escape is None:
            fix += ', or if a \\ stands before it name that: escape = "\\\\"'
    else:
        fix = "write an empty value where one is missing, or delete the line"
    expected = "columns names" if dialect.columns is not None else "the header has"
    raise DinError(f"{path}, line {line:,}: {values} values, but {expected} {columns}; {fix}")


def _lone_return(path: Path, line: int) -> DinError:
    return DinError(
        f"{path}, line {line:,}: a carriage return ends no line, and is not in quotes. Put the "
        "value in quotes, or if lines end with it alone, as on old Macs, write line feeds: tr "
        "'\\r' '\\n'"
    )


def _misplaced_quote(path: Path, line: int, dialect: Dialect, text: str) -> DinError:
    fix = "remove it, or put the value in quotes and double each quote inside it"
    if "\\" + dialect.quote in text and dialect.escape is None:
        fix = 'if a \\ stands before quotes that belong to a value, name that: escape = "\\\\"'
    return DinError(
        f"{path}, line {line:,}: a quote does not enclose a whole value"
        + (f", {text.strip()[:80]!r}" if text else "")
        + f'; {fix}. If quotes are ordinary characters in this file: quote = ""'
    )
