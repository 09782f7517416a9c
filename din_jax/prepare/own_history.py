"""How often an ad is in its own history, by label: this shows a label that is in the input.

A user who returns to a good has it in the history of the later sample, with either label. But where
a history has the sample's own click as well (rows that stand twice, clocks that differ by a second,
behaviours of the future), nearly all positives are in their own histories, mostly as the last
behaviour, and hardly a negative is. A model then reads the label from its input: its metrics are
high, and it is worth nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from din_jax.data.occurrences import Occurrences

# From which difference between the labels on `OwnHistory.note` warns. Taste makes some: who likes a
# good returns to it. In Amazon's reviews, MovieLens and KuaiRand both differences are below 0.01,
# in the planted logs below 0.12. Where negatives are goods that the user never had, the difference
# is the share of returns: it may be large in a whole history (music), and is then worth a note, but
# is seldom from one behaviour to the next. A table that has each click twice gives 0.5 or more of
# both, and a clock that is behind gives 1.
NOTED_IN_HISTORY = 0.5
NOTED_LAST = 0.3
# Shares of fewer samples of a label differ by chance.
NOTED_SAMPLES = 20

_AT_ONCE = 1 << 16  # events, and samples, that are looked at together: they fit a cache


class OwnHistory(NamedTuple):
    """How many samples have their ad in their own history. Each is a pair: label 0, label 1.

    Attributes:
      samples: all samples of this label.
      found: those whose ad is in their history.
      last: those whose ad is the last behaviour of their history.
    """

    samples: tuple[int, int]
    found: tuple[int, int]
    last: tuple[int, int]

    def shares(self, counts: tuple[int, int]) -> tuple[float, float]:
        """The shares of `found` or `last` among the samples of each label; 0 without samples."""
        negative, positive = (c / max(n, 1) for c, n in zip(counts, self.samples, strict=True))
        return negative, positive

    def __str__(self) -> str:
        found, last = (
            f"label 1 {positive:.1%}, label 0 {negative:.1%}"
            for negative, positive in (self.shares(self.found), self.shares(self.last))
        )
        return f"{found}; last behaviour: {last}"

    def note(self, history: str = "its own history") -> str | None:
        """A warning, if the labels differ as no taste makes them differ; else None.

        Args:
          history: how the text calls the history.
        """
        if min(self.samples) < NOTED_SAMPLES:
            return None
        for counts, least, where in (
            (self.last, NOTED_LAST, f"the last behaviour of {history}"),
            (self.found, NOTED_IN_HISTORY, f"in {history}"),
        ):
            negative, positive = self.shares(counts)
            if abs(positive - negative) >= least:
                return (
                    f"the ad is {where} in {positive:.1%} of the samples of label 1 and "
                    f"{negative:.1%} of label 0: a model can read the label from the history. Look "
                    "for a sample's own click in its history: rows that stand twice, clocks that "
                    "differ, behaviours later than the sample. If all of it was known before the "
                    "sample, leave it as it is"
                )
        return None


def own_history(
    label: npt.NDArray[Any],
    ad: npt.NDArray[Any],
    start: npt.NDArray[Any],
    end: npt.NDArray[Any],
    events: npt.NDArray[Any],
) -> OwnHistory:
    """Counts how often an ad is in its own history. Histories are never built.

    Events are sorted by (id, position) a block at a time; two bisections then tell whether the ad
    occurs in its range. Beside its arguments it needs 8 bytes a sample, and some MB or 30 bytes for
    each event of the longest history.

    Args:
      label: [N] 0 or 1.
      ad: [N] the ads' ids, integers; 0 is unknown, and equal to nothing.
      start, end: [N] sample i's history is events[start[i]:end[i]], oldest first; ranges overlap.
      events: [P] the behaviours' ids; 0 is unknown.
    """
    counts = np.zeros((3, 2), np.int64)  # samples, found, last; of each label
    order = np.argsort(start, kind="stable")
    for samples in _blocks(start, end, order):
        first, after = start[samples].astype(np.int64), end[samples].astype(np.int64)
        ids, base = ad[samples].astype(np.int64), int(first[0])
        block = events[base : int(after.max())]
        found = (ids > 0) & (Occurrences(block).count(ids, first - base, after - base) > 0)
        last = found.copy()
        last[found] = block[after[found] - base - 1] == ids[found]
        positive = label[samples] == 1
        for row, of_row in enumerate((positive, positive[found], positive[last])):
            counts[row] += np.bincount(of_row, minlength=2)
    return OwnHistory(*((negative, positive) for negative, positive in counts.tolist()))


def _blocks(
    start: npt.NDArray[Any], end: npt.NDArray[Any], order: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the samples in blocks, by where their histories start."""
    longest = int((end - start).max(initial=0))
    i = 0
    while i < len(order):
        samples = order[i : i + _AT_ONCE]
        within = start[samples] < int(start[samples[0]]) + max(_AT_ONCE, longest)
        samples = samples[: int(within.sum())]
        yield samples
        i += len(samples)
