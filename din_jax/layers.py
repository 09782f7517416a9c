"""The paper's layers: Dice, PReLU, the activation unit, pooling, and the MLP they stand in.

All work on packed axes. A `mask` says which entries are real; what the others hold changes
neither a real entry's result, nor a statistic, nor a gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.blocks import InBlocks
from din_jax.devices import psum

# Makes an activation: a module called as `module(x[N, F], mask[N], train=...)`.
ActivationFactory = Callable[..., nn.Module]
Rows = jax.Array | InBlocks  # [N, F], at once or a block at a time


def _each(function: Callable[[Any], Any], rows: Any) -> Any:
    """What `function` makes of rows, each alone."""
    return rows.then(function) if isinstance(rows, InBlocks) else function(rows)


class Dice(nn.Module):
    """Dice (Eq. 9): f(s) = p(s)·s + (1 − p(s))·α·s, p(s) = sigmoid((s − E[s]) / (√Var[s] + ε)).

    E[s] and Var[s] are of the real entries of the mini-batch in training, over all devices of
    `axis_name`, and moving averages of these in evaluation. α is learned, one a unit. ε stands
    outside the root: where all entries are equal, p is ½ and the slope of p is up to ¼·10⁸, so the
    gradient is finite and bounded, as large as that may be. There it also carries float32's
    rounding of terms of that size, where they cancel.

    The variance is the corrected two-pass one (Chan, Golub & LeVeque 1983, eq. 1.7), with the shift
    kept out of the gradient, where it cancels: E[s²] − E[s]² would lose all digits for |E[s]| ≫ σ.

    Attributes:
      momentum: of the moving averages, new = momentum · old + (1 − momentum) · batch. A batch
        without real entries leaves them as they are.
      epsilon: ε.
      mean_init, variance_init: the moving averages before the first step.
      alpha_init: initial α.
      axis_name: mapped axis over which the statistics are summed, or None.
    """

    momentum: float = 0.99
    epsilon: float = 1e-8
    mean_init: float = 0.0
    variance_init: float = 1.0
    alpha_init: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, s: Rows, mask: jax.Array, *, train: bool) -> Rows:
        """Maps s [N, F] to [N, F]; mask [N] says which rows are real."""
        units = s.shape[-1:]
        alpha = self.param("alpha", nn.initializers.constant(self.alpha_init), units)
        # With a type: a step's result has one, and the next step is not to be compiled again.
        start = (jnp.full, units)
        mean = self.variable("batch_stats", "mean", *start, self.mean_init, s.dtype)
        variance = self.variable("batch_stats", "variance", *start, self.variance_init, s.dtype)
        if train:
            axis_name = None if self.is_initializing() else self.axis_name
            both, batch_mean, batch_variance, count = _centred(s, mask, axis_name)
            if not self.is_initializing():
                keep = jnp.where(count > 0, self.momentum, 1.0)
                mean.value = keep * mean.value + (1 - keep) * batch_mean
                variance.value = keep * variance.value + (1 - keep) * batch_variance
        else:
            average, batch_variance = mean.value, variance.value
            both = _each(lambda s: (s, s - average[None]), s)
        deviation = _safe_sqrt(batch_variance) + self.epsilon

        def equation_9(both: tuple[jax.Array, jax.Array]) -> jax.Array:
            s, centred = both
            p = nn.sigmoid(centred / deviation[None])
            return p * s + (1 - p) * alpha[None] * s

        return _each(equation_9, both)


class _Moments(NamedTuple):
    """Of real rows: E[s] = shift + rest, Var[s], which divides by the count, and the count.

    `rest` is what rounding left in the shift, which has no gradient.
    """

    shift: jax.Array  # [F]
    rest: jax.Array  # [F]
    variance: jax.Array  # [F]
    real: jax.Array  # [], how many


def _centred(
    s: Rows, mask: jax.Array, axis_name: str | None
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """((s, s − E[s]), E[s], Var[s], count) of the real rows of all devices."""
    if isinstance(s, InBlocks):
        of_blocks = s.each(lambda s, mask: _moments(s, mask, None)[1])
        m = _moments_of_parts(of_blocks, axis_name)
        both: Any = s.then(lambda s: (s, s - m.shift[None] - m.rest[None]))
    else:
        shifted, m = _moments(s, mask, axis_name)
        both = s, shifted - m.rest[None]
    return both, m.shift + m.rest, m.variance, m.real


def _moments(s: jax.Array, mask: jax.Array, axis_name: str | None) -> tuple[jax.Array, _Moments]:
    """s − shift, and the moments of the real rows s [N, F]."""
    real = mask[:, None]
    count, total = psum((jnp.sum(mask, dtype=s.dtype), jnp.where(real, s, 0).sum(0)), axis_name)
    n = jnp.maximum(count, 1)
    shift = jax.lax.stop_gradient(total / n)
    shifted = s - shift[None]
    first, second = psum(
        (jnp.where(real, shifted, 0).sum(0), jnp.where(real, jnp.square(shifted), 0).sum(0)),
        axis_name,
    )
    rest = first / n
    variance = jnp.maximum(second / n - jnp.square(rest), 0)
    return shifted, _Moments(shift, rest, variance, count)


def _moments_of_parts(parts: _Moments, axis_name: str | None) -> _Moments:
    """The moments of all rows from those of parts, [n, …]: `_moments` with parts in place of rows.

    A part's squares about the shift are its own variance and its mean's square (Chan, Golub &
    LeVeque 1983, section 2, of any number of parts).
    """
    weight = parts.real[:, None]
    count, total = psum((parts.real.sum(), (weight * (parts.shift + parts.rest)).sum(0)), axis_name)
    n = jnp.maximum(count, 1)
    shift = jax.lax.stop_gradient(total / n)
    shifted = (parts.shift - shift[None]) + parts.rest
    squares = parts.variance + jnp.square(shifted)
    first, second = psum(((weight * shifted).sum(0), (weight * squares).sum(0)), axis_name)
    rest = first / n
    return _Moments(shift, rest, jnp.maximum(second / n - jnp.square(rest), 0), count)


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """√x, with gradient 0 in place of infinity at x = 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


class PReLU(nn.Module):
    """PReLU (Eq. 8): s where s > 0, else α·s, with a learned α a unit."""

    alpha_init: float = 0.25

    @nn.compact
    def __call__(self, s: Rows, mask: jax.Array, *, train: bool) -> Rows:
        """Maps s [N, F] to [N, F]."""
        del mask, train
        alpha = self.param("alpha", nn.initializers.constant(self.alpha_init), s.shape[-1:])
        return _each(lambda s: jnp.where(s > 0, s, alpha[None] * s), s)


class Sigmoid(nn.Module):
    """The logistic function, 1 / (1 + exp(−s))."""

    def __call__(self, s: Rows, mask: jax.Array, *, train: bool) -> Rows:
        """Maps s [N, F] to [N, F]."""
        del mask, train
        return _each(nn.sigmoid, s)


class ReLU(nn.Module):
    """max(s, 0)."""

    def __call__(self, s: Rows, mask: jax.Array, *, train: bool) -> Rows:
        """Maps s [N, F] to [N, F]."""
        del mask, train
        return _each(nn.relu, s)


def activation_factory(name: str, config: Any, axis_name: str | None = None) -> ActivationFactory:
    """The activation that `name` stands for: "dice", "prelu", "sigmoid" or "relu".

    Args:
      name: which.
      config: `config.model`, for the options of Dice and PReLU.
      axis_name: mapped axis of the devices, or None.
    """
    if name == "dice":
        return functools.partial(Dice, **config.dice, axis_name=axis_name)
    if name == "prelu":
        return functools.partial(PReLU, **config.prelu)
    return {"sigmoid": Sigmoid, "relu": ReLU}[name]


class MLP(nn.Module):
    """Hidden layers with an activation after each, then a linear output layer.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: width of the output layer.
      activation: what follows each hidden layer.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: ActivationFactory

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, *, train: bool, products: jax.Array | None = None
    ) -> jax.Array:
        """Maps x [N, F] to [N, outputs]; mask [N] says which rows are real.

        With `products` [N, P] they enter the first layer beside x, through a kernel of their own.
        """
        for i, width in enumerate(self.hidden):
            x = _dense(width, f"hidden_{i}")(x)
            if i == 0 and products is not None:
                x += _dense(width, "products", use_bias=False)(products)
            x = self.activation(name=f"activation_{i}")(x, mask, train=train)
        return _dense(self.outputs, "output")(x)


def _dense(width: int, name: str, *, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(
        width, use_bias=use_bias, kernel_init=nn.initializers.glorot_uniform(), name=name
    )


class ActivationUnit(nn.Module):
    """The local activation unit a(e_j, v_A) of Eq. 3: one raw weight a behaviour, no softmax.

    Its input is [v_A, e_j, v_A − e_j if `difference`, v_A ∘ e_j (or v_A ⊗ e_j if `outer`)]. The
    paper's figure 2 calls the last "out product"; the first author says that the element-wise
    product is meant (issue 18 of the authors' repository).

    The first layer is not computed on the concatenation. With kernel blocks W_q, W_k, W_d, W_p

        W·[q, k, q − k, q ∘ k] = (W_q + W_d)·q + (W_k − W_d)·k + W_p·(q ∘ k),

    whose first term is the same for all behaviours of a sample.

    Attributes:
      hidden: widths of the hidden layers; the paper has one of 36.
      activation: what follows each hidden layer.
      difference, outer: see above.
      block: behaviours computed at once; 0 is all. Where there are more, no array of T rows and a
        hidden width is made or kept: the backward pass computes each block anew. A Dice needs a
        pass of its own over all blocks, to have its statistics.
    """

    hidden: tuple[int, ...]
    activation: ActivationFactory
    difference: bool = False
    outer: bool = False
    block: int = 0

    @nn.compact
    def __call__(
        self,
        behaviors: jax.Array,
        ad: jax.Array,
        segment_ids: jax.Array,
        mask: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """Weights of behaviours.

        Args:
          behaviors: e_j, [T, E].
          ad: v_A, [B, E].
          segment_ids: [T], which ad each behaviour is compared with.
          mask: [T], which behaviours are real.
          train: whether Dice takes the mini-batch's statistics.

        Returns:
          [T]; 0 for padding.
        """
        width = behaviors.shape[-1]
        blocks = [width, width] + [width] * self.difference + [width**2 if self.outer else width]
        kernel = self.param(
            "kernel", nn.initializers.glorot_uniform(), (sum(blocks), self.hidden[0])
        )
        bias = self.param("bias", nn.initializers.zeros, (self.hidden[0],))
        w_ad, w_behavior = kernel[:width], kernel[width : 2 * width]
        if self.difference:
            w_difference = kernel[2 * width : 3 * width]
            w_ad, w_behavior = w_ad + w_difference, w_behavior - w_difference
        w_product = kernel[sum(blocks[:-1]) :]

        of_ad = ad @ w_ad + bias[None]

        def first_layer(behaviors: jax.Array, segment_ids: jax.Array) -> jax.Array:
            own_ad = _rows_of(ad, segment_ids)
            if self.outer:
                product = (own_ad[:, :, None] * behaviors[:, None, :]).reshape(len(behaviors), -1)
            else:
                product = own_ad * behaviors
            return behaviors @ w_behavior + product @ w_product + _rows_of(of_ad, segment_ids)

        x: Any
        if 0 < self.block < len(behaviors) and not self.is_initializing():
            x = InBlocks.of(
                first_layer,
                self.block,
                mask,
                behaviors=(behaviors, 0),
                segment_ids=(segment_ids, len(ad)),
            )
        else:
            x = first_layer(behaviors, segment_ids)
        for i, units in enumerate(self.hidden):
            if i:
                x = _apply(_dense(units, f"hidden_{i}"), x)
            x = self.activation(name=f"activation_{i}")(x, mask, train=train)
        x = _apply(_dense(1, "output"), x)
        if isinstance(x, InBlocks):
            x = x.each(lambda weights, _: weights).reshape(-1, 1)[: len(mask)]
        return jnp.where(mask, x[:, 0], 0)


def _apply(module: nn.Module, rows: Rows) -> Rows:
    """A module of parameters alone, on rows."""
    if not isinstance(rows, InBlocks):
        return module(rows)
    pure, variables = module.unbind()
    return rows.then(functools.partial(pure.apply, variables))


def _rows_of(per_sample: jax.Array, segment_ids: jax.Array) -> jax.Array:
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
    below_top = jnp.where(mask, x - _rows_of(top, segment_ids), 0)
    raised = jnp.where(mask, jnp.exp(below_top), 0)
    total = segment_pool(raised, segment_ids, segments)
    return raised / _rows_of(jnp.where(total > 0, total, 1), segment_ids)
