"""Assigns impressions to train, validation and test."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.data.id_lookup import index_in
from din_jax.data.store import SPLITS
from din_jax.errors import DinError
from din_jax.prepare.leave_last_out import leave_last_out
from din_jax.prepare.log.seeding import generator
from din_jax.prepare.log.spec import SHARE_OR_TIME, Spec, Split, SplitStart, is_share
from din_jax.prepare.log.times import UNITS, as_number, unit_alone

_IGNORED = len(SPLITS)  # the number of impressions in no split


def split_impressions(
    spec: Spec, impressions: pl.DataFrame, seed: int, notes: list[str], unit: str | None = None
) -> Splits:
    """Splits the impressions.

    Args:
      spec, impressions: the spec and its rows.
      seed: of what is drawn.
      notes: gets a line if the rows have no times.
      unit: of times that are numbers; by default the spec's, or a guess.

    Without a [split], which only rows to be scored lack, all are in test. Without times the order
    of the files is that of time; a note says so.

    Raises:
      DinError: a split is empty, the column has names that the spec does not, or the spec has dates
        where the times are numbers of an unknown unit, or numbers where they are dates.
    """
    split, rows = spec.split, len(impressions)
    if split is None:
        ordered = (
            impressions.sort(".time", maintain_order=True) if spec.impressions.time else impressions
        )
        ordered = ordered.with_columns(pl.lit(SPLITS.index("test"), pl.Int8).alias(".split"))
        whole = {"train": slice(0, 0), "validation": slice(0, 0), "test": slice(0, rows)}
        return Splits(ordered, whole, np.arange(rows))
    has_time = ".time" in impressions.columns
    time = impressions[".time"] if has_time else pl.Series(".time", np.arange(rows))
    if split.by == "column":
        number = _by_column(spec, split, impressions[".split"])
    elif split.by == "user":
        number = _by_user(split.starts, impressions[".user"], seed)
    elif split.by == "random":
        number = _at_random(split.starts, rows, seed)
    elif split.by == "last":
        users = index_in(impressions[".user"].unique(), impressions[".user"])
        number = leave_last_out(users, time.to_physical().to_numpy())
    else:
        number = np.zeros(rows, np.int8)
    if split.by in ("time", "column"):
        if not has_time and split.starts:
            notes.append(
                "[impressions] names no time: the rows are split in the order of the files, as if "
                "that was "
                'their order in time; if it is not, [split] by = "random" draws them'
            )
        # Both starts are computed before any row is moved to a later split.
        train = number == 0
        starts = {
            name: _start_time(spec, split, name, time.filter(pl.Series(train)), unit)
            for name in split.starts
        }
        for name, start in starts.items():
            number[train & (time >= start).to_numpy()] = SPLITS.index(name)
    sizes = np.bincount(number, minlength=len(SPLITS))[: len(SPLITS)]
    if not sizes.all():
        raise DinError(
            f"{spec.path}: [split] leaves a split without impressions: "
            + ", ".join(f"{name} has {n:,}" for name, n in zip(SPLITS, sizes, strict=True))
            + (f"; the times go from {time.min()!s} to {time.max()!s}" if has_time else "")
            + ". Give each split some"
            + (f". {SHARE_OR_TIME}" if split.by == "time" else "")
        )
    ordered = (
        impressions.with_columns(pl.Series(".split", number))
        .sort(".split", *([".time"] if has_time else []), maintain_order=True)
        .head(int(sizes.sum()))
    )
    is_sample = np.ones(len(ordered), bool)
    if split.min_history:
        is_sample = _earlier_clicks(spec, ordered) >= split.min_history
    samples = np.flatnonzero(is_sample)
    of_split = np.bincount(ordered[".split"].to_numpy()[samples], minlength=len(SPLITS))
    if not of_split.all():
        raise DinError(
            f"{spec.path}: [split] min_history = {split.min_history} leaves a split without "
            "samples: "
            + ", ".join(f"{name} has {n:,}" for name, n in zip(SPLITS, of_split, strict=True))
            + "; lower it"
        )
    bounds = [0, *np.cumsum(of_split).tolist()]
    slices = {name: slice(bounds[i], bounds[i + 1]) for i, name in enumerate(SPLITS)}
    return Splits(ordered, slices, samples)


class Splits(NamedTuple):
    """The impressions that are in a split, and which are samples.

    Attributes:
      rows: sorted by ".split", a number, then by time.
      slices: {split: its samples}.
      samples: [samples] the rows that are samples, ascending; the others have too short a history.
    """

    rows: pl.DataFrame
    slices: dict[str, slice]
    samples: np.ndarray


def order_in_time(rows: pl.DataFrame) -> np.ndarray:
    """[rows] the place of each row by user and time, rows of one time as they stand."""
    keys = rows.select(pl.col(".user").rank("dense"), pl.col(".time").rank("dense"))
    order = np.lexsort((keys[".time"].to_numpy(), keys[".user"].to_numpy()))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    return place


def _earlier_clicks(spec: Spec, rows: pl.DataFrame) -> np.ndarray:
    """[rows] how many clicks of the user come before each row."""
    clicks = rows.select(
        ".user", ".time", pl.col(".label").fill_null(0).cast(pl.Int64).alias("click")
    )
    place = order_in_time(rows)
    order = np.argsort(place)
    ordered = clicks[order]
    before = ordered.select(pl.col("click").cum_sum().over(".user") - pl.col("click")).to_series()
    if not spec.impressions.in_order:
        before = (
            ordered.select(before.alias("before"), ".user", ".time")
            .select(pl.col("before").min().over(".user", ".time"))
            .to_series()
        )
    earlier = np.empty(len(rows), np.int64)
    earlier[order] = before.to_numpy()
    return earlier


def _by_column(spec: Spec, split: Split, names: pl.Series) -> np.ndarray:
    """[rows] the number of each row's split, by the values of a column."""
    number = {value: _IGNORED for value in split.ignore}
    for name, values in split.values.items():
        number |= {value: SPLITS.index(name) for value in values}
    counts = names.value_counts(sort=True)
    unknown = counts.filter(~pl.col(names.name).is_in(list(number)))
    if len(unknown):
        examples = ", ".join(f"{value!r} ({n:,} rows)" for value, n in unknown.head(10).iter_rows())
        raise DinError(
            f"{spec.impressions.files.paths[0]}: column {split.column!r} names splits that [split] "
            f"does not: {examples}; give them to train, validation or test, or leave them out with "
            f"ignore = [{unknown[names.name][0]!r}]"
        )
    return names.replace_strict(number, return_dtype=pl.Int8).to_numpy().copy()


def _by_user(fractions: Mapping[str, Any], users: pl.Series, seed: int) -> np.ndarray:
    """[rows] the number of each row's split, by a random assignment of the users."""
    distinct = users.unique().sort()
    shuffled = generator(seed, "split").permutation(len(distinct))
    number = np.zeros(len(distinct), np.int8)
    begin = 0
    for name, fraction in fractions.items():
        end = begin + round(len(distinct) * fraction)
        number[shuffled[begin:end]] = SPLITS.index(name)
        begin = end
    number_of_row: np.ndarray = number[index_in(distinct, users)]
    return number_of_row


def _at_random(fractions: Mapping[str, Any], rows: int, seed: int) -> np.ndarray:
    """[rows] the number of each row's split, drawn."""
    number = np.zeros(rows, np.int8)
    shuffled = generator(seed, "split").permutation(rows)
    begin = 0
    for name, fraction in fractions.items():
        end = begin + round(rows * fraction)
        number[shuffled[begin:end]] = SPLITS.index(name)
        begin = end
    return number


def _start_time(spec: Spec, split: Split, name: str, time: pl.Series, unit: str | None) -> Any:
    """The time at which a split of rows with these times begins."""
    starts = split.starts
    start: SplitStart = starts[name]
    if is_share(start):
        # Rows of one time stay together, in the later split.
        remaining = 1 - sum(
            share
            for other, share in starts.items()
            if SPLITS.index(other) >= SPLITS.index(name) and is_share(share)
        )
        return time.sort()[min(round(len(time) * remaining), len(time) - 1)]
    dates = time.dtype.is_temporal()
    if isinstance(start, datetime.datetime) and not dates and spec.impressions.time:
        if (unit := unit or unit_alone(spec, time)) is not None:
            return as_number(start, unit)
        raise DinError(
            f"{spec.path}: [split] {name} = {start}, but the times of [impressions], "
            f"{spec.impressions.time.name!r}, are numbers of an unknown unit, from {time.min()!r} "
            f"to {time.max()!r}; name it in [impressions] time_unit: {', '.join(UNITS)}"
        )
    if isinstance(start, datetime.datetime) != dates:
        column = spec.impressions.time.name if spec.impressions.time else ""
        raise DinError(
            f"{spec.path}: [split] {name} = {start}, but the times of [impressions], "
            f"{column!r}, are {time.dtype} from {time.min()!r} to {time.max()!r}; write it as one "
            "of those"
        )
    return start
