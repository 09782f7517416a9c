"""How often an ad's values occur in the sample's own history, and in all training histories.

Histories are overlapping ranges of the stored events, which are never built
(`din_jax.data.occurrences`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.baselines.columns import Column, Values, mean_by_owner
from din_jax.data.occurrences import Occurrences
from din_jax.data.packing import Packer
from din_jax.data.schema import BehaviorField


class InHistories:
    """How often an ad's values occur in one field of a behaviour sequence.

    - "count of … in …": in the sample's own history. With multi-hot fields it is the number of
      pairs of a value of the ad and an equal value of a behaviour.
    - "share of … in …": the count over the number of values in the history; 0 if that is empty.
    - "popularity of … in …": in the histories of all training samples, each behaviour once; the
      mean over the ad's values. What the training histories of the sample's own user have after the
      sample does not count: a click is often among them, and would give its label away.

    Row 0, "unknown", occurs nowhere: two unknown ids are hardly ever the same.

    Args:
      packer: the store, and how much of each history is used.
      sequence, behavior: the field of the sequence.
      values: the ad field that it is compared with.
      users: int64 [samples of the store] the samples' users, numbered from 0 on.
      fit: the training samples.
    """

    def __init__(
        self,
        packer: Packer,
        sequence: str,
        behavior: BehaviorField,
        values: Values,
        users: npt.NDArray[Any],
        fit: range,
    ):
        self.packer, self.sequence, self.values, self.users = packer, sequence, values, users
        other = "" if behavior.name == behavior.ad else f".{behavior.name}"
        self.name = f"{behavior.ad} in {sequence}{other}"
        column = f"events/{sequence}/{behavior.name}"
        ids = packer.store.column(column)
        self.offsets = packer.store.column(f"{column}.offsets") if behavior.multi_hot else None
        samples = np.arange(fit.start, fit.stop)
        start, end = self._histories(samples)
        trained = np.flatnonzero(covered(start, end, len(ids)))
        self.all, self.trained = Occurrences(ids), Occurrences(ids, trained)
        self.counts = np.bincount(ids[trained], minlength=values.rows)
        self.last_end = np.zeros(users.max() + 1, np.int64)  # of each user's training histories
        np.maximum.at(self.last_end, users[samples], end)

    def _histories(self, samples: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The samples' histories as ranges of the field's values, int64 [N]."""
        start, end = self.packer.history(self.sequence, samples)
        if self.offsets is None:
            return start, end
        return self.offsets[start].astype(np.int64), self.offsets[end].astype(np.int64)

    def columns(self, samples: npt.NDArray[Any], *, left_out: bool = False) -> Iterator[Column]:
        """See `Fitted`; a sample's own click is always left out."""
        start, end = self._histories(samples)
        ids, owner = self.values.read(samples)
        known = ids > 0
        found = self.all.count(ids, start[owner], end[owner]) * known
        count = np.bincount(owner, found, minlength=len(samples)).astype(np.float64)
        yield Column(f"count of {self.name}", "count", count)
        yield Column(f"share of {self.name}", "share", count / np.maximum(end - start, 1))
        last_end = np.maximum(self.last_end[self.users[samples]], end)
        later = self.trained.count(ids, end[owner], last_end[owner])
        popularity = mean_by_owner((self.counts[ids] - later) * known, owner, len(samples))
        yield Column(f"popularity of {self.name}", "count", popularity)


def covered(start: npt.NDArray[Any], end: npt.NDArray[Any], length: int) -> npt.NDArray[np.bool_]:
    """bool [length] whether each position lies in one of the ranges start[i] … end[i] − 1."""
    edges = np.bincount(start, minlength=length + 1) - np.bincount(end, minlength=length + 1)
    inside: npt.NDArray[np.bool_] = np.cumsum(edges)[:length] > 0
    return inside
