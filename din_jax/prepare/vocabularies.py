"""Raw ids to rows: vocabularies fitted on what training sees.

Row 0 of a table is "unknown". An id that only validation or test holds has row 0 there, so
training must meet row 0 too, or a model has never learnt what it means. `fit` therefore leaves out
a seeded choice of the ids that training sees once: they are the likeliest to be new tomorrow.

Numbers become ids by `fit_buckets`: rows 1, 2, … stand for the buckets between their quantiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

UNKNOWN_SHARE = 0.01


class Fitted(NamedTuple):
    """A table's vocabulary: rows 1, 2, … stand for `ids`, in their order.

    Attributes:
      ids: the raw ids, sorted, of their own type: integers stay integers.
      counts: [K − 1] how often training holds each.
      left_out: how many ids that training holds once are made unknown.
      rare: how many ids are unknown because training holds them less than `min_count` times.
    """

    ids: pl.Series
    counts: np.ndarray
    left_out: int
    rare: int = 0

    def rows(self, ids: pl.Series) -> np.ndarray:
        """[len(ids)] the row of each raw id; 0 for an unknown one and for null."""
        row = pl.Series("row", np.arange(1, len(self.ids) + 1, dtype=np.uint32))
        table = pl.DataFrame({"id": self.ids, "row": row})
        asked = pl.DataFrame({"id": ids.cast(self.ids.dtype)})
        found = asked.join(table, on="id", how="left", maintain_order="left")
        return found["row"].fill_null(0).to_numpy()


class Buckets(NamedTuple):
    """A table of numbers: row r stands for those from `ids[r − 1]` up to below `ids[r]`.

    Attributes:
      ids: float64, ascending, the lower ends of the buckets; the first is −∞.
      counts: [K − 1] how many numbers of training fall in each.
    """

    ids: pl.Series
    counts: np.ndarray

    def rows(self, numbers: pl.Series) -> np.ndarray:
        """[len(numbers)] the row of each number; 0 for null and not-a-number."""
        values = numbers.cast(pl.Float64).fill_null(np.nan).to_numpy()
        rows = np.searchsorted(self.ids.to_numpy(), values, side="right")
        return np.where(np.isnan(values), 0, rows).astype(np.uint32)


def fit(
    occurrences: pl.Series,
    rng: np.random.Generator,
    *,
    unknown_share: float = UNKNOWN_SHARE,
    min_count: int = 1,
) -> Fitted:
    """Fits a table's vocabulary.

    Args:
      occurrences: the raw ids that training holds in this table, one entry an occurrence; nulls
        (a good without a shop) are passed over, and so become row 0.
      rng: draws which of the ids seen once are left out.
      unknown_share: how many of the occurrences become unknown by this, as a share of all, in
        [0, 1]; fewer if there are not as many ids seen once. With 0, and no nulls, row 0 is never
        trained.
      min_count: ids that training holds less often are unknown. Above 1, they train row 0, if
        there are any, and none is left out beside them.
    """
    seen = occurrences.rename("id").drop_nulls().value_counts(name="count").sort("id")
    ids, counts = seen["id"], seen["count"].to_numpy().astype(np.int64)
    # Those that `min_count` makes unknown train row 0.
    once = np.flatnonzero(counts == 1) if min_count == 1 else np.empty(0, np.int64)
    wanted = min(round(unknown_share * counts.sum()), len(once))
    kept = counts >= min_count
    rare = int((~kept).sum())
    kept[rng.choice(once, size=wanted, replace=False)] = False
    return Fitted(ids.filter(pl.Series(kept)), counts[kept], wanted, rare)


def fit_buckets(numbers: pl.Series, buckets: int) -> Buckets:
    """Fits buckets that hold about equally many of the numbers that training holds.

    Args:
      numbers: one entry an occurrence; nulls and not-a-numbers are passed over, and become row 0.
      buckets: how many; fewer come out where many numbers are equal.
    """
    values = numbers.cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
    lower = np.array([-np.inf])
    if len(values):
        inner = np.arange(1, buckets) / buckets
        ends = np.unique(np.quantile(values, inner, method="inverted_cdf"))
        lower = np.concatenate([lower, ends[ends > values.min()]])
    rows = np.searchsorted(lower, values, side="right")
    counts = np.bincount(rows, minlength=len(lower) + 1)[1:]
    return Buckets(pl.Series("id", lower), counts)
