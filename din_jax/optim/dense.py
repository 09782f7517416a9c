"""Dense optimizers, and what they do to a row whose gradient is zero: for `catch_up`.

Of a row that was last looked up in step s, let k = 1, 2, … count the steps after it. In step s + k

* each leaf of its state has decayed to bᵏ of what it was: m = β₁ᵏ m_s, v = β₂ᵏ v_s;
* momentum moves it along its trace, by −lr(s + k) · bᵏ · trace;
* Adam moves it by

      −lr(s + k) · m / (1 − β₁ˢ⁺ᵏ) / (√(v / (1 − β₂ˢ⁺ᵏ)) + ε)
        = −m_s · c(s + k) (β₁/√β₂)ᵏ / (√v_s + ε g(s, k)),
      c(j) = lr(j) √(1 − β₂ʲ) / (1 − β₁ʲ),  g(s, k) = √((1 − β₂ˢ⁺ᵏ) / β₂ᵏ).

The sum of these movements over k is a series, whose terms fall like bᵏ or (β₁/√β₂)ᵏ. Adam's
denominator depends on k too. It is interpolated between n ages k_i, by polynomials L_i in
log(k + 1) that are 1 at k_i and 0 at the other ages:

    Σ_k c(s + k) (β₁/√β₂)ᵏ / (√v_s + ε g(s, k)) ≈ Σ_i S_i / (√v_s + ε g(s, k_i)),
    S_i = Σ_k c(s + k) (β₁/√β₂)ᵏ L_i(k).

Where ε is negligible this is exact, since Σ_i L_i(k) = 1. Elsewhere an absence is off by at most
6e-5 of its movement, and 3e-5 of the learning rate, if β₁ = 0.9 and β₂ = 0.999; by at most 2e-3 and
7e-3 if β₁ = 0.99.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

_NEGLIGIBLE = 1e-9  # a term of a series over its first one
_MAX_TERMS = 1 << 14
_NODES = 6  # n, the number of ages k_i


class Dense(NamedTuple):
    """A dense optimizer, and what it does to a row whose gradient is zero.

    The movement of a row since its last step s depends on sums S [n] that all rows of the same s
    share: step s + k adds `rate(s + k) · coefficients[k − 1]` to them.

    Attributes:
      optimizer: the Optax transformation.
      decays: {name of a leaf of a row's state: the factor by which it decays in a step}.
      coefficients: float64 [terms, n].
      rate: step 1, 2, … → a factor.
      movement: (leaves {name: [N, D]}, last step s int32[N], sums [N, n]) → [N, D].
    """

    optimizer: optax.GradientTransformation
    decays: dict[str, float]
    coefficients: npt.NDArray[np.float64]
    rate: Callable[[jax.Array], jax.Array]
    movement: Callable[[dict[str, jax.Array], jax.Array, jax.Array], jax.Array]


def dense_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> Dense:
    """Describes `optax.adam`.

    Raises:
      ValueError: β₁ ≥ √β₂, or they are so near that missed steps never cease to matter; or ε is 0.
    """
    _check_decays("dense_adam", b1=b1, b2=b2)
    if not eps > 0:
        raise ValueError(f"dense_adam: eps={eps!r}: expected more than 0")
    ratio = b1 / math.sqrt(b2) if b2 else math.inf
    ages = _ages(ratio, f"dense_adam: b1={b1!r}, b2={b2!r}: b1 / √b2")
    # Evenly spaced in log(k + 1), up to the age by which 99 % of the series have passed.
    last = max(2.0, -4.75 / math.log(ratio)) if ratio else 2.0
    nodes = np.expm1(np.linspace(math.log(2), math.log1p(last), _NODES))
    coefficients = -(ratio**ages)[:, None] * _lagrange(np.log1p(ages), np.log1p(nodes))
    decayed = np.asarray(b2**nodes, np.float32)[None]  # β₂ᵏ of the ages k_i

    def rate(step: jax.Array) -> jax.Array:
        return _at(learning_rate, step) * jnp.sqrt(1 - b2**step) / (1 - b1**step)

    def movement(leaves: dict[str, jax.Array], last_step: jax.Array, sums: jax.Array) -> jax.Array:
        correction = -jnp.expm1(last_step * math.log(b2))[:, None]  # 1 − β₂ˢ
        added = eps * jnp.sqrt((1 - decayed) / decayed + correction)  # ε g(s, k_i)
        root = jnp.sqrt(leaves["nu"])
        series = sum(sums[:, i : i + 1] / (root + added[:, i : i + 1]) for i in range(_NODES))
        return leaves["mu"] * series

    adam = optax.adam(learning_rate, b1, b2, eps)
    return Dense(adam, {"mu": b1, "nu": b2}, coefficients, rate, movement)


def dense_sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float, nesterov: bool = False
) -> Dense:
    """Describes `optax.sgd` with momentum. (Without, `row_sparse(optax.sgd(…))` is dense SGD.)"""
    _check_decays("dense_sgd", momentum=momentum)
    ages = _ages(momentum, f"dense_sgd: momentum={momentum!r}")
    return Dense(
        optax.sgd(learning_rate, momentum, nesterov),
        {"trace": momentum},
        -(momentum ** (ages + nesterov))[:, None],
        lambda step: _at(learning_rate, step),
        _along_the_trace,
    )


def dense_rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: float = 0.9,
    eps: float = 1e-8,
    momentum: float | None = None,
    nesterov: bool = False,
    **options: Any,
) -> Dense:
    """Describes `optax.rmsprop`. Without momentum only the state of an absent row changes.

    Args:
      learning_rate, decay, eps, momentum, nesterov: see `optax.rmsprop`.
      **options: its other arguments.
    """
    decays = {"nu": decay} | ({"mu": decay} if options.get("centered") else {})
    if momentum is not None:
        decays["trace"] = momentum
    _check_decays("dense_rmsprop", **decays)
    factor = momentum or 0.0  # of a trace that the learning rate has been multiplied with
    ages = _ages(factor, f"dense_rmsprop: momentum={momentum!r}")
    options |= {"momentum": momentum, "nesterov": nesterov}
    return Dense(
        optax.rmsprop(learning_rate, decay, eps, **options),
        decays,
        (factor ** (ages + nesterov))[:, None],
        lambda step: jnp.ones(()),
        _along_the_trace,
    )


def _along_the_trace(
    leaves: dict[str, jax.Array], last_step: jax.Array, sums: jax.Array
) -> jax.Array:
    return leaves["trace"] * sums if "trace" in leaves else jnp.zeros(())


def _at(learning_rate: optax.ScalarOrSchedule, step: jax.Array) -> jax.Array:
    """The learning rate of step 1, 2, …"""
    return learning_rate(step - 1) if callable(learning_rate) else jnp.asarray(learning_rate)


def _ages(ratio: float, what: str) -> npt.NDArray[np.float64]:
    """The ages k = 1, 2, … of the terms of a series that matter, which fall like ratioᵏ."""
    terms = math.inf if ratio >= 1 else 1
    if 0 < ratio < 1:
        terms = math.ceil(math.log(_NEGLIGIBLE) / math.log(ratio))
    if terms > _MAX_TERMS:
        raise ValueError(f"{what} is too near to 1, or above: missed steps never cease to matter")
    return np.arange(1.0, terms + 1)


def _lagrange(
    x: npt.NDArray[np.float64], nodes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """The polynomials L_i, which are 1 at one node and 0 at the others, at x: [len(x), n]."""
    columns = []
    for i, node in enumerate(nodes):
        others = np.delete(nodes, i)
        columns.append(np.prod((x[:, None] - others) / (node - others), axis=1))
    return np.stack(columns, axis=1)


def _check_decays(what: str, **decays: float) -> None:
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise ValueError(f"{what}: {name}={value!r}: expected 0 up to below 1")
