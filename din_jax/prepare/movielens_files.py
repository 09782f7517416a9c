"""Reads the ratings and movies of MovieLens, plain or gzipped.

- ml-20m, ml-25m, ml-32m, ml-latest: CSV with a header, genres split by a bar. Kaggle's edition of
  ml-20m has names and times in quotes, and the times as dates in UTC.
- ml-1m, ml-10m: fields separated by `::`, genres split by a bar.
- ml-100k: ratings separated by tabs; movies separated by bars, with a flag for each of 19 genres.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl

from din_jax.errors import DinError
from din_jax.prepare import text_files

_HEADERS = {"ratings": "userId,movieId,rating,timestamp", "movies": "movieId,title,genres"}
_RATING_COLUMNS = {
    "userId": pl.Int64,
    "movieId": pl.Int64,
    "rating": pl.Float64,
    "timestamp": pl.Int64,
}
_100K = {"ratings": "tabs", "movies": "bars"}
_NO_GENRES = "(no genres listed)"
# Of u.item, whose 24 fields are the film's id, title, two dates, an address and these flags.
_FLAGS = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
)  # fmt: skip
_ITEM_FIELDS = 5 + len(_FLAGS)
_DATE_AT_END = re.compile(rb'(?<=,)"?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"?\s*$')
_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_ratings(path: Path) -> pl.DataFrame:
    """The columns userId, movieId, rating and timestamp, in the file's order.

    Raises:
      DinError: the file is missing, empty, truncated or not one of ratings, or a line is malformed.
    """
    separator, blocks = _open(path, "ratings")
    frames = []
    for first_line, block in blocks:
        frame = _parse_ratings(block, separator)
        if frame is None:
            lines = _check_lines(path, first_line, block, separator)
            frame = (
                _parse_ratings(lines, separator) if lines else pl.DataFrame(schema=_RATING_COLUMNS)
            )
        if frame is None:
            raise DinError(
                f"{path}, a line from {first_line} on: cannot be read; expected UTF-8 and a line "
                "feed after each line"
            )
        frames.append(frame)
    if not sum(map(len, frames)):
        raise DinError(f"{path}: contains no ratings; expected one per line")
    return pl.concat(frames)


def _parse_ratings(block: bytes, separator: str) -> pl.DataFrame | None:
    """The ratings of some lines; None unless every line is a rating."""
    if separator != ",":
        if b"," in block:
            return None
        block = block.replace(separator.encode(), b",")
    dates = _DATE_AT_END.search(block.partition(b"\n")[0]) is not None
    schema = {**_RATING_COLUMNS, "timestamp": pl.String} if dates else _RATING_COLUMNS
    try:
        frame = pl.read_csv(
            io.BytesIO(block.replace(b'"', b"") if dates else block),
            has_header=False,
            schema=schema,
            quote_char=None,
        )
        if dates:
            date = pl.col("timestamp").str.to_datetime(_DATE_FORMAT, time_unit="us")
            frame = frame.with_columns(date.dt.epoch("s"))
    except pl.exceptions.PolarsError:
        return None
    complete = frame.null_count().sum_horizontal()[0] == 0
    return frame if complete and frame["rating"].is_between(0.5, 5).all() else None


def _check_lines(path: Path, first_line: int, block: bytes, separator: str) -> bytes:
    """The lines of a block without the blank ones; raises at the first that is not a rating."""
    lines = []
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if not line.strip():
            continue
        text = line.decode("utf-8", "replace").rstrip("\r")
        if _DATE_AT_END.search(line):
            text = _DATE_AT_END.sub(b"0", line).decode("utf-8", "replace").replace('"', "")
        problem = _problem_of_rating(text.split(separator))
        if problem:
            expected = separator.join(_HEADERS["ratings"].split(","))
            raise DinError(
                f"{path}, line {number}: {text_files.quoted(line)} is not a rating: {problem}; "
                f"expected {expected}. Fix or delete the line"
            )
        lines.append(line)
    return b"\n".join(lines)


def _problem_of_rating(fields: list[str]) -> str:
    """Why these fields are not a rating; "" if they are one."""
    if len(fields) != len(_RATING_COLUMNS):
        return f"it has {len(fields)} values, not {len(_RATING_COLUMNS)}"
    for (name, dtype), text in zip(_RATING_COLUMNS.items(), fields, strict=True):
        if dtype == pl.Int64 and not _is_int64(text):
            return f"the {name}, {text!r}, is not a whole number"
        if dtype == pl.Float64 and not (_NUMBER.fullmatch(text) and 0.5 <= float(text) <= 5):
            return f"the {name}, {text!r}, is not a number from 0.5 to 5"
    return ""


def _is_int64(text: str) -> bool:
    return bool(_INTEGER.fullmatch(text)) and -(2**63) <= int(text) < 2**63


class Movie(NamedTuple):
    """A film's title, and its genres, without duplicates, in the file's order."""

    title: str
    genres: list[str]


def read_movies(path: Path) -> dict[int, Movie]:
    """{film: its title and genres}.

    Raises:
      DinError: the file is missing, empty, truncated or not one of movies, a line is malformed, or
        a film occurs twice.
    """
    separator, blocks = _open(path, "movies")
    first_line, data = 1, b""
    for number, block in blocks:
        first_line = first_line if data else number
        data += block
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # the encoding of ml-1m
    rows = text.split("\n")
    parsed = {",": _csv_rows, "::": _colon_rows, "|": _item_rows}[separator](text)
    movies: dict[int, Movie] = {}
    for row, fields in parsed:
        location = f"{path}, line {first_line + row}"
        if len(fields) != 3 or not _is_int64(fields[0]):
            expected = separator.join(_HEADERS["movies"].split(","))
            if separator == "|":
                expected = f"{_ITEM_FIELDS} fields as in ml-100k, the last {len(_FLAGS)} 0 or 1"
            unquoted_comma = separator == "," and len(fields) > 3
            fix = "Fix or delete the line"
            if unquoted_comma:
                fix = "Put a title that contains a comma in quotes"
            raise DinError(
                f"{location}: {text_files.quoted(rows[row].encode())} is not a movie; expected "
                f"{expected}, the first a whole number. {fix}"
            )
        film, genres = int(fields[0]), fields[2].strip()
        if film in movies:
            raise DinError(f"{location}: movie {film} occurs a second time; delete one of the two")
        names = [] if genres == _NO_GENRES else [name.strip() for name in genres.split("|")]
        movies[film] = Movie(fields[1].strip(), [*dict.fromkeys(filter(None, names))])
    if not movies:
        raise DinError(f"{path}: contains no movies; expected one per line")
    return movies


def _csv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, counted from 0, and its fields) of CSV; no fields if the quotes are wrong."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield line, []
            return
        if len(fields) > 1 or "".join(fields).strip():
            yield line, fields


def _colon_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields as `_csv_rows`, of fields separated by `::`; a title may contain that too."""
    for line, row in enumerate(text.split("\n")):
        film, first, rest = row.partition("::")
        title, last, genres = rest.rpartition("::")
        if row.strip():
            yield line, [film, title, genres] if first and last else []


def _item_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields as `_csv_rows`, of the lines of u.item; "unknown" is no genre."""
    for line, row in enumerate(text.split("\n")):
        fields = row.rstrip("\r").split("|")
        flags = fields[5:]
        if row.strip():
            is_item = len(fields) == _ITEM_FIELDS and {*flags} <= {"0", "1"}
            names = [g for g, flag in zip(_FLAGS, flags, strict=False) if flag == "1"]
            genres = "|".join(name for name in names if name != "unknown")
            yield line, [fields[0], fields[1], genres] if is_item else []


def _open(path: Path, content: str) -> tuple[str, Iterator[tuple[int, bytes]]]:
    """The separator of a file of ratings or movies, and its blocks of lines without the header."""
    if not path.is_file():
        raise DinError(
            f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected the file "
            f"{content}.csv or {content}.dat of a MovieLens data set, "
            "https://grouplens.org/datasets/movielens"
        )
    blocks = text_files.blocks(path)
    first_line, block = next(blocks, (1, b""))
    if not block:
        raise DinError(f"{path}: empty; expected {content}")
    head, _, rest = block.partition(b"\n")
    actual_content, separator = _detect_layout(head.decode("utf-8", "replace").strip())
    if actual_content != content:
        swapped = f", which is of {actual_content} (are the two files swapped?)"
        raise DinError(
            f"{path}, line 1: found {text_files.quoted(head)}{swapped if actual_content else ''}"
            f"; expected the header {_HEADERS[content]}, or fields separated by :: as in ml-1m, or "
            f"by {_100K[content]} as in ml-100k"
        )
    first_block = (first_line + 1, rest) if separator == "," else (first_line, block)
    return separator, itertools.chain([first_block] if first_block[1] else [], blocks)


def _detect_layout(head: str) -> tuple[str | None, str]:
    """What a file with this first line contains (None: neither) and its separator."""
    for content, header in _HEADERS.items():
        if head.replace('"', "") == header:
            return content, ","
    if head.count("|") == _ITEM_FIELDS - 1:
        return "movies", "|"
    for separator in ("::", "\t"):
        _, found, last = head.rpartition(separator)
        if found and _is_int64(last):  # a timestamp
            return "ratings", separator
    return ("movies", "::") if "::" in head else (None, "")
