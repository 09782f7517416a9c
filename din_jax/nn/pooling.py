"""Pooling of packed segments: sum, mean, the weighted sum of Eq. 3, and softmax."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from din_jax.nn.blocks import InBlocks


def rows_of_samples(per_sample: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """[T, F] of [B, F]: each entry's sample's row; padding gets some row, which the mask undoes."""
    return jnp.take(per_sample, segment_ids, axis=0, mode="clip", indices_are_sorted=True)


def segment_pool(values: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
    """Sum pooling (section 4.2): [S, E], the sums of values [N, E] of each segment.

    An empty segment gives zero. Padding (segment id S) is left out.
    """
    return jax.ops.segment_sum(values, segment_ids, segments, indices_are_sorted=True)


def weighted_pool(
    weights: jax.Array,
    values: jax.Array,
    segment_ids: jax.Array,
    segments: int,
    *,
    block: int = 0,
) -> jax.Array:
    """Eq. 3: [S, E], each segment's sum of values [N, E] times their weights [N].

    With `block`, so many values at once, the products [N, E] are never there as a whole.
    """
    if not 0 < block < len(values):
        return segment_pool(weights[:, None] * values, segment_ids, segments)
    rows = InBlocks.of(
        dict,
        block,
        segment_ids < segments,
        weights=(weights, 0),
        values=(values, 0),
        segment_ids=(segment_ids, segments),
    )
    return rows.total(lambda block: weighted_pool(**block, segments=segments))


def segment_mean(values: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
    """Average pooling (section 4.2): [S, E], the means of values [N, E] of each segment.

    An empty segment gives zero. Padding (segment id S) is left out.
    """
    counts = segment_pool(jnp.ones((len(values), 1), values.dtype), segment_ids, segments)
    return segment_pool(values, segment_ids, segments) / jnp.maximum(counts, 1)


def segment_softmax(
    x: jax.Array, segment_ids: jax.Array, segments: int, mask: jax.Array
) -> jax.Array:
    """Softmax of x [N] within each segment; 0 for padding. Only `released_code` uses it."""
    top = jax.ops.segment_max(
        jnp.where(mask, x, -jnp.inf), segment_ids, segments, indices_are_sorted=True
    )
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    # Masked before exp too: an infinite value there would make the gradient NaN.
    below_top = jnp.where(mask, x - rows_of_samples(top, segment_ids), 0)
    raised = jnp.where(mask, jnp.exp(below_top), 0)
    total = segment_pool(raised, segment_ids, segments)
    return raised / rows_of_samples(jnp.where(total > 0, total, 1), segment_ids)
