"""Activations: Dice (Eq. 9), PReLU (Eq. 8), sigmoid and ReLU.

All are Flax modules called as `module(s, mask, train=...)`. `s` is [..., F]; the mask [...] says
which rows are real, and padding changes neither a real row's result, nor a statistic, nor a
gradient.
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
Activations = jax.Array | InBlocks  # [..., F]; or [N, F], computed a block of rows at a time


def _map_rows(function: Callable[[Any], Any], rows: Any) -> Any:
    """`function` of an array, or of the blocks of one."""
    return rows.then(function) if isinstance(rows, InBlocks) else function(rows)


def _per_unit(values: jax.Array, s: jax.Array) -> jax.Array:
    """Values [F] with as many axes as s [..., F]."""
    return jnp.expand_dims(values, range(s.ndim - 1))


class Dice(nn.Module):
    """Dice (Eq. 9): f(s) = p(s)·s + (1 − p(s))·α·s, p(s) = sigmoid((s − E[s]) / (√Var[s] + ε)).

    In training E[s] and Var[s] are those of the real rows of the mini-batch, over all devices of
    `axis_name`; in evaluation they are moving averages, the collection "batch_stats". α is learned,
    one a unit. ε is outside the root: where all rows are equal, p is ½ and its slope up to ¼·10⁸,
    so that the gradient is bounded, but may be that large. It then also has float32's rounding
    errors of terms of that size, which cancel.

    The variance is computed in two passes with a correction (Chan, Golub & LeVeque 1983, eq. 1.7);
    no gradient goes through the shift, where it cancels. E[s²] − E[s]² would lose all digits for
    |E[s]| ≫ σ.

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
    def __call__(
        self, s: Activations, mask: jax.Array | None = None, *, train: bool = False
    ) -> Activations:
        """Applies Dice.

        Args:
          s: [..., F].
          mask: bool [...], which rows are real; None: all are.
          train: use, and update the moving averages with, the mini-batch's statistics.

        Returns:
          [..., F].

        Raises:
          ValueError: the mask has another shape than the rows.
        """
        if mask is None:
            mask = jnp.ones(s.shape[:-1], bool)
        if isinstance(s, InBlocks):
            return self._of_rows(s, mask, train=train)
        if mask.shape != s.shape[:-1]:
            raise ValueError(f"Dice: the mask is {mask.shape}, expected {s.shape[:-1]}")
        if s.ndim == 2:
            return self._of_rows(s, mask, train=train)
        rows = s.reshape(-1, s.shape[-1])
        return self._of_rows(rows, mask.reshape(-1), train=train).reshape(s.shape)

    def _of_rows(self, s: Any, mask: jax.Array, *, train: bool) -> Any:
        units = s.shape[-1:]
        alpha = self.param("alpha", nn.initializers.constant(self.alpha_init), units)
        # With a dtype, as the results of a step have: else the next step would be compiled again.
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
            both = _map_rows(lambda s: (s, s - average[None]), s)
        deviation = _safe_sqrt(batch_variance) + self.epsilon

        def equation_9(both: tuple[jax.Array, jax.Array]) -> jax.Array:
            s, centred = both
            p = nn.sigmoid(centred / deviation[None])
            return p * s + (1 - p) * alpha[None] * s

        return _map_rows(equation_9, both)


class _Moments(NamedTuple):
    """Of real rows: E[s] = shift + rest, Var[s], which divides by the count, and the count.

    `rest` corrects the shift, which has no gradient, for rounding.
    """

    shift: jax.Array  # [F]
    rest: jax.Array  # [F]
    variance: jax.Array  # [F]
    real: jax.Array  # [], how many


def _centred(
    s: Activations, mask: jax.Array, axis_name: str | None
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
