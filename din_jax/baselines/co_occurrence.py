"""Item-item co-occurrence: whether those who have the history's goods also have the ad.

A user's basket is the set of known ids in the last training history of the user and in the user's
clicked training ads, the most recent `RECENT` of each. c_i is the number of baskets with i, and
c_ij that with i and j. The score of ad i is the mean of c_ij / √(c_i · c_j), the cosine, over the
most recent `RECENT` behaviours j of the sample's history; those that are i or unknown have 0. c_ij
and c_i do not count the basket of the sample's own user: i is in it if the sample is a click of
training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.baselines.columns import Column, Values, mean_by_owner
from din_jax.data.co_occurrence import baskets, counts_together, latest_histories
from din_jax.data.packing import Packer, ranges

RECENT = 50
MOST_PAIRS = 30_000_000  # see `din_jax.data.co_occurrence.baskets`


class CoOccurrence:
    """The co-occurrence of an ad with the behaviours of a sequence.

    Args:
      packer: the store, and how much of each history is used.
      sequence, behavior: a one-hot field of a sequence.
      values: the one-hot ad field that it is compared with.
      users: int64 [samples of the store] the samples' users, numbered from 0 on.
      fit: the training samples.
    """

    def __init__(
        self,
        packer: Packer,
        sequence: str,
        behavior: str,
        values: Values,
        users: npt.NDArray[Any],
        fit: range,
    ):
        self.packer, self.sequence, self.values, self.users = packer, sequence, values, users
        self.name = f"co-occurrence of {values.name} with {sequence}"
        self.ids = packer.store.column(f"events/{sequence}/{behavior}")
        entries = self._entries(np.arange(fit.start, fit.stop))
        user, item = baskets(entries, values.rows, MOST_PAIRS)
        self.baskets = user * values.rows + item
        counts = counts_together(user, item, values.rows).sorted_indices()
        row = np.repeat(np.arange(values.rows), np.diff(counts.indptr))
        self.pairs = row * values.rows + counts.indices
        self.pair_counts = np.append(counts.data, 0)  # the last: of a pair that is not found
        self.counts = np.bincount(item, minlength=values.rows)

    def _entries(self, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What belongs to all baskets, user · K + id."""
        store, rows, users = self.packer.store, self.values.rows, self.users[samples]
        events, owner = latest_histories(self.packer, self.sequence, users, samples, RECENT)
        visited = owner * rows + self.ids[events]

        clicked = samples[store.column("samples/label")[samples] == 1]
        clicked = clicked[np.argsort(self.users[clicked], kind="stable")]
        user = self.users[clicked]
        recent = np.searchsorted(user, user, side="right") - np.arange(len(user)) <= RECENT
        ads = user[recent] * rows + self.values.ids[clicked[recent]]

        return np.concatenate([visited, ads])

    def columns(self, samples: npt.NDArray[Any], *, left_out: bool = False) -> Iterator[Column]:
        """See `Fitted`; a sample's own click is always left out."""
        rows, count = self.values.rows, len(samples)
        order = np.argsort(self.values.ids[samples], kind="stable")  # faster bisections
        samples = samples[order]
        user, ad = self.users[samples], self.values.ids[samples].astype(np.int64)
        start, end = self.packer.history(self.sequence, samples)
        events, owner = ranges(np.maximum(start, end - RECENT), end)
        item = self.ids[events].astype(np.int64)
        together = self.pair_counts[_find(self.pairs, ad[owner] * rows + item)]
        own_ad = _find(self.baskets, user * rows + ad) >= 0
        both = np.flatnonzero(own_ad[owner])
        together[both] -= _find(self.baskets, user[owner[both]] * rows + item[both]) >= 0
        together[item == ad[owner]] = 0
        product = np.maximum(self.counts[ad] - own_ad, 1)[owner] * np.maximum(self.counts[item], 1)
        cosine = together / np.sqrt(product)
        score = np.empty(count)
        score[order] = mean_by_owner(cosine, owner, count)
        yield Column(self.name, "share", score)


def _find(keys: npt.NDArray[Any], queries: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The position of each query in the ascending `keys`; −1 for one that is not there."""
    if not len(keys):
        return np.full(len(queries), -1)
    position = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    return np.where(keys[position] == queries, position, -1)
