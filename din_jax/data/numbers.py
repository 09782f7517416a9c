"""Transforms of numbers before they are model inputs, fitted on training alone.

NaN and infinite numbers are missing. What a transform gives is float32, NaN where the number is
missing.

    none      x
    standard  (x − mean) / standard deviation
    log1p     that of sign(x) · log(1 + |x|)
    quantile  (2 u − 1) · √3, where u is the fraction of training that is smaller; equal numbers
              have the middle of their fractions

The last three have mean 0 and variance 1 in training ("quantile" about, and less where many numbers
are equal); if all numbers are equal, they become 0. "standard" and "log1p" are clipped to
±`MOST_DEVIATIONS`: by Chebyshev's inequality at most 1 % of training is. "none" is clipped to the
range of float32.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.errors import DinError

TRANSFORMS = ("none", "standard", "log1p", "quantile")
MOST_DEVIATIONS = 10.0
_QUANTILES = 256  # that "quantile" keeps; it is linear between them

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class NumberTransform:
    """A fitted transform; `fit` makes it.

    Attributes:
      transform: one of `TRANSFORMS`.
      mean, deviation: of "standard" and "log1p".
      quantiles: of "quantile": ascending, evenly spaced from the least to the greatest number.
    """

    transform: str
    mean: float = 0.0
    deviation: float = 1.0
    quantiles: tuple[float, ...] = ()

    def apply(self, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Transforms numbers [N]; float32 [N], finite, or NaN where a number is missing."""
        x = _finite_or_nan(values)
        most = MOST_DEVIATIONS
        if self.transform == "none":
            most = float(np.finfo(np.float32).max)
        elif self.transform == "quantile":
            x = (2 * self._fractions(x) - 1) * math.sqrt(3)
        else:
            with np.errstate(over="ignore"):  # to infinity, which is clipped
                x = (_logarithm(x, self.transform) - self.mean) / self.deviation
        return np.clip(x, -most, most).astype(np.float32)

    def _fractions(self, x: Floats) -> Floats:
        """The fraction of training below each number, 0 to 1."""
        # Between −1 and 1, so that no difference overflows.
        power = 1 + max(math.frexp(self.quantiles[0])[1], math.frexp(self.quantiles[-1])[1])
        quantiles = np.ldexp(self.quantiles, -power)
        x = np.ldexp(np.clip(x, self.quantiles[0], self.quantiles[-1]), -power)
        fractions = np.linspace(0, 1, len(quantiles))
        # Of equal quantiles the first method finds the last and the second the first.
        last = np.interp(x, quantiles, fractions)
        first = -np.interp(-x, -quantiles[::-1], -fractions[::-1])
        return (first + last) / 2

    def to_json(self) -> dict[str, Any]:
        """Converts it to a JSON object, which `from_json` reads; exact."""
        return {**dataclasses.asdict(self), "quantiles": list(self.quantiles)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> NumberTransform:
        """The inverse of `to_json`."""
        return NumberTransform(**{**value, "quantiles": tuple(value["quantiles"])})


def fit(values: npt.ArrayLike, transform: str, *, name: str = "numbers") -> NumberTransform:
    """Fits a transform.

    Args:
      values: the numbers of training, [N]; NaN and infinite ones are missing.
      transform: one of `TRANSFORMS`.
      name: what error messages call the numbers.

    Raises:
      DinError: there is no such transform, or all numbers are missing.
    """
    if transform not in TRANSFORMS:
        raise DinError(f"{name}: transform {transform!r}; expected {', '.join(TRANSFORMS)}")
    if transform == "none":
        return NumberTransform("none")
    x = _finite_or_nan(values)
    count = len(x)
    x = x[~np.isnan(x)]
    if not len(x):
        raise DinError(
            f"{name}: all {count:,} numbers of training are missing, and {transform!r} is fitted "
            "on them; leave the field out, or use 'none'"
        )
    x = _logarithm(x, transform)
    # Numbers of any size, scaled by a power of two: exact, and no sum or square overflows.
    power = 1 + math.frexp(np.abs(x).max())[1]
    x = np.ldexp(x, -power)
    if transform == "quantile":
        fractions = np.linspace(0, 1, min(_QUANTILES, max(len(x), 2)))
        quantiles = np.ldexp(np.quantile(x, fractions), power)
        return NumberTransform("quantile", quantiles=tuple(quantiles.tolist()))
    above = x - x.min()  # 0 of a constant, whose mean would be rounded
    mean = x.min() + above.mean()
    deviation = math.ldexp(above.std(), power)
    return NumberTransform(transform, math.ldexp(mean, power), deviation or 1.0)


def _finite_or_nan(values: npt.ArrayLike) -> Floats:
    x = np.asarray(values, np.float64)
    return np.where(np.isfinite(x), x, np.nan)


def _logarithm(x: Floats, transform: str) -> Floats:
    """sign(x) · log(1 + |x|) for "log1p"; else x."""
    return np.sign(x) * np.log1p(np.abs(x)) if transform == "log1p" else x
