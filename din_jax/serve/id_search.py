"""Searches the ids of a model's tables, by id or title."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from din_jax.data.titles import Titles
from din_jax.data.transform import Transform
from din_jax.data.vocabularies import Fitted

_BLOCK = 1 << 16  # ids that are compared at a time
_EXACT = 2**53  # JavaScript reads whole numbers exactly below it

Entry = dict[str, Any]


class IdSearch:
    """Finds ids in the vocabularies of a model. Thread-safe.

    Args:
      transform: has the vocabularies.
      titles: {table: the display names of its ids}; a table may be missing.

    Attributes:
      tables: {table: its vocabulary}, without tables of numbers.
    """

    def __init__(self, transform: Transform, titles: dict[str, Titles]):
        self._transform = transform
        self.tables = {n: t for n, t in transform.tables.items() if isinstance(t, Fitted)}
        self._titles = {name: of_table.titles for name, of_table in titles.items()}
        self._orders: dict[str, npt.NDArray[np.int64]] = {}

    def search(self, table: str, query: str, limit: int, deadline: float) -> list[Entry]:
        """The ids that contain a text, or whose titles do, in any case.

        The id that the text is comes first, then the others, the most frequent in training first.

        Args:
          table: to search.
          query: the text; with "" all ids are found.
          limit: of the ids that are returned.
          deadline: of `time.monotonic`, in seconds.

        Returns:
          [{"id", "title"}], a title that is missing is None.

        Raises:
          TimeoutError: the deadline has passed.
        """
        ids, titles = self.tables[table].ids, self._titles.get(table)
        exact = int(self._rows(table, [query])[0])
        rows = [exact] if exact else []
        lower = query.lower()
        for begin in range(0, len(ids), _BLOCK):
            if time.monotonic() > deadline:
                raise TimeoutError
            block = self._order(table)[begin : begin + _BLOCK]
            texts = [ids.gather(block).cast(pl.String)]
            texts += [] if titles is None else [titles.gather(block)]
            matches = np.zeros(len(block), bool)
            for text in texts:
                contains = text.str.to_lowercase().str.contains(lower, literal=True)
                matches |= contains.fill_null(False).to_numpy()
            rows += [row for row in (block[matches][:limit] + 1).tolist() if row != exact]
            if len(rows) >= limit:
                break
        rows = rows[:limit]
        chosen = ids.gather([row - 1 for row in rows]).to_list()
        given = zip(chosen, self._titles_of(table, rows), strict=True)
        return [{"id": raw(one), "title": title} for one, title in given]

    def look_up(self, table: str, given: Sequence[str]) -> list[Entry]:
        """The titles of ids, as texts, and whether the model knows them.

        Returns:
          [{"id", "title", "known"}], in the order of `given`.
        """
        rows = self._rows(table, given).tolist()
        titles = self._titles_of(table, rows)
        return [
            {"id": one, "title": title, "known": row > 0}
            for one, title, row in zip(given, titles, rows, strict=True)
        ]

    def _rows(self, table: str, texts: Sequence[str]) -> npt.NDArray[np.uint32]:
        return self._transform.rows(table, pl.Series(list(texts), dtype=pl.String))

    def _order(self, table: str) -> npt.NDArray[np.int64]:
        """The indices of a table's ids, the most frequent first."""
        if table not in self._orders:
            self._orders[table] = np.argsort(-self.tables[table].counts, kind="stable")
        return self._orders[table]

    def _titles_of(self, table: str, rows: Sequence[int]) -> list[str | None]:
        """The titles of rows; None of row 0 and of a row without one."""
        titles = self._titles.get(table)
        if titles is None:
            return [None] * len(rows)
        places = pl.Series([row - 1 if row else None for row in rows], dtype=pl.Int64)
        return titles.gather(places).to_list()


def raw(value: Any) -> Any:
    """A raw value as JSON that JavaScript reads exactly: long whole numbers, dates, … as text."""
    if isinstance(value, dict):
        return {name: raw(v) for name, v in value.items()}
    if isinstance(value, list):
        return [raw(v) for v in value]
    if value is None or isinstance(value, str | bool | float):
        return value
    return value if isinstance(value, int) and abs(value) < _EXACT else str(value)
