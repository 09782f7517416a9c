"""How often a field's values are clicked: smoothed click rates, and numbers of clicks.

The click rate of a value is (clicks + m · rate) / (impressions + m) over the training samples that
have the value. `rate` is that of all training samples, and m is `PRIOR_IMPRESSIONS`. A sample with
several values has their mean. Row 0 has the click rate of all unknown ids, but no clicks: it is no
popular id, it is many rare ones.

To fit a regression, a training sample is scored without its block, the `BLOCK` neighbouring
training samples of the store among which it is. Without itself alone its score would give its label
away: where each click has one drawn non-click, a user's click rate without the sample is above ½
exactly if the sample is no click. What is drawn for a click is its neighbour, so that a block
leaves both out. A block is short nevertheless: the samples of a user fall into several blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.baselines.columns import Column, Values, mean_by_owner

PRIOR_IMPRESSIONS = 10.0  # m: a value with as many impressions is half its own rate
BLOCK = 30  # a multiple of 2, 3 and 5: of a click with 1, 2 or 4 drawn non-clicks


class ClickRates:
    """The smoothed click rate of a field's values and, of an ad's field, their clicks.

    Args:
      values: the field.
      labels: [samples of the store] 0 or 1.
      fit: the training samples.
      popularity: whether to give the number of clicks, too.
    """

    def __init__(
        self, values: Values, labels: npt.NDArray[Any], fit: range, *, popularity: bool = False
    ):
        self.values, self.fit, self.popularity = values, fit, popularity
        ids, owner = values.read(np.arange(fit.start, fit.stop))
        label = labels[fit.start : fit.stop].astype(np.float64)
        self.rate, label = float(label.mean()), label[owner]
        self.impressions = np.bincount(ids, minlength=values.rows)
        self.clicks = np.bincount(ids, weights=label, minlength=values.rows)
        # The same of each pair of a value and a block that has it.
        self.pairs, pair = np.unique(self._pairs(ids, owner), return_inverse=True)
        self.pair_impressions = np.bincount(pair)
        self.pair_clicks = np.bincount(pair, weights=label)

    def _pairs(self, ids: npt.NDArray[Any], position: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Numbers the pairs of an id and the block of a position in the training samples."""
        return ids * (len(self.fit) // BLOCK + 1) + position // BLOCK

    def columns(self, samples: npt.NDArray[Any], *, left_out: bool = False) -> Iterator[Column]:
        """See `Fitted`. With `left_out` all samples are training samples."""
        ids, owner = self.values.read(samples)
        impressions, clicks = self.impressions[ids], self.clicks[ids]
        if left_out:
            position = samples[owner] - self.fit.start
            pair = np.searchsorted(self.pairs, self._pairs(ids, position))
            impressions -= self.pair_impressions[pair]
            clicks -= self.pair_clicks[pair]
        rate = (clicks + PRIOR_IMPRESSIONS * self.rate) / (impressions + PRIOR_IMPRESSIONS)
        rate = mean_by_owner(rate, owner, len(samples), empty=self.rate)
        yield Column(f"click rate of {self.values.name}", "rate", rate)
        if self.popularity:
            clicks = mean_by_owner(np.where(ids > 0, clicks, 0), owner, len(samples))
            yield Column(f"popularity of {self.values.name} by clicks", "count", clicks)
