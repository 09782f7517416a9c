"""The lines of a CSV as the csv module reads them: what is wrong with one, and where a row stands.

Polars reads the tables; this is slower, and for messages.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from din_jax.errors import DinError
from din_jax.prepare import lines


def rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (the line that it begins in, its values) of the header and of each row.

    Raises:
      DinError: a line is not UTF-8, a quote is wrong, a row is longer or shorter than the header,
        or the file can't be read.
    """
    reader = csv.reader(_text(path), delimiter=delimiter, strict=True)
    columns, begin = 0, 1
    try:
        for row in reader:
            columns = columns or len(row)
            if len(row) != columns:
                mend = (
                    f"put values that hold {delimiter!r} in quotes"
                    if len(row) > columns
                    else "write an empty value where one is missing, or delete the line"
                )
                raise DinError(
                    f"{path}, line {begin:,}: {len(row)} values, but the header has {columns}; "
                    + mend
                )
            if columns:  # there may be empty lines before the header
                yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:  # a value without end, or text behind a closing quote
        raise DinError(
            f"{path}, line {begin:,}: a quote does not stand round a whole value; take it out, or "
            "put the value in quotes and write each quote in it twice"
        ) from error


def check(path: Path, delimiter: str) -> None:
    """Raises what `rows` does."""
    for _ in rows(path, delimiter):
        pass


def may_be_short(path: Path, delimiter: str, columns: int) -> bool:
    """Whether a row may have fewer values than there are columns; four times as quick as `check`.

    It counts delimiters, and so says yes of any file with quotes, in which they may stand.
    """
    mark = delimiter.encode()
    return any(
        b'"' in block or any(line.count(mark) < columns - 1 for line in io.BytesIO(block))
        for _, block in lines.blocks(path)
    )


def header(path: Path) -> str:
    """The first line that is not empty, as it is written."""
    return next((line for line in _text(path) if line.strip()), "")


def _text(path: Path) -> Iterator[str]:
    for first, block in lines.blocks(path):
        for number, line in enumerate(io.BytesIO(block), first):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DinError(
                    f"{path}, line {number:,}: {lines.shown(line)} is not UTF-8, which is "
                    "expected; if the file is Latin-1, convert it: "
                    "iconv -f latin1 -t utf-8 OLD > NEW"
                ) from error
