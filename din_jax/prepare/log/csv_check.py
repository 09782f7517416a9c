"""Checks CSV files with Python's csv module, to name the line of an error.

Polars reads the tables. This is slower, and only used for messages and after a failed read.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from din_jax.errors import DinError
from din_jax.prepare import text_files


def rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (number of the first line, values) of the header and of each row.

    Raises:
      DinError: a line is not UTF-8, a quote is misplaced, a row is longer or shorter than the
        header, or the file can't be read.
    """
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    columns, first_line = 0, 1
    try:
        for row in reader:
            columns = columns or len(row)
            if len(row) != columns:
                fix = (
                    f"put values that contain {delimiter!r} in quotes"
                    if len(row) > columns
                    else "write an empty value where one is missing, or delete the line"
                )
                raise DinError(
                    f"{path}, line {first_line:,}: {len(row)} values, but the header has "
                    f"{columns}; {fix}"
                )
            if columns:  # there may be empty lines before the header
                yield first_line, row
            first_line = reader.line_num + 1
    except csv.Error as error:  # a quoted value does not end, or text follows a closing quote
        raise DinError(
            f"{path}, line {first_line:,}: a quote does not enclose a whole value; remove it, or "
            "put the value in quotes and double each quote inside it"
        ) from error


def check(path: Path, delimiter: str) -> None:
    """Reads the whole file, and raises what `rows` raises."""
    for _ in rows(path, delimiter):
        pass


def may_have_short_rows(path: Path, delimiter: str, columns: int) -> bool:
    """Whether a row may have fewer values than there are columns; four times as fast as `check`.

    It counts delimiters, and returns True for any file with quotes, since values in quotes may
    contain delimiters.
    """
    separator = delimiter.encode()
    return any(
        b'"' in block or any(line.count(separator) < columns - 1 for line in io.BytesIO(block))
        for _, block in text_files.blocks(path)
    )


def header(path: Path) -> str:
    """The first line that is not empty, unparsed."""
    return next((line for line in _lines(path) if line.strip()), "")


def _lines(path: Path) -> Iterator[str]:
    for first, block in text_files.blocks(path):
        for number, line in enumerate(io.BytesIO(block), first):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DinError(
                    f"{path}, line {number:,}: {text_files.quoted(line)} is not UTF-8, which is "
                    "expected; if the file is Latin-1, convert it: "
                    "iconv -f latin1 -t utf-8 OLD > NEW"
                ) from error
