"""The few padded lengths for which a scorer is compiled."""

from __future__ import annotations

from collections.abc import Mapping

from din_jax.data.buckets import Buckets

_GROWTH = 4  # of the padded lengths
_SHORTEST = 16  # padded length below which there is no further one


def ladder(most: int) -> list[int]:
    """Padded lengths up to `most`, ascending; each is about 4 times the one before."""
    lengths = [most]
    while lengths[0] > _SHORTEST:
        lengths.insert(0, max(_SHORTEST, -(-lengths[0] // _GROWTH)))
    return lengths


def levels(longest: Mapping[str, int]) -> Buckets:
    """Padded lengths of the axes, which become shorter together."""
    if not longest:
        return Buckets((), ((),))
    steps = len(ladder(max(longest.values())))
    sizes = [
        tuple(max(1, -(-length // _GROWTH**step)) for length in longest.values())
        for step in reversed(range(steps))
    ]
    return Buckets(tuple(longest), tuple(sizes))
