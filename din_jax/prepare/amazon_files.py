"""Reads Amazon's reviews and goods in the layouts of 2014, 2018 and 2023, plain or gzipped.

A line is a review or a good, and its keys tell the layout:

- 2014: reviews have reviewerID, asin and unixReviewTime (seconds). Goods have asin and categories,
  a list of paths; they are Python literals.
- 2018: reviews as in 2014. Goods are JSON, with asin and category, one path.
- 2023: reviews have user_id, parent_asin and timestamp (milliseconds). Goods are JSON, with
  parent_asin, categories, one path, and main_category. The `parent_asin` is the good: one product
  in all its colours and sizes.
"""

from __future__ import annotations

import ast
import html
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import polars as pl

from din_jax.errors import DinError
from din_jax.prepare import text_files

_GOOD_ID = re.compile(rb"""['"](?:parent_)?asin['"]: *(?:'([^'\\]*)'|"([^"\\]*)")""")
_FROM_MILLISECONDS = 10**11  # a time below is before 1973 in milliseconds: it is in seconds
_MALFORMED = (ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError,
              MemoryError, RecursionError)  # fmt: skip


class _ReviewLayout(NamedTuple):
    name: str
    keys: tuple[str, str, str]  # of a review's user, good and time
    unit: str  # of the time

    def __str__(self) -> str:
        user, good, time = self.keys
        return f"{user} and {good} (text) and {time} (whole {self.unit})"


_BEFORE_2023 = _ReviewLayout("2014 or 2018", ("reviewerID", "asin", "unixReviewTime"), "seconds")
_IN_2023 = _ReviewLayout("2023", ("user_id", "parent_asin", "timestamp"), "milliseconds")
_GOOD_KEY = {"2014": "asin", "2018": "asin", "2023": "parent_asin"}
_GOODS = {
    "2014": "a Python literal like {'asin': '…', 'categories': [['…', '…']]}",
    "2018": 'JSON like {"asin": "…", "category": ["…", "…"]}',
    "2023": 'JSON like {"parent_asin": "…", "categories": ["…", "…"], "main_category": "…"}',
}


class Reviews(NamedTuple):
    """All reviews in the file's order.

    Attributes:
      rows: the columns user and good, text, and time, int64 in `ticks` a second.
      layout: "2014 or 2018", or "2023".
    """

    rows: pl.DataFrame
    ticks: int
    layout: str


def read_reviews(path: Path) -> Reviews:
    """Reads a file of reviews.

    Raises:
      DinError: the file is missing, truncated, empty or of no layout, or a line is malformed.
    """
    layout, frames = None, []
    for first_line, block in _blocks(path):
        layout = layout or _layout_of_reviews(path, first_line, block)
        if layout is None:
            continue  # blank lines
        columns = dict(zip(layout.keys, (pl.String, pl.String, pl.Int64), strict=True))
        try:
            frame = pl.read_ndjson(io.BytesIO(block), schema=columns)
            complete = frame.null_count().sum_horizontal()[0] == 0
        except pl.exceptions.PolarsError:
            complete = False
        if not complete:
            _raise_first_bad_review(path, first_line, block, layout)
        frames.append(frame)
    if layout is None or not sum(map(len, frames)):
        raise DinError(f"{path}: contains no reviews; expected JSON lines, one per review")
    rows = pl.concat(frames)
    rows.columns = ["user", "good", "time"]
    latest = rows["time"].to_numpy().max()
    if layout is _IN_2023 and latest < _FROM_MILLISECONDS:
        raise DinError(
            f"{path}: the latest timestamp is {latest}; expected milliseconds, as in the layout of "
            "2023. Multiply seconds by 1000"
        )
    return Reviews(rows, 1000 if layout is _IN_2023 else 1, layout.name)


def _layout_of_reviews(path: Path, first_line: int, block: bytes) -> _ReviewLayout | None:
    """The layout of the first line that is not blank; None if there is none."""
    lines = enumerate(block.split(b"\n"), start=first_line)
    number, line = next(((i, line) for i, line in lines if line.strip()), (0, b""))
    if not number:
        return None
    try:
        keys = _object(line)
    except _MALFORMED:
        _raise_bad_review(path, number, line, (_BEFORE_2023, _IN_2023))
    for layout in (_BEFORE_2023, _IN_2023):
        if all(key in keys for key in layout.keys):
            return layout
    swapped = " (are the two files swapped?)" if _layout_of_goods(keys) else ""
    raise DinError(
        f"{path}, line {number}: found the keys {_listed(keys)}{swapped}; expected reviews in the "
        f"layout of 2014 or 2018 ({', '.join(_BEFORE_2023.keys)}) or of 2023 "
        f"({', '.join(_IN_2023.keys)})"
    )


def _raise_first_bad_review(
    path: Path, first_line: int, block: bytes, layout: _ReviewLayout
) -> None:
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if not line.strip():
            continue
        try:
            review = json.loads(line, parse_constant=_reject_constant)
            user, good, time = map(review.get, layout.keys)
            is_review = (
                isinstance(user, str)
                and isinstance(good, str)
                and isinstance(time, int)
                and not isinstance(time, bool)
                and -(2**63) <= time < 2**63
            )
        except (ValueError, AttributeError):
            is_review = False
        if not is_review:
            _raise_bad_review(path, number, line, (layout,))
    raise DinError(
        f"{path}, a line from {first_line} on: cannot be read as JSON lines; expected UTF-8, and a "
        "line feed after each object"
    )


def _raise_bad_review(
    path: Path, number: int, line: bytes, layouts: Iterable[_ReviewLayout]
) -> NoReturn:
    raise DinError(
        f"{path}, line {number}: {text_files.quoted(line)} is not a review; expected a JSON object "
        f"with {', or with '.join(map(str, layouts))}. Fix or delete the line"
    )


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class Goods(NamedTuple):
    """What a file says of goods, by their ids.

    Attributes:
      category_of: the last category of the (last) path. A good without a path has its main_category
        (2023), or is left out.
      title_of: titles; goods without one are left out.
      layout: "2014", "2018" or "2023".
    """

    category_of: dict[str, str]
    title_of: dict[str, str]
    layout: str


def read_goods(path: Path, goods: pl.Series, reviews: str) -> Goods:
    """Reads a file of goods.

    Args:
      path: the file.
      goods: the ids of the goods to read; lines of others are skipped.
      reviews: the layout of the reviews, see `Reviews`.

    Raises:
      DinError: the file is missing, truncated, of no layout or of another one than the reviews, a
        line is malformed, or none of the goods has a category.
    """
    reviewed = set(goods)
    reviewed_bytes = {good.encode() for good in reviewed}
    layout: str | None = None
    category_of: dict[str, str] = {}
    title_of: dict[str, str] = {}
    for first_line, block in _blocks(path):
        for number, line in enumerate(block.split(b"\n"), start=first_line):
            ids = [a or b for a, b in _GOOD_ID.findall(line)]
            if not line.strip() or (ids and reviewed_bytes.isdisjoint(ids)):
                continue  # most goods are in no review, and parsing a line takes 50 times as long
            try:
                good = _object(line)
                if layout is None:
                    layout = _layout_of_goods(good)
                if layout is not None:
                    name, category = _category(good, layout)
            except _MALFORMED as error:
                expected = _GOODS[layout] if layout else ", or ".join(_GOODS.values())
                raise DinError(
                    f"{path}, line {number}: {text_files.quoted(line)} is not a good; expected "
                    f"{expected}. Fix or delete the line"
                ) from error
            if layout is None and "asin" not in good:
                raise DinError(
                    f"{path}, line {number}: found the keys {_listed(good)}; expected goods in the "
                    f"layout of {'; or '.join(f'{year}: {text}' for year, text in _GOODS.items())}"
                )
            if layout is None or name not in reviewed:
                continue
            if category:
                category_of[name] = category
            if isinstance(title := good.get("title"), str) and title.strip():
                title_of[name] = " ".join(html.unescape(title).split())
    if layout is not None and layout not in reviews:
        raise DinError(
            f"{path} has the layout of {layout}, but the reviews have that of {reviews}; expected "
            "both files of one release"
        )
    if layout is None or not category_of:
        raise DinError(
            f"{path}: has a category for none of the {len(goods):,} goods of the reviews; "
            "are both files of the same product group?"
        )
    return Goods(category_of, title_of, layout)


def _layout_of_goods(good: Mapping[str, Any]) -> str | None:
    """The layout of a line of goods; None if its keys do not tell it."""
    if "parent_asin" in good:
        return "2023"
    if "asin" not in good:
        return None
    return "2018" if "category" in good else "2014" if "categories" in good else None


def _category(good: Mapping[str, Any], layout: str) -> tuple[str, str | None]:
    """The id of a good, and the last category of its last path; None without a path."""
    if layout == "2014":
        paths = good.get("categories") or []
    elif layout == "2018":
        paths = [good.get("category") or []]
    else:
        paths = [good.get("categories") or [*filter(None, [good.get("main_category")])]]
    if not all(isinstance(path, list | tuple) for path in paths) or not all(
        isinstance(name, str) for path in paths for name in path
    ):
        raise TypeError("categories")
    names = [*paths[-1]] if paths else []
    if layout == "2018":  # some paths end with markup of the page that they were read from
        names = [name for name in names if "</" not in name]
    return good[_GOOD_KEY[layout]], names[-1] if names else None


def _object(line: bytes) -> dict[str, Any]:
    """A line as a dictionary: JSON, or a Python literal, of which nothing is ever executed."""
    text = line.decode().strip()
    try:
        value = json.loads(text)
    except ValueError:
        value = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _listed(keys: Iterable[str]) -> str:
    names = [*map(str, keys)]
    return ", ".join(names[:12]) + (", …" if len(names) > 12 else "")


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.suffix == ".gz" and not text_files.is_gzip(path):
        raise DinError(f"{path}: named .gz, but it is not a gzip file; rename or compress it")
    return text_files.blocks(path)
