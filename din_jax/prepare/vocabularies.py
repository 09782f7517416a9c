"""Raw ids to rows: vocabularies fitted on what training sees.

Row 0 of a table is "unknown". An id that only validation or test holds has row 0 there, so
training must meet row 0 too, or a model has never learnt what it means. `fit` therefore leaves out
a seeded choice of the ids that training sees once: they are the likeliest to be new tomorrow.
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
    """

    ids: pl.Series
    counts: np.ndarray
    left_out: int

    def rows(self, ids: pl.Series) -> np.ndarray:
        """[len(ids)] the row of each raw id; 0 for an unknown one and for null."""
        row = pl.Series("row", np.arange(1, len(self.ids) + 1, dtype=np.uint32))
        table = pl.DataFrame({"id": self.ids, "row": row})
        asked = pl.DataFrame({"id": ids.cast(self.ids.dtype)})
        found = asked.join(table, on="id", how="left", maintain_order="left")
        return found["row"].fill_null(0).to_numpy()


def fit(
    occurrences: pl.Series, rng: np.random.Generator, *, unknown_share: float = UNKNOWN_SHARE
) -> Fitted:
    """Fits a table's vocabulary.

    Args:
      occurrences: the raw ids that training holds in this table, one entry an occurrence; nulls
        (a good without a shop) are passed over, and so become row 0.
      rng: draws which of the ids seen once are left out.
      unknown_share: how many of the occurrences become unknown by this, as a share of all, in
        [0, 1]; fewer if there are not as many ids seen once. With 0, and no nulls, row 0 is never
        trained.
    """
    seen = occurrences.rename("id").drop_nulls().value_counts(name="count").sort("id")
    ids, counts = seen["id"], seen["count"].to_numpy().astype(np.int64)
    once = np.flatnonzero(counts == 1)
    wanted = min(round(unknown_share * counts.sum()), len(once))
    kept = np.ones(len(ids), bool)
    kept[rng.choice(once, size=wanted, replace=False)] = False
    return Fitted(ids.filter(pl.Series(kept)), counts[kept], wanted)
