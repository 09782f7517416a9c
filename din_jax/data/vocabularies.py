"""Maps raw ids to table rows: vocabularies fitted on the training data.

Row 0 of a table means "unknown". An id that occurs only in validation or test gets row 0 there, so
row 0 must occur in training too, or it is never trained. `fit` therefore makes a random few of the
ids unknown that training sees once: of all ids they are most like those that training lacks.

`fit_buckets` maps numbers to rows: rows 1, 2, … are the buckets between their quantiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from din_jax.data import id_lookup

UNKNOWN_SHARE = 0.01


class Fitted(NamedTuple):
    """A table's vocabulary: rows 1, 2, … are `ids`, in this order.

    Attributes:
      ids: the raw ids, sorted, of their own type: integers stay integers.
      counts: [K − 1] how often each occurs in training.
      left_out: how many ids that occur once in training were made unknown.
      rare: how many ids are unknown because they occur in training less than `min_count` times.
    """

    ids: pl.Series
    counts: np.ndarray
    left_out: int
    rare: int = 0

    def rows(self, ids: pl.Series) -> np.ndarray:
        """uint32 [len(ids)] the row of each raw id; 0 for an unknown one and for null.

        12.0 and the text "12" are the id 12.
        """
        return id_lookup.rows_in(self.ids, id_lookup.as_ids_of(ids, self.ids.dtype))


class Buckets(NamedTuple):
    """A table of numbers: row r is the interval from `ids[r − 1]` up to, but without, `ids[r]`.

    Attributes:
      ids: float64, ascending, the lower ends of the buckets; the first is −∞.
      counts: [K − 1] how many numbers of the training data fall in each bucket.
    """

    ids: pl.Series
    counts: np.ndarray

    def rows(self, numbers: pl.Series) -> np.ndarray:
        """[len(numbers)] the row of each number; 0 for null and NaN."""
        values = numbers.cast(pl.Float64).fill_null(np.nan).to_numpy()
        rows = np.searchsorted(self.ids.to_numpy(), values, side="right")
        return np.where(np.isnan(values), 0, rows).astype(np.uint32)


def fit(
    occurrences: pl.Series,
    rng: np.random.Generator,
    *,
    unknown_share: float = UNKNOWN_SHARE,
    min_count: int = 1,
    others: pl.Series | None = None,
) -> Fitted:
    """Fits a table's vocabulary.

    Args:
      occurrences: the raw ids of this table in the training data, one entry per occurrence. Nulls
        (a good without a shop) are ignored, and so become row 0.
      rng: chooses which of the ids that occur once are left out.
      unknown_share: the fraction of all occurrences that is made unknown in this way, in [0, 1];
        less if too few ids occur once. With 0, and no nulls, row 0 is never trained.
      others: further ids, which get a row, and a count of 0 if training lacks them.
      min_count: ids that occur less often are unknown. Above 1, these rare ids train row 0, and no
        others are left out.
    """
    ids, counts = id_lookup.counts(occurrences.rename("id"))
    if others is not None:
        everything = id_lookup.distinct(
            pl.concat([ids, others.rename("id").cast(ids.dtype)])
        ).sort()
        index = id_lookup.index_in(ids, everything)
        counts = np.where(index >= 0, counts[np.maximum(index, 0)], 0) if len(ids) else index * 0
        ids = everything
    # With `min_count` above 1 the rare ids train row 0 already.
    once = np.flatnonzero(counts == 1) if min_count == 1 else np.empty(0, np.int64)
    left_out = min(round(unknown_share * counts.sum()), len(once))
    known = counts >= (min_count if min_count > 1 else 0)  # `others` have a count of 0
    rare = int((~known).sum())
    known[rng.choice(once, size=left_out, replace=False)] = False
    return Fitted(ids.filter(pl.Series(known)), counts[known], left_out, rare)


def fit_buckets(numbers: pl.Series, buckets: int) -> Buckets:
    """Fits buckets that contain about equally many of the training data's numbers.

    Args:
      numbers: one entry per occurrence; nulls and NaNs are ignored, and become row 0.
      buckets: how many; the result has fewer where many numbers are equal.
    """
    values = numbers.cast(pl.Float64).fill_nan(None).drop_nulls().to_numpy()
    lower = np.array([-np.inf])
    if len(values):
        fractions = np.arange(1, buckets) / buckets
        quantiles = np.unique(np.quantile(values, fractions, method="inverted_cdf"))
        lower = np.concatenate([lower, quantiles[quantiles > values.min()]])
    rows = np.searchsorted(lower, values, side="right")
    counts = np.bincount(rows, minlength=len(lower) + 1)[1:]
    return Buckets(pl.Series("id", lower), counts)
