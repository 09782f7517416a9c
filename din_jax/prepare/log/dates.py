"""Reads times that are written as text."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log.spec import Time

Refuse = Callable[[pl.Series, str], None]  # (which rows are invalid, what was expected)


def parse(raw: pl.Series, time: Time, refuse: Refuse) -> tuple[pl.Series, bool | None]:
    """Numbers, or dates in UTC; and whether dates were written with zones, None for numbers.

    Without a format the first value decides whether all are numbers or dates.

    Args:
      raw: text without missing values.
      time: its format and zone.
      refuse: raises for the first of the invalid rows, if there is one.
    """
    if time.format is not None:
        return _by_format(raw, time, refuse)
    for dtype in (pl.Int64, pl.Float64):
        number = raw.cast(dtype, strict=False)
        if number[0] is not None and (dtype == pl.Float64 or not number.has_nulls()):
            if dtype == pl.Float64:
                number = pl.select(pl.when(number.is_finite()).then(number)).to_series()
            refuse(number.is_null(), "a time, a number as in the first row")
            return number, None
    if raw.str.contains(r"^\d{4}/\d\d?/\d\d?([T ]|$)").all():
        padded = raw.str.replace_all(r"([/ ])(\d)([/ :]|$)", r"${1}0${2}${3}")
        raw = padded.str.replace_all(r"([/ ])(\d)([/ :]|$)", r"${1}0${2}${3}").str.replace_all(
            "/", "-"
        )
    refuse(
        ~raw.str.contains(r"^\d{4}-\d\d-\d\d([T ]|$)"),
        "a time: a number, or a date and time like 2024-05-01 12:00:00 or 2024/05/01 12:00:00; "
        'otherwise say how it is written: time_format = "%d/%m/%Y %H:%M:%S"',
    )
    has_zone = raw.str.contains(r"\d\d:\d\d.*([Zz]|[+-]\d\d(:?\d\d)?)$")
    if has_zone.any():
        refuse(
            ~has_zone, "a zone such as Z or +02:00, which other rows have, in all rows or in none"
        )
    try:
        values = raw.str.to_datetime(time_unit="us", strict=False)
    except pl.exceptions.PolarsError:
        values = pl.Series([None] * len(raw), dtype=pl.Datetime("us"))
    if values.dtype == pl.Datetime("us", "UTC"):
        values = values.dt.replace_time_zone(None)
    refuse(values.is_null(), "a date and time like 2024-05-01 12:00:00 or …T12:00:00+02:00")
    zoned = bool(has_zone.any())
    return (values if zoned else in_utc(values, time.zone)), zoned


def in_utc(values: pl.Series, zone: str | None) -> pl.Series:
    """Dates of a zone in UTC, without a zone; where clocks go back the earlier of the two."""
    if zone is None:
        return values
    try:
        local = values.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    except pl.exceptions.PolarsError as error:
        raise DinError(
            f'time_zone = {zone!r} is not known; expected a name like "Asia/Shanghai" or "UTC"'
        ) from error
    return local.dt.convert_time_zone("UTC").dt.replace_time_zone(None)


def _by_format(raw: pl.Series, time: Time, refuse: Refuse) -> tuple[pl.Series, bool]:
    assert time.format is not None
    written, form = raw, time.format
    if "%H" in form and "%M" not in form and "%T" not in form and "%R" not in form:
        written, form = raw + " 00", form + " %M"  # Polars wants minutes beside hours
    zoned = "%z" in form or "%Z" in form
    try:
        values = written.str.strptime(pl.Datetime("us"), form, strict=False)
    except pl.exceptions.PolarsError as error:
        raise DinError(
            f"time_format = {time.format!r} can't be used ({str(error).splitlines()[0]}); "
            "expected a format like %Y/%m/%d %H:%M:%S"
        ) from error
    if values.dtype.time_zone is not None:  # type: ignore[attr-defined]
        values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    refuse(values.is_null(), f"a time as time_format = {time.format!r} says")
    return (values if zoned else in_utc(values, time.zone)), zoned
