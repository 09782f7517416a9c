"""Pooling over packed segments: sum, mean, the weighted sum of Eq. 3, and normalized weights.

One segment needs no scatter and no gather: it is summed whole, and its row is broadcast. So are the
candidates of one user scored (`din_jax.export.scoring`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from din_jax.data.packing import Packed
from din_jax.nn.blocks import InBlocks


def rows_of_samples(per_sample: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Broadcasts rows [B, F] or numbers [B] of samples to their segments' entries, [T, …].

    Padding gets the row of some sample; mask the result.
    """
    if per_sample.shape[0] == 1:  # `len` is no symbol, which `jax.export` has here
        return jnp.broadcast_to(per_sample, (segment_ids.shape[0], *per_sample.shape[1:]))
    return jnp.take(per_sample, segment_ids, axis=0, mode="clip", indices_are_sorted=True)


def segment_pool(values: jax.Array, segment_ids: jax.Array, segments: int) -> jax.Array:
    """Sum pooling (section 4.2): the sums [S, E] of each segment's values [N, E].

    The sum of an empty segment is zero. Padding (segment id S) is ignored.
    """
    if segments == 1:
        mask = (segment_ids == 0).reshape(-1, *[1] * (values.ndim - 1))
        return jnp.sum(jnp.where(mask, values, 0), axis=0, keepdims=True)
    return jax.ops.segment_sum(values, segment_ids, segments, indices_are_sorted=True)


def weighted_pool(
    weights: jax.Array,
    values: jax.Array,
    segment_ids: jax.Array,
    segments: int,
    *,
    block: int = 0,
) -> jax.Array:
    """Eq. 3: the sums [S, E] of each segment's values [N, E] times their weights [N].

    If `block` > 0, the products are computed in blocks of this many rows, so that [N, E] is never
    stored.
    """
    if segments == 1:  # a product of matrices: of many candidates of one user it is one
        real = segment_ids == 0
        return (jnp.where(real, weights, 0) @ jnp.where(real[:, None], values, 0))[None]
    if not 0 < block < values.shape[0]:
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
    """Mean pooling (section 4.2): the means [S, E] of each segment's values [N, E].

    The mean of an empty segment is zero. Padding (segment id S) is ignored.
    """
    counts = segment_pool(jnp.ones((values.shape[0], 1), values.dtype), segment_ids, segments)
    return segment_pool(values, segment_ids, segments) / jnp.maximum(counts, 1)


def pool_packed(values: jax.Array, ids: Packed, segments: int, *, mean: bool) -> jax.Array:
    """Pools the vectors of a multi-hot field's ids: the sums or means [S, E] of each segment's.

    With weights w the sum is Σ w e, and the mean Σ w e / Σ |w|; zero where Σ |w| is.

    Args:
      values: e, [N, E], the vectors of `ids.values`.
      ids: the field.
      segments: S.
      mean: whether to divide.
    """
    if ids.weights is None:
        return (segment_mean if mean else segment_pool)(values, ids.segment_ids, segments)
    weights = jnp.where(ids.segment_ids < segments, ids.weights, 0)
    total = weighted_pool(weights, values, ids.segment_ids, segments)
    if not mean:
        return total
    divisor = segment_pool(jnp.abs(weights)[:, None], ids.segment_ids, segments)
    return total / jnp.where(divisor > 0, divisor, 1)


def segment_softmax(
    x: jax.Array, segment_ids: jax.Array, segments: int, mask: jax.Array
) -> jax.Array:
    """Softmax of x [N] within each segment; 0 for padding."""
    masked = jnp.where(mask, x, -jnp.inf)
    if segments == 1:
        maximum = jnp.max(masked, keepdims=True, initial=-jnp.inf)
    else:
        maximum = jax.ops.segment_max(masked, segment_ids, segments, indices_are_sorted=True)
    maximum = jax.lax.stop_gradient(jnp.where(jnp.isfinite(maximum), maximum, 0))
    # Masked before exp as well: an infinite result there would make the gradient NaN.
    shifted = jnp.where(mask, x - rows_of_samples(maximum, segment_ids), 0)
    exponentials = jnp.where(mask, jnp.exp(shifted), 0)
    total = segment_pool(exponentials, segment_ids, segments)
    return exponentials / rows_of_samples(jnp.where(total > 0, total, 1), segment_ids)


def normalize_weights(
    weights: jax.Array, segment_ids: jax.Array, segments: int, mask: jax.Array, how: str
) -> jax.Array:
    """Normalizes the activation unit's outputs w [T] over each history of H behaviours.

    Eq. 3 has no normalization, so that an interest grows with the history. Padding is 0.

    Args:
      weights: w; what padding holds is ignored.
      segment_ids: int32[T], ascending: the sample of each behaviour; S for padding.
      segments: S.
      mask: bool[T], False for padding.
      how: "none": w. "mean": w / H. "sqrt": w / √H. "softmax": exp(w) / Σ exp(w). "sigmoid":
        σ(w), which is between 0 and 1 but not divided by anything.

    Raises:
      ValueError: `how` is none of these.
    """
    if how == "softmax":
        return segment_softmax(weights, segment_ids, segments, mask)
    if how == "sigmoid":
        return jnp.where(mask, jax.nn.sigmoid(weights), 0)
    if how not in ("none", "mean", "sqrt"):
        raise ValueError(f"normalize_weights: how={how!r}; see its docstring")
    weights = jnp.where(mask, weights, 0)
    if how == "none":
        return weights
    length = segment_pool(jnp.where(mask, 1.0, 0.0), segment_ids, segments)
    length = jnp.maximum(length if how == "mean" else jnp.sqrt(length), 1)
    return weights / rows_of_samples(length, segment_ids)
