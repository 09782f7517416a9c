"""Converts the times of a log to whole seconds, which a store keeps for the ages of behaviours."""

from __future__ import annotations

import datetime
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


def time_unit(spec: Spec, frames: dict[str, pl.DataFrame], notes: list[str]) -> str | None:
    """The unit of the times of impressions and behaviours, if it is known.

    Args:
      spec, frames: the tables by section. Their times are ".time", all of one type, and of a
        history in the row ".NAME.time"; where the spec names different units they are replaced by
        nanoseconds.
      notes: gets a line if the unit is a guess, or unknown, and where no behaviour's time lies
        between those of the impressions.

    Returns:
      None if the unit is unknown, or if no behaviours have times.

    Raises:
      DinError: the spec names a unit of dates, or one in which a time is beyond the year 9999; the
        tables have different units; or a history in the row has dates and its row numbers.
    """
    if spec.impressions.time is None:
        return None
    behaviors = [b for b in spec.behaviors if b.time is not None]
    listed = [h for h in spec.histories if h.time is not None]
    if (spec.behaviors or spec.histories) and not behaviors and not listed:
        return None
    stated = {"impressions": spec.impressions.time.unit}
    stated |= {b.files.section: b.time.unit for b in behaviors if b.time}
    compared = {section: frames[section][".time"] for section in stated}
    for history in listed:
        times = frames["impressions"][f".{history.name}.time"].explode().drop_nulls()
        if len(times) and history.time:
            compared[history.section], stated[history.section] = times, history.time.unit
            if times.dtype.is_temporal() != compared["impressions"].dtype.is_temporal():
                raise DinError(
                    f"{spec.path}: the times of [impressions] are "
                    f"{compared['impressions'].dtype}, and those of [{history.section}] "
                    f"{times.dtype}; write all as numbers or all as dates"
                )
    stated |= {
        s.files.section: s.valid_from.unit for s in (*spec.items, *spec.users) if s.valid_from
    }
    if compared["impressions"].dtype.is_temporal():
        for section, unit in stated.items():
            if unit is not None:
                raise DinError(
                    f"{spec.path}: [{section}] time_unit = {unit!r}, but the times are dates; "
                    "remove it"
                )
        _note_ranges(spec, compared, notes)
        return "us"  # see `TypedColumns.add_time`
    greatest: dict[str, Any] = {
        s: (compared[s] if s in compared else frames[s][".time"]).abs().max() for s in stated
    }
    for section, unit in stated.items():
        if unit is not None and _seconds(greatest[section], unit) > _YEAR_9999:
            raise DinError(
                f"{spec.path}: [{section}] time_unit = {unit!r}, in which the times of "
                f"[{section}], up to "
                f"{greatest[section]}, are beyond the year 9999; expected their unit: "
                f"{', '.join(UNITS)}"
            )
    guesses = {section: _guess(greatest[section]) for section in compared}
    own = stated["impressions"]
    units = {section: unit or own or guesses.get(section) for section, unit in stated.items()}
    # Numbers that look like times since 1970 contradict another unit, unless the spec states it.
    if own is None or own == guesses["impressions"]:
        looks = {guesses[s] if stated[s] is None else stated[s] for s in compared} - {None}
        if len(looks) > 1 and None in [stated[s] for s in compared]:
            raise _different_units(spec, greatest, guesses)
    if None not in units.values() and len({*units.values()}) > 1:
        for section, unit in units.items():
            assert unit is not None
            history_of = next((h for h in listed if h.section == section), None)
            if history_of is None:
                of_table = _in_nanoseconds(pl.col(".time"), frames[section][".time"].dtype, unit)
                frames[section] = frames[section].with_columns(of_table)
            else:
                converted = _in_nanoseconds(pl.element(), compared[section].dtype, unit)
                lists = pl.col(f".{history_of.name}.time").list.eval(converted)
                frames["impressions"] = frames["impressions"].with_columns(lists)
            if section in compared:
                compared[section] = pl.select(
                    _in_nanoseconds(pl.lit(compared[section]), compared[section].dtype, unit)
                ).to_series()
        _note_ranges(spec, compared, notes)
        return "ns"
    _note_ranges(spec, compared, notes)
    if own is not None:
        return own
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


def unit_alone(spec: Spec, time: pl.Series) -> str | None:
    """The unit of the impressions' times by themselves: the spec's, or a guess. None if unknown."""
    if time.dtype.is_temporal():
        return "us"  # see `TypedColumns.add_time`
    stated = spec.impressions.time.unit if spec.impressions.time else None
    return stated or _guess(time.abs().max())


def as_number(moment: datetime.datetime, unit: str) -> int:
    """A date-time in UTC, without a zone, as whole units since 1970, rounded up."""
    numerator, denominator = UNITS[unit]
    microseconds = (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
    return -(-microseconds * denominator // (numerator * 10**6))


def in_seconds(time: pl.Series, unit: str) -> np.ndarray:
    """int64: times as whole seconds, rounded down."""
    seconds: np.ndarray = _seconds(time.to_physical().to_numpy(), unit).astype(np.int64)
    return seconds


def _different_units(
    spec: Spec, greatest: Mapping[str, Any], guesses: Mapping[str, str | None]
) -> DinError:
    return DinError(
        f"{spec.path}: times have different units: "
        + ", ".join(
            f"those of [{section}], up to {greatest[section]}, look like {unit or 'none'}"
            for section, unit in guesses.items()
        )
        + '; name the unit of each in its section, time_unit = "s", or write all in one'
    )


def _note_ranges(spec: Spec, times: Mapping[str, pl.Series], notes: list[str]) -> None:
    """Notes behaviours that all lie before, or all after, every impression."""
    first, last = times["impressions"].min(), times["impressions"].max()
    for section, time in times.items():
        if section == "impressions":
            continue
        begin, end = time.min(), time.max()
        in_row = section in {history.section for history in spec.histories}
        if end < first and not spec.to_score and not in_row:  # type: ignore[operator]
            notes.append(
                f"[{section}] all its times, up to {end!s}, lie before those of [impressions], "
                f"from {first!s} on: every behaviour is in every history of its user. Is it one "
                "clock and one unit?"
            )
        elif begin > last:  # type: ignore[operator]
            notes.append(
                f"[{section}] all its times, from {begin!s} on, lie after those of [impressions], "
                f"up to {last!s}: all histories are empty. Is it one clock and one unit?"
            )


def _in_nanoseconds(time: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    numerator, denominator = UNITS[unit]
    factor = numerator * 10**9 // denominator
    time = time.cast(pl.Float64) if dtype.is_float() else time
    return (time * factor).cast(pl.Int64)


def _seconds(time: Any, unit: str) -> Any:
    numerator, denominator = UNITS[unit]
    return time * numerator // denominator


def _guess(greatest: Any) -> str | None:
    low, high = _PLAUSIBLE
    return next((unit for unit in _GUESSED if low <= _seconds(greatest, unit) < high), None)
