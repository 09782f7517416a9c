"""Converts the times of a log to whole seconds, which a store keeps for the ages of behaviours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log.spec import Spec

# The seconds of a unit, as a fraction.
UNITS = {
    "d": (86_400, 1),
    "h": (3600, 1),
    "min": (60, 1),
    "s": (1, 1),
    "ms": (1, 10**3),
    "us": (1, 10**6),
    "ns": (1, 10**9),
}
# A unit is guessed if the greatest number is a time from 1985 to 2033 in it. No number like
# 20240501, 2024050112 or 20240501123000 is.
_GUESSED = ("s", "ms", "us", "ns")
_PLAUSIBLE = (5 * 10**8, 2 * 10**9)
_YEAR_9999 = 253_402_300_799  # its last second, the greatest time that a store holds


def time_unit(spec: Spec, frames: Mapping[str, pl.DataFrame], notes: list[str]) -> str | None:
    """The unit of the times of impressions and behaviours, if it is known.

    Args:
      spec, frames: the tables by section. Their times are ".time", all of one type.
      notes: gets a line if the unit is a guess, or unknown.

    Returns:
      None if the unit is unknown, or if no behaviours have times.

    Raises:
      DinError: the spec names a unit of dates, or one in which a time is beyond the year 9999; or
        the tables have different units.
    """
    behaviors = [b.files.section for b in spec.behaviors if b.time is not None]
    if spec.behaviors and not behaviors:
        return None
    location, stated = f"{spec.path}: [impressions] time_unit", spec.impressions.time_unit
    times = {section: frames[section][".time"] for section in ("impressions", *behaviors)}
    if times["impressions"].dtype.is_temporal():
        if stated is not None:
            raise DinError(f"{location} = {stated!r}, but the times are dates; remove it")
        return "us"  # see `TypedColumns.add_time`
    greatest: dict[str, Any] = {section: time.abs().max() for section, time in times.items()}
    if stated is not None:
        for section, time in greatest.items():
            if _seconds(time, stated) > _YEAR_9999:
                raise DinError(
                    f"{location} = {stated!r}, in which the times of [{section}], up to {time}, "
                    f"are beyond the year 9999; expected their unit: {', '.join(UNITS)}"
                )
        return stated
    guesses = {section: _guess(time) for section, time in greatest.items()}
    if len({*guesses.values()} - {None}) > 1:
        raise DinError(
            f"{spec.path}: times have different units: "
            + ", ".join(
                f"those of [{section}], up to {greatest[section]}, look like {unit or 'none'}"
                for section, unit in guesses.items()
            )
            + "; write all in one unit, or if they are name it in [impressions] time_unit"
        )
    guess = None if None in guesses.values() else guesses["impressions"]
    notes.append(
        f"times are numbers, up to {greatest['impressions']}: "
        + (
            f"taken as {guess} since 1970, for the ages of behaviours; otherwise"
            if guess
            else "their unit is unknown, so that behaviours have no ages;"
        )
        + f" name their unit in [impressions] time_unit: {', '.join(UNITS)}"
    )
    return guess


def in_seconds(time: pl.Series, unit: str) -> np.ndarray:
    """int64: times as whole seconds, rounded down."""
    seconds: np.ndarray = _seconds(time.to_physical().to_numpy(), unit).astype(np.int64)
    return seconds


def _seconds(time: Any, unit: str) -> Any:
    numerator, denominator = UNITS[unit]
    return time * numerator // denominator


def _guess(greatest: Any) -> str | None:
    low, high = _PLAUSIBLE
    return next((unit for unit in _GUESSED if low <= _seconds(greatest, unit) < high), None)
