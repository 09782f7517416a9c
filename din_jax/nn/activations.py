"""Activations: Dice (Eq. 9), PReLU (Eq. 8), sigmoid and ReLU.

All are Flax modules called as `module(s, mask, train=...)` with s [..., F] and mask bool[...],
which is False for padding, or float[...], the weights of the rows in statistics, which are 0 for
padding. Padding affects neither the results of real rows, nor statistics, nor gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.distributed.devices import psum
from din_jax.nn.blocks import InBlocks

ActivationFactory = Callable[..., nn.Module]  # for example `Dice`
Activations = jax.Array | InBlocks  # [..., F], or [N, F] computed in blocks of rows


def _map_rows(function: Callable[[Any], Any], rows: Any) -> Any:
    """Applies a row-wise function to an array or to `InBlocks`."""
    return rows.then(function) if isinstance(rows, InBlocks) else function(rows)


def _per_unit(values: jax.Array, s: jax.Array) -> jax.Array:
    """Expands values [F] to the number of axes of s [..., F]."""
    return jnp.expand_dims(values, range(s.ndim - 1))


class Dice(nn.Module):
    """Dice (Eq. 9): f(s) = p(s)·s + (1 − p(s))·α·s, p(s) = sigmoid((s − E[s]) / (√Var[s] + ε)).

    In training E[s] and Var[s] are the statistics of the mini-batch's real rows, over all devices
    of `axis_name`; with weights they are the weighted mean and variance, so that a row of weight 2
    is two equal rows. In evaluation they are moving averages, stored in the collection
    "batch_stats". α is learned, one per unit. ε is outside the root: if all rows are equal, p is ½
    and its slope is up to ¼·10⁸. The gradient is bounded, but may be that large, and then has
    float32's rounding errors of terms of that size, which cancel.

    The variance is computed in two passes with a correction (Chan, Golub & LeVeque 1983, eq. 1.7).
    No gradient flows through the shift, because it would cancel. E[s²] − E[s]² would lose all
    digits if |E[s]| ≫ σ.

    Attributes:
      momentum: of the moving averages, new = momentum · old + (1 − momentum) · batch. A batch
        without real rows does not change them.
      epsilon: ε.
      mean_init, variance_init: initial values of the moving averages.
      alpha_init: initial value of α.
      axis_name: the mapped axis over which the statistics are summed, or None.
    """

    momentum: float = 0.99
    epsilon: float = 1e-8
    mean_init: float = 0.0
    variance_init: float = 1.0
    alpha_init: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, s: Activations, mask: jax.Array | None = None, *, train: bool = False
    ) -> Activations:
        """Applies Dice.

        Args:
          s: [..., F].
          mask: bool[...], False for padding; or float[...], the rows' weights, 0 for padding; None
            if there is no padding.
          train: whether to use the mini-batch's statistics, and update the moving averages.

        Returns:
          [..., F].

        Raises:
          ValueError: the mask's shape differs from [...].
        """
        if mask is None:
            mask = jnp.ones(s.shape[:-1], bool)
        if isinstance(s, InBlocks):
            return self._apply_to_rows(s, mask, train=train)
        if mask.shape != s.shape[:-1]:
            raise ValueError(f"Dice: the mask is {mask.shape}, expected {s.shape[:-1]}")
        if s.ndim == 2:
            return self._apply_to_rows(s, mask, train=train)
        rows = s.reshape(-1, s.shape[-1])
        return self._apply_to_rows(rows, mask.reshape(-1), train=train).reshape(s.shape)

    def _apply_to_rows(self, s: Any, mask: jax.Array, *, train: bool) -> Any:
        units = s.shape[-1:]
        alpha = self.param("alpha", nn.initializers.constant(self.alpha_init), units)
        # An explicit dtype makes the arrays strongly typed, as a step's results are. Otherwise the
        # second step would be compiled again.
        init = (jnp.full, units)
        mean = self.variable("batch_stats", "mean", *init, self.mean_init, s.dtype)
        variance = self.variable("batch_stats", "variance", *init, self.variance_init, s.dtype)
        if train:
            axis_name = None if self.is_initializing() else self.axis_name
            s_and_centred, batch_mean, batch_variance, total = _centred(s, mask, axis_name)
            if not self.is_initializing():
                momentum = jnp.where(total > 0, self.momentum, 1.0)
                mean.value = momentum * mean.value + (1 - momentum) * batch_mean
                variance.value = momentum * variance.value + (1 - momentum) * batch_variance
        else:
            average, batch_variance = mean.value, variance.value
            s_and_centred = _map_rows(lambda s: (s, s - average[None]), s)
        deviation = _safe_sqrt(batch_variance) + self.epsilon

        def equation_9(s_and_centred: tuple[jax.Array, jax.Array]) -> jax.Array:
            s, centred = s_and_centred
            p = nn.sigmoid(centred / deviation[None])
            return p * s + (1 - p) * alpha[None] * s

        return _map_rows(equation_9, s_and_centred)


class _Moments(NamedTuple):
    """The moments of real rows: E[s] = shift + correction, and Var[s], divided by `total_weight`.

    `correction` is the rounding error of the shift, which has no gradient.
    """

    shift: jax.Array  # [F]
    correction: jax.Array  # [F]
    variance: jax.Array  # [F]
    total_weight: jax.Array  # [], their number if they have no weights


def _centred(
    s: Activations, mask: jax.Array, axis_name: str | None
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """((s, s − E[s]), E[s], Var[s], total weight) over the real rows of all devices."""
    if isinstance(s, InBlocks):
        block_moments = s.each(lambda s, mask: _moments(s, mask, None)[1])
        m = _combined_moments(block_moments, axis_name)
        s_and_centred: Any = s.then(lambda s: (s, s - m.shift[None] - m.correction[None]))
    else:
        shifted, m = _moments(s, mask, axis_name)
        s_and_centred = s, shifted - m.correction[None]
    return s_and_centred, m.shift + m.correction, m.variance, m.total_weight


def _moments(s: jax.Array, mask: jax.Array, axis_name: str | None) -> tuple[jax.Array, _Moments]:
    """s − shift, and the moments of the real rows of s [N, F]."""
    weight = mask.astype(s.dtype)

    def weighted_sum(values: jax.Array) -> jax.Array:
        return jnp.where(weight[:, None] > 0, weight[:, None] * values, 0).sum(0)

    total_weight, total = psum((weight.sum(), weighted_sum(s)), axis_name)
    n = jnp.where(total_weight > 0, total_weight, 1)
    shift = jax.lax.stop_gradient(total / n)
    shifted = s - shift[None]
    first, second = psum((weighted_sum(shifted), weighted_sum(jnp.square(shifted))), axis_name)
    correction = first / n
    variance = jnp.maximum(second / n - jnp.square(correction), 0)
    return shifted, _Moments(shift, correction, variance, total_weight)


def _combined_moments(blocks: _Moments, axis_name: str | None) -> _Moments:
    """Combines the moments of blocks, [n, …], as `_moments` combines rows.

    The mean square of a block about the shift is its variance plus its squared mean about the shift
    (Chan, Golub & LeVeque 1983, section 2, for any number of blocks).
    """
    weight = blocks.total_weight[:, None]
    total_weight, total = psum(
        (weight.sum(), (weight * (blocks.shift + blocks.correction)).sum(0)), axis_name
    )
    n = jnp.where(total_weight > 0, total_weight, 1)
    shift = jax.lax.stop_gradient(total / n)
    shifted = (blocks.shift - shift[None]) + blocks.correction
    squares = blocks.variance + jnp.square(shifted)
    first, second = psum(((weight * shifted).sum(0), (weight * squares).sum(0)), axis_name)
    correction = first / n
    variance = jnp.maximum(second / n - jnp.square(correction), 0)
    return _Moments(shift, correction, variance, total_weight)


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """√x with gradient 0, instead of infinity, at x = 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


class PReLU(nn.Module):
    """PReLU (Eq. 8): s if s > 0, else α·s, with one learned α per unit."""

    alpha_init: float = 0.25

    @nn.compact
    def __call__(
        self, s: Activations, mask: jax.Array | None = None, *, train: bool = False
    ) -> Activations:
        """Maps s [..., F] to [..., F]."""
        del mask, train
        alpha = self.param("alpha", nn.initializers.constant(self.alpha_init), s.shape[-1:])
        return _map_rows(lambda s: jnp.where(s > 0, s, _per_unit(alpha, s) * s), s)


class Sigmoid(nn.Module):
    """The logistic function, 1 / (1 + exp(−s))."""

    def __call__(
        self, s: Activations, mask: jax.Array | None = None, *, train: bool = False
    ) -> Activations:
        """Maps s [..., F] to [..., F]."""
        del mask, train
        return _map_rows(nn.sigmoid, s)


class ReLU(nn.Module):
    """max(s, 0)."""

    def __call__(
        self, s: Activations, mask: jax.Array | None = None, *, train: bool = False
    ) -> Activations:
        """Maps s [..., F] to [..., F]."""
        del mask, train
        return _map_rows(nn.relu, s)


def activation_factory(name: str, config: Any, axis_name: str | None = None) -> ActivationFactory:
    """Returns the factory of an activation.

    Args:
      name: "dice", "prelu", "sigmoid" or "relu".
      config: `config.model`, with the options of Dice and PReLU.
      axis_name: the devices' mapped axis, or None.
    """
    if name == "dice":
        return functools.partial(Dice, **config.dice, axis_name=axis_name)
    if name == "prelu":
        return functools.partial(PReLU, **config.prelu)
    return {"sigmoid": Sigmoid, "relu": ReLU}[name]
