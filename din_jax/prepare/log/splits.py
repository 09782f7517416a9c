"""Assigns impressions to train, validation and test."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from din_jax.data.store import SPLITS
from din_jax.errors import DinError
from din_jax.prepare.log.features import index_in
from din_jax.prepare.log.seeding import generator
from din_jax.prepare.log.spec import SHARE_OR_TIME, Spec, SplitStart, is_share

_IGNORED = len(SPLITS)  # the number of impressions in no split


def split_impressions(
    spec: Spec, impressions: pl.DataFrame, seed: int
) -> tuple[pl.DataFrame, dict[str, slice]]:
    """The impressions that are in a split, sorted by split and time, and the rows of each split.

    Raises:
      DinError: a split is empty, the column has names that the spec does not, or the spec has dates
        where the times are numbers, or the other way round.
    """
    split, time = spec.split, impressions[".time"]
    if split.by == "column":
        number = _by_column(spec, impressions[".split"])
    elif split.by == "user":
        number = _by_user(split.starts, impressions[".user"], seed)
    else:
        number = np.zeros(len(time), np.int8)
    if split.by != "user":
        # Both starts are computed before any row is moved to a later split.
        train = number == 0
        starts = {
            name: _start_time(spec, name, time.filter(pl.Series(train))) for name in split.starts
        }
        for name, start in starts.items():
            number[train & (time >= start).to_numpy()] = SPLITS.index(name)
    sizes = np.bincount(number, minlength=len(SPLITS))[: len(SPLITS)]
    if not sizes.all():
        raise DinError(
            f"{spec.path}: [split] leaves a split without impressions: "
            + ", ".join(f"{name} has {n:,}" for name, n in zip(SPLITS, sizes, strict=True))
            + f"; the times go from {time.min()!s} to {time.max()!s}. Give each split some"
            + (f". {SHARE_OR_TIME}" if split.by == "time" else "")
        )
    bounds = [0, *np.cumsum(sizes).tolist()]
    samples = (
        impressions.with_columns(pl.Series(".split", number))
        .sort(".split", ".time", maintain_order=True)
        .head(bounds[-1])
    )
    return samples, {name: slice(bounds[i], bounds[i + 1]) for i, name in enumerate(SPLITS)}


def _by_column(spec: Spec, names: pl.Series) -> np.ndarray:
    """[rows] the number of each row's split, by the values of a column."""
    split = spec.split
    number = {value: _IGNORED for value in split.ignore}
    for name, values in split.values.items():
        number |= {value: SPLITS.index(name) for value in values}
    counts = names.value_counts(sort=True)
    unknown = counts.filter(~pl.col(names.name).is_in(list(number)))
    if len(unknown):
        examples = ", ".join(f"{value!r} ({n:,} rows)" for value, n in unknown.head(10).iter_rows())
        raise DinError(
            f"{spec.impressions.files.path}: column {split.column!r} names splits that [split] "
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


def _start_time(spec: Spec, name: str, time: pl.Series) -> Any:
    """The time at which a split of rows with these times begins."""
    starts = spec.split.starts
    start: SplitStart = starts[name]
    if is_share(start):
        # Rows of one time stay together, in the later split.
        remaining = 1 - sum(
            share
            for other, share in starts.items()
            if SPLITS.index(other) >= SPLITS.index(name) and is_share(share)
        )
        return time.sort()[min(round(len(time) * remaining), len(time) - 1)]
    if isinstance(start, datetime.datetime) != time.dtype.is_temporal():
        raise DinError(
            f"{spec.path}: [split] {name} = {start}, but the times of [impressions], "
            f"{spec.impressions.time!r}, are {time.dtype} from {time.min()!r} to {time.max()!r}; "
            "write it as one of those"
        )
    return start
