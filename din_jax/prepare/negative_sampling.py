"""Draws negatives for a log without impressions: items that the user has not taken.

Each positive (a user took an item at a time) gets negatives from the catalogue by a law of
`negative_laws`. If its category has nothing that is allowed, its negatives are uniform instead, and
`Negatives.outside_category` counts it.

Each negative has the law's distribution over the allowed items, and is drawn independently of the
others: a positive may get the same negative twice. Not allowed are the positive's own item and what
the user took at or before the positive's time (`exclude="before"`), or at any time
(`exclude="ever"`, as in the paper's Amazon data). With "before" a negative may be an item that the
user takes later, and the negatives of training depend on no later row. With "ever" they do: that a
user never has some item as a negative tells that it will be taken.

A negative is a function of the seed and of its positive's user, item and time, not of the other
positives: neither their order nor the blocks in which they are computed change it. The first
negatives of a positive do not depend on how many it gets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from din_jax.errors import DinError
from din_jax.prepare.negative_laws import Catalogue, Law, ranges

EXCLUDE = ("before", "ever")
_BLOCK = 1 << 16  # negatives and interactions that are in work at once
# Proposals for a negative. Then its exact distribution is computed, which costs one test for each
# item: even of users who have taken half of the catalogue, less than one negative in a billion.
_PROPOSALS = 32
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Interactions(NamedTuple):
    """What users have taken, grouped by user, in any order within a user.

    User u has the rows offsets[u] to offsets[u + 1] of `item` and `time`. `time` may be None with
    `exclude="ever"`.
    """

    offsets: np.ndarray
    item: np.ndarray
    time: np.ndarray | None


class Positives(NamedTuple):
    """[N] the positives: `user` and `item` are numbers from 0 on, `time` has any whole unit.

    They are sampled fastest in order of user. Positives that are equal in all three get equal
    negatives.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray


class Negatives(NamedTuple):
    """Sampled negatives.

    Attributes:
      item: int [N, per_positive]; int32 if the catalogue allows.
      outside_category: how many positives got uniform negatives, since the user had taken every
        item of their category.
    """

    item: np.ndarray
    outside_category: int


def sample(
    catalogue: Catalogue,
    interactions: Interactions,
    positives: Positives,
    per_positive: int,
    *,
    exclude: str = "before",
    rng: np.random.Generator,
) -> Negatives:
    """Draws negatives of positives.

    Memory, beyond arguments and result: a few blocks of some 100,000 numbers, and the items of one
    group where their distribution is computed. Positives that are not in order of user are sorted
    first.

    Args:
      catalogue: the items, with the law's weights.
      interactions: what the users have taken; the positives may be among them.
      positives: [N].
      per_positive: how many negatives each gets.
      exclude: "before" or "ever".
      rng: the seed: one number is drawn from it.

    Raises:
      DinError: there is nothing left that some users have not taken; or `per_positive` or `exclude`
        is invalid.
    """
    if per_positive < 1:
        raise DinError(f"per_positive = {per_positive}; expected a whole number from 1 on")
    if exclude not in EXCLUDE:
        raise DinError(f"exclude = {exclude!r}; expected one of {', '.join(EXCLUDE)}")
    if exclude == "ever":
        interactions = interactions._replace(time=None)
    elif interactions.time is None:
        raise ValueError('exclude="before" needs the times of the interactions')
    for array in (*interactions, *positives):
        if array is not None and array.dtype.kind not in "iu":
            raise ValueError(f"expected whole numbers, not {array.dtype}")
    for item in (interactions.item, positives.item):
        if len(item) and not 0 <= item.min() <= item.max() < catalogue.items:
            raise ValueError(f"expected items from 0 to {catalogue.items - 1}")
    seed = rng.integers(1 << 64, dtype=np.uint64, size=1)
    dtype = np.int32 if catalogue.items <= np.iinfo(np.int32).max else np.int64
    negative = np.empty((len(positives.user), per_positive), dtype)
    everything = Catalogue(Law(), catalogue.items)
    outside_category, users_without = 0, [np.empty(0, np.int64)]
    for rows in _blocks(positives.user, per_positive, interactions.offsets):
        block = _Block(
            Positives(*(array[rows].astype(np.int64) for array in positives)),
            interactions,
            catalogue.items,
            per_positive,
            seed,
        )
        left = block.fill(catalogue, np.arange(len(block.negative)))
        if catalogue.law.in_category and len(left):
            outside_category += len(left) // per_positive
            left = block.fill(everything, left)
        users_without.append(positives.user[rows][left // per_positive])
        negative[rows] = block.negative.reshape(-1, per_positive)
    if users := len(np.unique(np.concatenate(users_without))):
        ever = exclude == "ever"
        others = [
            'exclude = "before"' * ever,
            'by = "uniform"' * (catalogue.law.exponent is not None),
            "leave these users out",
        ]
        raise DinError(
            f"no negatives: {users:,} of the users have taken every item that can be drawn"
            f"{'' if ever else ' by the time of one of their own positives'}; expected at least "
            f"one item that they have not taken: {', or '.join(filter(None, others))}"
        )
    return Negatives(negative, outside_category)


class _Block:
    """Positives in order of user, what their users have taken, and their negatives.

    Slot i is a negative of positive i // per_positive. `negative`: int64 [slots].
    """

    def __init__(
        self,
        positives: Positives,
        interactions: Interactions,
        items: int,
        per_positive: int,
        seed: np.ndarray,
    ):
        self._item, self._time, self._per_positive = positives.item, positives.time, per_positive
        self.negative = np.empty(len(positives.user) * per_positive, np.int64)
        key = seed
        for array in positives:
            key = _mix(key + _GOLDEN * array.view(np.uint64))
        self._key = key
        # A user and an item as one number: _pair[positive] + item.
        is_first = _starts_a_run(positives.user)
        self._pair = (np.cumsum(is_first) - 1) * items
        users = positives.user[is_first]
        start, stop = interactions.offsets[users], interactions.offsets[users + 1]
        owner, rows = ranges(start.astype(np.int64), (stop - start).astype(np.int64))
        pair = owner * items + interactions.item[rows].astype(np.int64)
        self._taken_at: np.ndarray | None = None
        if interactions.time is None:
            pair.sort()
        else:
            order = np.argsort(pair)
            pair = pair[order]
            first = np.flatnonzero(_starts_a_run(pair))
            pair = pair[first]
            time = np.minimum.reduceat(interactions.time[rows[order]].astype(np.int64), first)
            self._taken_at = np.append(time, 0)
        self._taken = np.append(pair, np.iinfo(np.int64).max)

    def fill(self, catalogue: Catalogue, slots: np.ndarray) -> np.ndarray:
        """Draws the negatives of some slots, in ascending order.

        Returns:
          The slots, in ascending order, whose positives have no item to draw.
        """
        group = catalogue.group(self._item)
        proposals = np.minimum(catalogue.size(group), _PROPOSALS)
        refused_often = []
        for i in range(_PROPOSALS):
            positive = slots // self._per_positive
            uniform = self._uniform(positive, slots, i)
            item = catalogue.propose(group[positive], uniform)
            self.negative[slots] = item
            refused = ~self._allowed(positive, item)
            slots, positive = slots[refused], positive[refused]
            is_last = proposals[positive] <= i + 1
            refused_often.append(slots[is_last])
            slots = slots[~is_last]
            if not len(slots):
                break
        slots = np.sort(np.concatenate(refused_often))
        return self._fill_exactly(catalogue, group, slots)

    def _fill_exactly(
        self, catalogue: Catalogue, group: np.ndarray, slots: np.ndarray
    ) -> np.ndarray:
        """As `fill`, from the list of the allowed items of each positive."""
        of_slot = slots // self._per_positive
        positives = np.unique(of_slot)
        left = [slots[:0]]
        part_of = np.cumsum(catalogue.size(group[positives])) // _BLOCK
        for part in np.split(positives, np.flatnonzero(np.diff(part_of)) + 1):
            if not len(part):
                continue
            owner, item, weight = catalogue.members(group[part])
            allowed = self._allowed(part[owner], item) & (weight > 0)
            owner, item, weight = owner[allowed], item[allowed], weight[allowed]
            greatest = np.zeros(len(part))
            np.maximum.at(greatest, owner, weight)
            stop = np.cumsum(np.bincount(owner, minlength=len(part)))
            start = np.append(0, stop[:-1])
            cumulative = np.append(0.0, np.cumsum(weight / greatest[owner]))
            begin, end = np.searchsorted(of_slot, [part[0], part[-1] + 1])
            index = np.searchsorted(part, of_slot[begin:end])
            none = start[index] == stop[index]
            left.append(slots[begin:end][none])
            index, mine = index[~none], slots[begin:end][~none]
            low, high = cumulative[start[index]], cumulative[stop[index]]
            uniform = self._uniform(part[index], mine, _PROPOSALS)
            place = np.searchsorted(cumulative, low + uniform * (high - low), "right") - 1
            self.negative[mine] = item[np.clip(place, start[index], stop[index] - 1)]
        return np.concatenate(left)

    def _allowed(self, positive: np.ndarray, item: np.ndarray) -> np.ndarray:
        pair = self._pair[positive] + item
        place = np.searchsorted(self._taken, pair)
        taken = self._taken[place] == pair
        if self._taken_at is not None:
            taken &= self._taken_at[place] <= self._time[positive]
        allowed: np.ndarray = ~taken & (item != self._item[positive])
        return allowed

    def _uniform(self, positive: np.ndarray, slots: np.ndarray, number: int) -> np.ndarray:
        """Numbers in [0, 1), functions of the positive, of the slot within it, and of a number."""
        counter = slots - positive * self._per_positive
        counter += number << 32
        bits = _mix(self._key[positive] + _GOLDEN * counter.view(np.uint64))
        return (bits >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    """Mixes uint64 numbers, as SplitMix64 does (Steele et al., OOPSLA 2014, figure 16)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _blocks(
    user: np.ndarray, per_positive: int, offsets: np.ndarray
) -> Iterator[np.ndarray | slice]:
    """Yields rows of positives in order of user, of about _BLOCK negatives and interactions."""
    in_order = bool((user[1:] >= user[:-1]).all())
    order = None if in_order else np.argsort(user, kind="stable")
    for begin in range(0, len(user), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        part = user[rows] if order is None else user[order[rows]]
        interactions = offsets[part.astype(np.int64) + 1] - offsets[part]
        work = per_positive + np.where(_starts_a_run(part), interactions, 0).astype(np.int64)
        ends = np.flatnonzero(np.diff(np.cumsum(work) // _BLOCK)) + 1
        for first, last in itertools.pairwise([0, *ends.tolist(), len(part)]):
            rows = slice(begin + first, begin + last)
            yield rows if order is None else order[rows]


def _starts_a_run(sorted_values: np.ndarray) -> np.ndarray:
    """Where a sorted array has a value for the first time."""
    return np.append(True, sorted_values[1:] != sorted_values[:-1])[: len(sorted_values)]
