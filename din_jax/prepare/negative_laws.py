"""The laws by which negatives are drawn from a catalogue of items.

- "uniform": every item is equally likely;
- "popularity^X": the probability of an item is proportional to its count in training to the power
  X; "popularity" is "popularity^1". Items of count 0 are never drawn;
- "in_category": every item of the positive's category is equally likely.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from din_jax.errors import DinError

EXPECTED_LAW = (
    '"uniform", "popularity", "popularity^X" (X is a number, 0.75 for instance) or "in_category"'
)


class Law(NamedTuple):
    """A law: weights count ** exponent (None: equal weights), in the category or in all items."""

    exponent: float | None = None
    in_category: bool = False


def read_law(by: object) -> Law:
    """The law that a text names.

    Raises:
      DinError: there is no such law.
    """
    if by in ("uniform", "in_category"):
        return Law(in_category=by == "in_category")
    if isinstance(by, str):
        name, power, exponent = by.partition("^")
        try:
            number = float(exponent) if power else 1.0
        except ValueError:
            number = math.nan
        if name == "popularity" and math.isfinite(number):
            return Law(exponent=number)
    raise DinError(f"by = {by!r}; expected {EXPECTED_LAW}")


class Catalogue:
    """The items that negatives are drawn from, with the weights of a law.

    Args:
      law: of `read_law`.
      items: how many there are; item numbers are smaller.
      count: [items] occurrences in training; for a law with an exponent.
      category: [items] numbers from 0 on; for a law in the category.

    Raises:
      DinError: no item has a weight.
    """

    def __init__(
        self,
        law: Law,
        items: int,
        *,
        count: np.ndarray | None = None,
        category: np.ndarray | None = None,
    ):
        for needed, array in ((law.exponent is not None, count), (law.in_category, category)):
            if needed and (array is None or len(array) != items):
                raise ValueError(f"{law} needs an array of {items} items")
        self.law, self.items = law, items
        self._weight: np.ndarray | None = None
        # A group is a category, or everything: the items _order[_first[g]:_first[g + 1]].
        self._category = category if law.in_category else None
        self._order: np.ndarray | None = None
        self._first = np.array([0, items])
        if self._category is not None:
            self._order = np.argsort(self._category, kind="stable")
            self._first = np.concatenate([[0], np.cumsum(np.bincount(self._category))])
        elif law.exponent is not None and count is not None:
            self._weight = np.zeros(items)
            seen = count > 0
            log_weight = law.exponent * np.log(count[seen])
            self._weight[seen] = np.exp(log_weight - log_weight.max(initial=-np.inf))
        if items == 0 or (self._weight is not None and not self._weight.any()):
            raise DinError(
                "there is no item to draw negatives from: expected a catalogue with items"
                + (" that occur in training" if law.exponent is not None else "")
            )
        if self._weight is not None:
            self._keep, self._alias = _alias_table(self._weight)

    def group(self, item: np.ndarray) -> np.ndarray:
        """The group of each item."""
        return np.zeros(len(item), np.int64) if self._category is None else self._category[item]

    def size(self, group: np.ndarray) -> np.ndarray:
        """How many items each group has."""
        return self._first[group + 1] - self._first[group]

    def propose(self, group: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One item of each group by the law, from numbers in [0, 1)."""
        if self._weight is not None:
            place = uniform * self.items
            cell = np.minimum(place.astype(np.int64), self.items - 1)
            return np.where(place - cell < self._keep[cell], cell, self._alias[cell])
        size = self.size(group)
        place = self._first[group] + np.minimum((uniform * size).astype(np.int64), size - 1)
        return place if self._order is None else self._order[place]

    def members(self, group: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All items of each group, end to end: (which of the groups, item, weight)."""
        size = self.size(group)
        owner, place = ranges(self._first[group], size)
        item = place if self._order is None else self._order[place]
        return owner, item, np.ones(len(item)) if self._weight is None else self._weight[item]


def ranges(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranges end to end: (which of the ranges, the numbers from its start on)."""
    owner = np.repeat(np.arange(len(start)), length)
    shift = start - (np.cumsum(length) - length)
    return owner, np.arange(len(owner)) + shift[owner]


def _alias_table(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(keep, alias), each [items]: items by weight, drawn in constant time.

    A cell, drawn uniformly, gives its own item with probability `keep`, else `alias` (Walker's
    alias method). Cells below the mean are filled up in order from the items above it: an item
    that has given its excess away is itself filled up from the next.
    """
    mean = weight / weight.mean()
    is_below = mean < 1
    is_below[np.argmax(mean)] = False
    below, above = np.flatnonzero(is_below), np.flatnonzero(~is_below)
    lack = np.cumsum(1 - mean[below])
    excess = np.cumsum(mean[above] - 1)
    keep, alias = np.minimum(mean, 1), np.arange(len(weight))
    giver = np.searchsorted(excess, lack - (1 - mean[below]), "right")
    alias[below] = above[np.minimum(giver, len(above) - 1)]
    last_taker = np.searchsorted(lack, excess)  # the cell that exhausts each giver
    exhausted = last_taker < len(below)
    exhausted[-1] = False
    given = lack[last_taker[exhausted]] - excess[exhausted]
    keep[above[exhausted]] = 1 - given
    alias[above[:-1]] = above[1:]
    return keep, alias
