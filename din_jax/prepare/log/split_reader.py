"""Reads and checks the [split] section of a spec."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from din_jax.errors import DinError
from din_jax.prepare.log.spec import SHARE_OR_TIME, Split, SplitStart, is_share
from din_jax.prepare.log.toml_section import Section, shorten, suggestion

KEYS = ("by", "column", "train", "validation", "test", "ignore", "min_history")
_KEYS_BY = {
    "time": ("by", "validation", "test", "min_history"),
    "user": ("by", "validation", "test", "min_history"),
    "column": KEYS,
    "random": ("by", "validation", "test", "min_history"),
    "last": ("by", "min_history"),
}
_EXPECTED = {
    "time": "the time at which it begins, or a share of the rows between 0 and 1, such as 0.1",
    "user": "a share of the users between 0 and 1, such as 0.1",
    "random": "a share of the rows between 0 and 1, such as 0.1",
    "column": "the value that names the split, a list of values, or (validation and test) a share "
    "such as 0.1: the latest of the train rows",
}


def read_split(path: Path, value: Any) -> Split:
    """Reads the section.

    Raises:
      DinError: a key is missing, unknown or invalid, or two keys contradict one another.
    """
    section = Section(path, "split", value, KEYS)
    expected = '"time", "user", "column", "random" or "last"'
    by = section.text("by", expected)
    if by not in _KEYS_BY:
        raise section.invalid("by", f"{expected}{suggestion(by, _KEYS_BY)}")
    section = Section(path, "split", value, _KEYS_BY[by])
    values: dict[str, tuple[str, ...]] = {}
    starts: dict[str, SplitStart] = {}
    for key in ("train", "validation", "test") if by != "last" else ():
        if by != "column" and key == "train":
            continue
        if key not in section:
            raise section.missing(key, _EXPECTED[by])
        setting = section.value[key]
        if type(setting) is float and 0 < setting < 1 and key != "train":
            starts[key] = setting
        elif by == "column":
            values[key] = _split_values(section, key)
        elif by == "time":
            starts[key] = _time(section, key)
        else:
            raise section.invalid(key, _EXPECTED[by])
    _check_starts(section, starts)
    return Split(
        by=by,
        column=section.text("column") if by == "column" else None,
        values=values,
        ignore=_split_values(section, "ignore") if "ignore" in section else (),
        starts=starts,
        min_history=section.integer("min_history", 0) if "min_history" in section else 0,
    )


def _split_values(section: Section, key: str) -> tuple[str, ...]:
    """A value or a list of values, as text."""
    value = section.value[key]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str) or type(v) is int for v in values):
        raise section.invalid(key, _EXPECTED["column"])
    return tuple(map(str, values))


def _time(section: Section, key: str) -> SplitStart:
    """A point in time: a number, or a date-time in UTC without a zone."""
    value = section.value[key]
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError as error:
            expected = "a date and time like 2024-05-01 12:00:00, or a share such as 0.1"
            raise section.invalid(key, expected) from error
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        return value
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise section.invalid(key, _EXPECTED["time"])


def _check_starts(section: Section, starts: Mapping[str, SplitStart]) -> None:
    shares = [start for start in starts.values() if is_share(start)]
    if len(starts) == 2:
        if len(shares) == 1:
            raise DinError(
                f"{section.location} has a share and a point in time: "
                + ", ".join(f"{name} = {shorten(section.value[name])}" for name in starts)
                + f"; give two shares or two points in time. {SHARE_OR_TIME}"
            )
        first, last = starts["validation"], starts["test"]
        if not shares and isinstance(first, datetime.datetime) != isinstance(
            last, datetime.datetime
        ):
            raise DinError(
                f"{section.location} has a date and a number for validation and test; give two "
                "dates or two numbers"
            )
        if not shares and not first < last:  # type: ignore[operator]
            raise DinError(
                f"{section.location} validation begins at {first}, not before test at {last}. "
                + SHARE_OR_TIME
            )
    if sum(shares) >= 1:
        raise DinError(
            f"{section.location} the shares leave nothing to train on; their sum must be below 1"
        )
