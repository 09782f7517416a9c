"""Display names of ids, for people: a store may keep the titles of a table beside its vocabulary.

No model reads them, and the store's fingerprint does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from din_jax.data import id_lookup
from din_jax.data.files import write_parquet
from din_jax.data.store import Store
from din_jax.errors import DinError

UNKNOWN = "unknown"  # the name of row 0


class Titles:
    """The display names of a table's ids.

    Attributes:
      ids: the raw ids of rows 1, 2, …
      titles: their titles, null where there is none; None if the table has none at all.
    """

    def __init__(self, ids: pl.Series, titles: pl.Series | None = None):
        self.ids, self.titles = ids, titles

    @staticmethod
    def of_store(store: Store, table: str) -> Titles:
        """Those of a table of a store; a table without titles has its ids as names.

        Raises:
          DinError: a file is damaged.
        """
        return Titles.read(store.path, table, store.vocabulary(table).ids[1:])

    @staticmethod
    def read(folder: Path, table: str, ids: pl.Series) -> Titles:
        """What `write_titles` has written to a folder, or none, of the ids of rows 1, 2, …

        Raises:
          DinError: the file is damaged, or has titles of other ids.
        """
        return Titles(ids, _read(folder / "titles" / f"{table}.parquet", len(ids)))

    def names(self, rows: Iterable[int] | npt.NDArray[Any]) -> list[str]:
        """What people call these rows of the table: the title, or else the id."""
        rows = np.asarray(list(rows), np.int64)
        ids = self.ids.cast(pl.String)
        names = ids if self.titles is None else pl.select(pl.coalesce(self.titles, ids)).to_series()
        known = rows > 0
        found = iter(names.gather(rows[known] - 1).to_list())
        return [next(found) if is_known else UNKNOWN for is_known in known.tolist()]

    def of_ids(self, ids: Iterable[Any]) -> list[str | None]:
        """The titles of raw ids; None of an unknown id and of one without a title."""
        values = pl.Series("id", list(ids), strict=False)
        if self.titles is None or not len(values):
            return [None] * len(values)
        rows = id_lookup.rows_in(self.ids, id_lookup.as_ids_of(values, self.ids.dtype))
        found = self.titles.gather(np.maximum(rows.astype(np.int64) - 1, 0)).to_list()
        return [title if row else None for title, row in zip(found, rows.tolist(), strict=True)]


def write_titles(folder: Path, table: str, titles: pl.Series) -> None:
    """Writes FOLDER/titles/TABLE.parquet: the titles of rows 1, 2, …, null for none."""
    (folder / "titles").mkdir(exist_ok=True)
    frame = pl.DataFrame({"title": titles.cast(pl.String)})
    write_parquet(frame.with_row_index("row", offset=1), folder / "titles" / f"{table}.parquet")


def titles_of(ids: pl.Series, keys: pl.Series, titles: pl.Series) -> pl.Series:
    """The title of each id, by a list of keys with their titles; null where it has none.

    Of a key that stands several times the last title counts that is not empty.
    """
    rows = id_lookup.rows_in(ids, id_lookup.as_ids_of(keys, ids.dtype)).astype(np.int64)
    titles = titles.cast(pl.String).str.strip_chars()
    kept = np.flatnonzero((rows > 0) & (titles.fill_null("") != "").to_numpy())
    last = np.full(len(ids), -1)
    last[rows[kept] - 1] = kept  # of equal indices NumPy keeps the last value
    return titles.gather(pl.Series(last).replace(-1, None))


def _read(path: Path, ids: int) -> pl.Series | None:
    if not path.exists():
        return None
    try:
        titles = pl.read_parquet(path)["title"]
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DinError(f"{path}: missing or damaged; prepare the store again") from error
    if len(titles) != ids:
        raise DinError(
            f"{path}: {len(titles):,} titles, but the vocabulary has {ids:,} ids; prepare the "
            "store again"
        )
    return titles
