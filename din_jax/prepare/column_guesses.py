"""Guesses what the columns of a file are, from their names and their first 10,000 rows."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare import text_files

_ROWS = 10_000
_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
# Names of each role in lower case, without what is no letter or digit; the first are preferred.
_NAMES = {
    "label": "isclick click clicked clk label target y",
    "user": "userid user uid reviewerid customerid visitorid memberid",
    "item": "itemid item iid videoid movieid asin parentasin productid goodsid adgroupid adid "
    "articleid newsid songid trackid",
    "time": "timems timestamp time ts eventtime unixreviewtime datetime createdat date",
    "rating": "rating ratings stars overall score",
}
_UNITS = (1, 1e3, 1e6, 1e9)  # of times since 1970, in a second


class Column(NamedTuple):
    """What the first rows of a column have.

    `kind`: "flag" (0 and 1), "time", "id" (also any few values), "number", "text" or "empty".
    """

    name: str
    kind: str
    values: pl.Series  # text, without nulls
    separator: str | None = None


class Table(NamedTuple):
    """A file: its columns, and {role: column}.

    `delimiter` is None where it is the default of files of this name.
    """

    path: Path
    columns: list[Column]
    roles: dict[str, str]
    delimiter: str | None
    has_header: bool

    @property
    def kind(self) -> str:
        """Which table this is, by its roles."""
        if {"user", "item"} <= self.roles.keys():
            return "impressions" if "label" in self.roles else "behaviours"
        return next((f"{role}s" for role in ("item", "user") if role in self.roles), "unknown")


def read(path: Path) -> Table:
    """Reads the first rows of a Parquet or CSV file, and guesses its columns.

    Raises:
      DinError: the file can't be read.
    """
    if path.is_dir():
        raise DinError(f"{path} is a folder; name one of its files, and then write it as the path")
    if not path.is_file():
        raise DinError(f"{path}: no such file; expected a Parquet or CSV file")
    if not path.name.lower().endswith(_SUFFIXES):
        raise DinError(f"{path}: expected a name that ends with {', '.join(_SUFFIXES)}")
    delimiter, has_header = None, True
    try:
        if path.name.lower().endswith(".parquet"):
            frame = pl.scan_parquet(path).head(_ROWS).collect()
        else:
            with gzip.open(path) if text_files.is_gzip(path) else path.open("rb") as file:
                line = file.readline().decode("utf-8-sig")
            delimiter = max(",\t;|", key=line.count)
            rows = pl.read_csv(
                path,
                separator=delimiter,
                has_header=False,
                infer_schema=False,
                null_values="",
                n_rows=_ROWS + 1,
            )
            first = [value or "" for value in rows.row(0)]
            has_header = len({*first}) == len(first) and not any(map(_is_value, first))
            names = first if has_header else [f"column_{i}" for i in range(1, len(first) + 1)]
            frame = rows.slice(int(has_header)).rename(dict(zip(rows.columns, names, strict=True)))
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DinError(
            f"{path}: cannot be read ({reason}); expected Parquet, or CSV in UTF-8"
        ) from error
    columns = [_profile(column) for column in frame]
    if not has_header:
        columns = _named(columns)
    if delimiter == ("\t" if ".tsv" in path.name.lower() else ","):
        delimiter = None
    return Table(path, columns, _roles(columns), delimiter, has_header)


def _is_value(text: str) -> bool:
    return not text or re.fullmatch(r"[-+.\d]+([eE][-+]?\d+)?|\d{4}-\d\d-\d\d.*", text) is not None


def _profile(column: pl.Series) -> Column:
    values = column.drop_nulls()
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        kind = "id" if isinstance(values.dtype, pl.List) else "text"
        return Column(column.name, kind, pl.Series([], dtype=pl.String))
    is_time = values.dtype.is_temporal()
    values = (values.cast(pl.Int8) if values.dtype == pl.Boolean else values).cast(pl.String)
    often = 0.2 * len(values)
    separators = [s for s in "|;" if values.str.contains(s, literal=True).sum() > often]
    numbers = _numbers(values)
    if not len(values):
        kind = "empty"
    elif is_time or values.str.contains(r"^\d{4}-\d\d-\d\d").all():
        kind = "time"
    elif numbers is None:
        is_text = not separators and np.median(values.str.count_matches(" ").to_numpy()) >= 2
        return Column(column.name, "text" if is_text else "id", values, *separators[:1])
    elif np.isin(numbers, [0, 1]).all():
        kind = "flag"
    elif any(5e8 <= numbers.min() / unit <= numbers.max() / unit < 2e9 for unit in _UNITS):
        kind = "time"
    else:
        few = len(np.unique(numbers)) <= min(50, len(numbers) // 2)
        is_id = few or column.name.lower().endswith("id")
        kind = "id" if is_id and (numbers % 1 == 0).all() else "number"
    return Column(column.name, kind, values)


def _numbers(values: pl.Series) -> np.ndarray | None:
    """Text as numbers; None if some is not a number."""
    numbers = values.cast(pl.Float64, strict=False)
    return None if numbers.null_count() else numbers.to_numpy()


def _named(columns: list[Column]) -> list[Column]:
    """Columns of a file without a header, named by their values."""
    free = {"flag": ["label"], "time": ["time"], "rating": ["rating"], "few": ["behavior"]}
    free["id"] = ["user", "item", "category"]
    named = []
    for column in columns:
        kind, numbers = column.kind, _numbers(column.values)
        if kind in ("id", "number"):
            kind = "id" if column.values.n_unique() > 20 else "few"
            if numbers is not None and kind == "few" and numbers.max() <= 10:
                kind = "rating"
        name = free[kind].pop(0) if free.get(kind) else column.name
        kind = kind if kind in ("flag", "time", "text", "empty") else "id"
        named.append(column._replace(name=name, kind=kind))
    return named


def _roles(columns: list[Column]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, names in _NAMES.items():
        for name in names.split():
            for c in columns:
                fits = c.kind == "flag" if role == "label" else c.kind not in ("text", "empty")
                if re.sub(r"[^a-z0-9]", "", c.name.lower()) == name and fits:
                    roles.setdefault(role, c.name)
    if times := [c.name for c in columns if c.kind == "time"]:
        roles.setdefault("time", times[0])
    return roles


def is_function(column: Column, of: Column) -> bool:
    """Whether equal values of one column have equal values of the other, and some are equal."""
    if len(column.values) != len(of.values) or column.values.n_unique() == 1:
        return False
    pairs = pl.DataFrame({"of": of.values, "value": column.values}).n_unique()
    return pairs == of.values.n_unique() < 0.9 * len(of.values)
