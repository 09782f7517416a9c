"""Reads CSV as RFC 4180 has it, strictly, in blocks of whole records.

Polars parses the values, but it fills short records, cuts long ones and guesses at stray quotes in
silence. So each block is checked first: its quotes enclose whole values, and each record has as
many values as the header. The check works on the bytes of a block at once.
"""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import polars as pl
import zstandard

from din_jax.errors import DinError
from din_jax.prepare.log.value_types import compact

_T = TypeVar("_T")
_BLOCK_BYTES = 1 << 25
_FIRST_BYTES = 1 << 16
_ESCAPED_ROWS = 1 << 16  # rows of a block of a file with escapes, which Python's csv module reads
_LONGEST_RECORD = 1 << 28  # bytes; what is longer has a quote that nothing closes
_NEWLINE, _RETURN = 10, 13
_PLUS, _MINUS, _ZERO = 43, 45, 48
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_LIKELY_ENCODINGS = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1251", "cp1252")


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


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file, decompressed by its content: gzip, Zstandard or neither."""
    with path.open("rb") as raw:
        magic = raw.read(4)
    if magic[:2] == _GZIP:
        return gzip.open(path)  # type: ignore[return-value]
    if magic == _ZSTD:
        return io.BufferedReader(_Zstd(path))
    return path.open("rb")


def read_errors(path: Path, error: Exception) -> DinError:
    """The message for a file that can't be read."""
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return DinError(f"{path}: truncated or damaged ({error}); fetch the file again")
    if isinstance(error, OSError):
        return DinError(f"{path}: {error.strerror or error}")
    return DinError(f"{path}: truncated or damaged ({error}); fetch the file again")


class _Zstd(io.RawIOBase):
    """A file compressed by Zstandard, of one frame or several; an error where one is cut off.

    The package's own reader ends in silence there.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside, self._data = False, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame, self._inside = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                rest = b""
            compressed = rest or self._file.read(1 << 16)
            if not compressed:
                if self._inside:
                    raise EOFError("the file ends within a frame")
                return 0
            self._inside = True
            self._data = memoryview(self._frame.decompress(compressed))
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with open_bytes(path) as file:
            size = _FIRST_BYTES  # enough for a header
            while data := file.read(size):
                yield data
                size = _BLOCK_BYTES
    except DinError:
        raise
    except Exception as error:
        raise read_errors(path, error) from error


def _utf8_chunks(path: Path, encoding: str) -> Iterator[bytes]:
    """The file's text as UTF-8, without a byte order mark.

    Raises:
      DinError: the text is not of this encoding.
    """
    plain = codecs.lookup(encoding).name in ("utf-8", "ascii")
    decoder = codecs.getincrementaldecoder("utf-8" if plain else encoding)()
    done, first = 0, True
    for data in itertools.chain(_chunks(path), [b""]):
        if plain and not decoder.getstate()[0] and data.isascii():
            text = data
        else:
            try:
                decoded = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _wrong_encoding(path, encoding, done, error) from error
            except UnicodeError as error:  # utf-16 without a byte order mark
                raise DinError(
                    f"{path} is not {encoding.upper()} ({error}); name the file's encoding, "
                    f"{encoding}-le for instance"
                ) from error
            text = decoded.encode()
        if first and text:
            text, first = text.removeprefix(codecs.BOM_UTF8), False
        done += text.count(b"\n")
        if text:
            yield text


def _wrong_encoding(path: Path, encoding: str, lines: int, error: UnicodeDecodeError) -> DinError:
    data, start = error.object, error.start
    line = lines + data.count(b"\n", 0, start) + 1
    begin = data.rfind(b"\n", 0, start) + 1
    end = data.find(b"\n", start)
    text = data[begin : end if end >= 0 else len(data)].strip()[:80]
    readings = []
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not lines:
        return DinError(
            f"{path} begins like UTF-16, not {encoding.upper()}, which is expected. Name the "
            "file's "
            'encoding in its section of the spec: encoding = "utf-16"'
        )
    for candidate in _LIKELY_ENCODINGS:
        try:
            reading = text.decode(candidate)
        except UnicodeDecodeError:
            continue
        if reading.isprintable():
            readings.append(f"encoding = {candidate!r} reads {reading!r}")
    return DinError(
        f"{path}, line {line:,} is not {encoding.upper()}, which is expected. Name the file's "
        "encoding in its section of the spec"
        + (f"; of this line {', '.join(readings)}: choose the one that is text" if readings else "")
    )


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
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        if "new-line" in str(error):
            raise _lone_return(path, line) from error
        raise _misplaced_quote(path, line, dialect, "") from error


def _lines(path: Path, dialect: Dialect) -> Iterator[str]:
    """Lines of text, with their ends; a literal \\N of files with escapes is an empty value."""
    missing = None
    if dialect.escape is not None:
        between = re.escape(dialect.delimiter)
        missing = re.compile(
            rf"(?:(?<=^)|(?<={between})){re.escape(dialect.escape)}N(?=$|[{between}\r\n])"
        )
    rest = b""
    for data in itertools.chain(_utf8_chunks(path, dialect.encoding), [b""]):
        cut = data.rfind(b"\n") + 1
        whole, rest = (rest + data[:cut], data[cut:]) if cut else (b"", rest + data)
        for line in io.BytesIO(whole if data else rest):
            text = line.decode()
            yield missing.sub("", text) if missing else text


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
    for data in itertools.chain(_utf8_chunks(path, dialect.encoding), [b""]):
        final = not data
        data = rest + data
        if final and data and not data.endswith(b"\n"):
            data += b"\n"
        structure = _Structure(data, dialect)
        fault = structure.fault(at_end=final or len(data) - structure.end > _LONGEST_RECORD)
        begin = len(data) if fault is None else structure.begin_of_record(fault)
        wrong = structure.wrong_length(columns)
        if wrong is not None and wrong[0] < begin:
            offset, values = wrong
            _wrong_length(path, line + data.count(b"\n", 0, offset), values, columns, dialect)
        if fault is not None:
            line += data.count(b"\n", 0, begin)
            if data[fault] == _RETURN:
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


class _Structure:
    """Where the records and values of a block begin and end.

    Attributes:
      end: where the last whole record ends.
    """

    def __init__(self, data: bytes, dialect: Dialect):
        self._data = np.frombuffer(data, np.uint8)
        quote, delimiter = dialect.quote.encode(), dialect.delimiter.encode()
        is_end, is_delimiter = self._data == _NEWLINE, self._data == delimiter[0]
        is_return = self._data == _RETURN if b"\r" in data else None
        self._quotes = np.empty(0, np.int64)
        self._delimiter = delimiter[0]
        if quote and quote in data:
            is_quote = self._data == quote[0]
            self._quotes = np.flatnonzero(is_quote)
            outside = (np.cumsum(is_quote, dtype=np.uint8) & 1) == 0
            is_end &= outside
            is_delimiter &= outside
            if is_return is not None:
                is_return &= outside
        self._quote = quote[0] if quote else None
        self._ends = np.flatnonzero(is_end)
        self.end = int(self._ends[-1]) + 1 if len(self._ends) else 0
        self._delimiters = np.flatnonzero(is_delimiter[: self.end])
        self._returns = np.flatnonzero(is_return[: self.end]) if is_return is not None else None
        self._begins = np.concatenate([[0], self._ends[:-1] + 1]).astype(np.int64)[
            : len(self._ends)
        ]
        length = self._ends - self._begins
        self._empty = (length == 0) | ((length == 1) & (self._data[self._begins] == _RETURN))

    def fault(self, *, at_end: bool) -> int | None:
        """The place of the first character that breaks the rules, or None.

        It is a quote that does not enclose a whole value, or a carriage return outside quotes that
        ends no line; `at_end`: or the quote that is open at the end.
        """
        places = [self._quotes[-1:]] if at_end and len(self._quotes) % 2 else []
        if self._returns is not None:
            places.append(self._returns[self._data[self._returns + 1] != _NEWLINE])
        if len(self._quotes):
            opening, closing = self._quotes[::2], self._quotes[1::2]
            allowed = np.zeros(256, bool)
            allowed[[self._delimiter, _NEWLINE, self._quote or 0]] = True
            before = np.where(opening > 0, self._data[opening - 1], _NEWLINE)
            after_place = closing + 1
            inside = after_place < len(self._data)
            after = np.where(inside, self._data[np.where(inside, after_place, 0)], _NEWLINE)
            places.append(opening[~allowed[before]])
            allowed[_RETURN] = True
            places.append(closing[~allowed[after]])
        return min((int(p[0]) for p in places if len(p)), default=None)

    def begin_of_record(self, place: int) -> int:
        """Where the record that holds a place begins."""
        number = int(np.searchsorted(self._ends, place))
        return int(self._ends[number - 1]) + 1 if number else 0

    def wrong_length(self, columns: int) -> tuple[int, int] | None:
        """(offset, values) of the first record that has not `columns` values, or None."""
        begins, ends = self.records()
        per_record = columns - 1
        if len(self._delimiters) == per_record * len(ends):
            if not per_record:
                return None
            delimiters = self._delimiters.reshape(-1, per_record)
            if (delimiters[:, 0] >= begins).all() and (delimiters[:, -1] < ends).all():
                return None
        counts = np.searchsorted(self._delimiters, ends) - np.searchsorted(self._delimiters, begins)
        wrong = np.flatnonzero(counts != per_record)
        return int(begins[wrong[0]]), int(counts[wrong[0]]) + 1

    def usual(self, tried: Sequence[int], columns: int) -> list[int]:
        """Which columns have no value that begins like 007, -0 or +1; none if there are quotes."""
        if not tried or len(self._quotes) or self.has_empty:
            return []
        delimiters = self._delimiters.reshape(-1, columns - 1)
        data = self._data
        found = []
        for column in tried:
            first = self._begins if column == 0 else delimiters[:, column - 1] + 1
            character = data[first]
            # After each of these there is one more character, the line's end at least.
            after_zero = data[first[character == _ZERO] + 1]
            after_minus = data[first[character == _MINUS] + 1]
            if not (
                (character == _PLUS).any()
                or ((after_zero >= _ZERO) & (after_zero <= _ZERO + 9)).any()
                or (after_minus == _ZERO).any()
            ):
                found.append(column)
        return found

    def records(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the records begin and end, without empty lines."""
        full = ~self._empty
        return self._begins[full], self._ends[full] + 1

    @property
    def has_empty(self) -> bool:
        """Whether a line is empty."""
        return bool(self._empty.any())


def _first_record_end(data: bytes, dialect: Dialect) -> int:
    """Where the first record that is not empty ends; 0 if there is none."""
    ends = _Structure(data, dialect).records()[1]
    return int(ends[0]) if len(ends) else 0


def _without_empty_lines(block: bytes, dialect: Dialect) -> bytes:
    if not block:
        return block
    begins, ends = _Structure(block, dialect).records()
    return b"".join(block[b:e] for b, e in zip(begins.tolist(), ends.tolist(), strict=True))


def _record_lines(data: bytes, first_line: int, dialect: Dialect) -> np.ndarray:
    begins, _ = _Structure(data, dialect).records()
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)
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


def _wrong_length(path: Path, line: int, values: int, columns: int, dialect: Dialect) -> NoReturn:
    if values > columns:
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
