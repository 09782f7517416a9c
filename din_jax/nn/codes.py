"""Further inputs of the activation unit, from ids alone: recency, and whether ids match the ad's.

None of them is in the paper. A product of embeddings tells that a behaviour resembles the ad only
after both embeddings are learned; a match tells it from the first step on, for every id.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from din_jax.data.packing import Array, Packed
from din_jax.nn.pooling import rows_of_samples, segment_pool

POSITION_BUCKETS = 16  # the last has behaviours at 2¹⁵ − 1 places from the end and beyond


class Code(NamedTuple):
    """A further input of each behaviour: a number from 0 to `size` − 1, as a one-hot vector.

    Attributes:
      ids: int32[T]; 0 for padding.
      size: how many numbers there are. With 1, `ids` are themselves the input, and may be floats.
    """

    ids: jax.Array
    size: int

    def encoded(self) -> jax.Array:
        """The vectors, float32 [T, size]."""
        if self.size == 1:
            return self.ids[:, None].astype(jnp.float32)
        return jax.nn.one_hot(self.ids, self.size)


def position_code(segment_ids: jax.Array, segments: int) -> Code:
    """The log bucket of each behaviour's place p from the end of its history: ⌊log₂(1 + p)⌋.

    The most recent behaviour has p = 0.

    Args:
      segment_ids: int32[T], ascending: the sample of each behaviour; S for padding.
      segments: S.
    """
    ends = jnp.cumsum(lengths(segment_ids, segments))
    place = rows_of_samples(ends, segment_ids) - 1 - jnp.arange(segment_ids.shape[0])
    place = jnp.where(segment_ids < segments, place, 0).astype(jnp.int32)
    bucket = 31 - jax.lax.clz(1 + place)  # exact, unlike a logarithm
    return Code(jnp.minimum(bucket, POSITION_BUCKETS - 1), POSITION_BUCKETS)


def lengths(segment_ids: jax.Array, segments: int) -> jax.Array:
    """int32[S]: how many entries each segment has. Padding (segment id S) is ignored."""
    return segment_pool(jnp.ones(segment_ids.shape[0], jnp.int32), segment_ids, segments)


def matches(
    behaviors: Array | Packed,
    ad: Array | Packed,
    segment_ids: jax.Array,
    samples: int,
    mask: jax.Array,
    ad_mask: jax.Array,
) -> jax.Array:
    """How many of each behaviour's ids the ad has too, int32[T]: 0 or 1 if it has one id.

    Unknown ids (0) match nothing.

    Args:
      behaviors: the behaviours' ids in one field, int32[T], or `Packed` over T segments.
      ad: the ads' ids in the field that they are compared with, int32[B], or `Packed` over B.
      segment_ids: int32[T], ascending: the sample of each behaviour; B for padding.
      samples: B.
      mask, ad_mask: bool, for each id of `behaviors` and `ad`; False: it matches nothing.
    """
    ids: Any = behaviors
    owners = segment_ids
    if isinstance(behaviors, Packed):
        ids = behaviors.values
        owners = rows_of_samples(segment_ids, behaviors.segment_ids)
    ids = jnp.where(mask, ids, 0)
    ad_ids = jnp.where(ad_mask, ad.values if isinstance(ad, Packed) else ad, 0)

    def equal(values: jax.Array) -> jax.Array:
        """Whether each behaviour's id is the value of its sample in `values` [B]."""
        return ((ids > 0) & (ids == rows_of_samples(values, owners))).astype(jnp.int32)

    if isinstance(ad, Packed):
        counts = lengths(ad.segment_ids, samples)
        begins = jnp.cumsum(counts) - counts

        def add(i: jax.Array, found: jax.Array) -> jax.Array:
            """Adds the matches with each ad's id number i; repeated ids match once."""
            ith = jnp.take(ad_ids, begins + i, mode="clip")
            return found | equal(jnp.where(i < counts, ith, 0))

        found = jax.lax.fori_loop(0, jnp.max(counts), add, jnp.zeros(ids.shape[0], jnp.int32))
    else:
        found = equal(ad_ids)
    if isinstance(behaviors, Packed):
        found = jax.ops.segment_sum(
            found, behaviors.segment_ids, segment_ids.shape[0], indices_are_sorted=True
        )
    return found
