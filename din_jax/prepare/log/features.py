"""Features of samples and behaviours, joins with side tables, and histories."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from scipy import sparse

from din_jax.data.id_lookup import index_in
from din_jax.errors import DinError
from din_jax.prepare.log.spec import Column, SideTable
from din_jax.prepare.log.times import in_seconds


class Feature(NamedTuple):
    """A feature of samples or behaviours.

    Entry i has values[value_index[i]], or no value if value_index[i] is −1. `values` are ids, lists
    of ids, or numbers. `weights` are lists as long as those of the ids, or None.
    """

    table: str
    values: pl.Series
    value_index: np.ndarray
    weights: pl.Series | None = None

    @classmethod
    def of(cls, column: Column, frame: pl.DataFrame, value_index: np.ndarray) -> Feature:
        """The feature that is a column of a frame."""
        values, weights = frame[column.name], None
        if column.weighted == "use":
            weights, values = (
                values.list.eval(pl.element().struct.field(part)) for part in ("weight", "id")
            )
        return cls(column.table, values, value_index, weights)

    @property
    def multi_hot(self) -> bool:
        """Whether an entry has a list of ids."""
        return self.values.dtype == pl.List

    def occurrences(self, mask: np.ndarray) -> pl.Series:
        """The concatenated single ids of the entries where a mask is true."""
        index = self.value_index[mask]
        values: pl.Series = self.values[index[index >= 0]]
        return values.explode() if self.multi_hot else values


class BehaviorSequence(NamedTuple):
    """Behaviours, sorted by user and time, and each sample's history: [start, end).

    `time`: int64 [events], in seconds; None if it is unknown.
    """

    features: dict[str, Feature]
    events: int
    start: np.ndarray
    end: np.ndarray
    time: np.ndarray | None

    def in_histories_of(self, samples: slice) -> np.ndarray:
        """[events] whether each behaviour lies in the history of one of these samples."""
        size = self.events + 1
        change = np.bincount(self.start[samples], minlength=size)
        change -= np.bincount(self.end[samples], minlength=size)
        mask: np.ndarray = np.cumsum(change)[:-1] > 0
        return mask


def own_features(columns: Iterable[Column], frame: pl.DataFrame) -> dict[str, Feature]:
    """Features that are columns of the table of samples or behaviours itself."""
    every_row = np.arange(len(frame))
    return {c.name: Feature.of(c, frame, every_row) for c in columns}


def joined_features(
    side_table: SideTable,
    table: pl.DataFrame,
    key: str,
    ids: pl.Series,
    id_of_row: np.ndarray,
    frame: pl.DataFrame,
    *,
    must_meet: bool = True,
) -> dict[str, Feature]:
    """Features that a side table has for the rows of a frame.

    Args:
      side_table, table, key: the side table, its frame, and the column of its ids.
      ids, id_of_row: row i of `frame` has the id ids[id_of_row[i]].
      frame: has ".time" if the side table has: the values valid at that time are joined.
      must_meet: whether the side table has at least one of the ids.

    Raises:
      DinError: the side table has none of the ids, and must.
    """
    id_of_entry = index_in(ids, table[key].cast(ids.dtype))
    if must_meet and (id_of_entry < 0).all():
        raise DinError(
            f"{side_table.files.paths[0]}: no {key.removeprefix('.')} of "
            f"[{side_table.files.section}], "
            f"{side_table.key} = {table[key][0]!r} for instance, occurs in [impressions] or the "
            f"behaviours, which have {ids[0]!r} for instance; write the ids in one way, or name "
            "the right column"
        )
    if side_table.valid_from is None:
        entry_of_id = np.full(len(ids) + 1, -1)  # the last is for ids that are in no frame
        entry_of_id[id_of_entry] = np.arange(len(table))
        index = entry_of_id[id_of_row]
    else:
        entries = table.select(".time", pl.Series(".id", id_of_entry)).with_row_index(".row")
        entries = entries.sort(".id", ".time")
        last = search_by_time(entries, ".id", id_of_row, frame[".time"], "right") - 1
        valid = (last >= 0) & (entries[".id"].to_numpy()[last] == id_of_row)
        index = np.where(valid, entries[".row"].to_numpy().astype(np.int64)[last], -1)
    return {c.name: Feature.of(c, table, index) for c in side_table.columns}


def behavior_sequence(
    features: dict[str, Feature],
    events: pl.DataFrame,
    samples: pl.DataFrame,
    user: np.ndarray,
    unit: str | None,
) -> BehaviorSequence:
    """Computes the histories: of each sample's user, the events before the sample's time.

    Args:
      features: of the events.
      events: sorted by ".user", a number, then by ".time". Without ".time" all events of the user
        are history.
      samples, user: the samples, and the number of each sample's user.
      unit: of the times, if it is known.
    """
    time = None
    user_of_event = events[".user"].to_numpy()
    start = np.searchsorted(user_of_event, user, "left")
    if ".time" in events.columns:
        # "left": after earlier events, before those of the sample's own time.
        end = search_by_time(events, ".user", user, samples[".time"], "left")
        if unit is not None:
            time = in_seconds(events[".time"], unit)
    else:
        end = np.searchsorted(user_of_event, user, "right")
    return BehaviorSequence(features, len(events), start, end, time)


def listed_sequence(
    lists: pl.DataFrame, time: pl.Series | None, newest_first: bool
) -> tuple[pl.DataFrame, np.ndarray, np.ndarray, int, int]:
    """The behaviours of lists that stand in the samples' rows, end to end.

    Args:
      lists: [samples] of lists, of one length in each row; ".time" has the behaviours' times.
      time: of the samples.
      newest_first: whether the lists begin with the latest behaviour.

    Returns:
      The behaviours that have an item, if any has, those strictly before the sample where they have
      times, in order of time; each sample's [start, end); how many had no item, and how many were
      not before the sample.
    """
    if newest_first:
        lists = lists.with_columns(pl.all().list.reverse())
    length = lists.to_series(0).list.len().fill_null(0).to_numpy().astype(np.int64)
    sample = np.repeat(np.arange(len(lists)), length)
    nonempty = lists.filter(pl.Series(length > 0))
    events = (nonempty if len(nonempty) else lists.clear()).explode(lists.columns)
    events = events.with_columns(pl.Series(".sample", sample))
    without_item = left_out = 0
    if ".item" in events.columns and (without_item := events[".item"].null_count()):
        events = events.filter(pl.col(".item").is_not_null())
        sample = events[".sample"].to_numpy()
        length = np.bincount(sample, minlength=len(lists))
    if ".time" in events.columns and time is not None:
        before = events[".time"] < time[sample]
        left_out = int((~before).sum())
        events = events.filter(before).sort(".sample", ".time", maintain_order=True)
        length = np.bincount(events[".sample"].to_numpy(), minlength=len(lists))
    elif any(c.startswith(".") for c in lists.columns) and time is not None:
        # `valid_from` joins by time: the values that are valid at the sample.
        events = events.with_columns(time[sample].alias(".time"))
    end = np.cumsum(length)
    return events, end - length, end, without_item, left_out


def search_by_time(
    rows: pl.DataFrame,
    key: str,
    query_key: np.ndarray,
    query_time: pl.Series,
    side: Literal["left", "right"],
) -> np.ndarray:
    """`np.searchsorted` of (query_key, query_time) in rows sorted by (`key`, ".time").

    Pairs are compared as single numbers, made of the key and the time.
    """
    number, query_number, size = _as_numbers(rows[".time"], query_time)
    pairs = rows[key].to_numpy().astype(np.int64) * size + number
    queries = query_key * size + query_number
    # In ascending order, which is six times as fast as in random order.
    order = np.argsort(queries)
    positions = np.empty(len(queries), np.int64)
    positions[order] = np.searchsorted(pairs, queries[order], side)
    return positions


def by_user_and_time(events: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """Sorts events by ".user", a number, and the other columns, equal ones in their order.

    Events of user −1 are left out.
    """
    if columns != [".user", ".time"]:
        return events.filter(pl.col(".user") >= 0).sort(columns, maintain_order=True)
    time, _, size = _as_numbers(events[".time"], events[".time"].clear())
    user = events[".user"].to_numpy()
    order = by_key(user + 1)[int((user < 0).sum()) :]
    ordered, ordered_user = time[order], user[order]
    if ((ordered[1:] < ordered[:-1]) & (ordered_user[1:] == ordered_user[:-1])).any():
        order = order[np.argsort(ordered_user * size + ordered, kind="stable")]
    return events[order]


def by_key(key: np.ndarray) -> np.ndarray:
    """The places of keys, numbers from 0 on, in ascending order: a stable sort by counting."""
    rows = len(key)
    if rows >= 2**31 or not rows:
        return np.argsort(key, kind="stable")
    # SciPy lists the entries of a sparse matrix row by row, each row's in their order.
    entries = np.ones(rows, np.int8), (key.astype(np.int32), np.arange(rows, dtype=np.int32))
    counted = sparse.coo_matrix(entries, shape=(int(key.max()) + 1, rows)).tocsr()
    places: np.ndarray = counted.indices
    return places


def _as_numbers(time: pl.Series, other: pl.Series) -> tuple[np.ndarray, np.ndarray, int]:
    """Two series of times as whole numbers from 0 on in one order, all below the last result.

    The latter times any user's number fits in int64.
    """
    if not time.dtype.is_float() and len(time) + len(other):
        a, b = (t.to_physical().to_numpy().astype(np.int64) for t in (time, other))
        low = min(int(t.min()) for t in (a, b) if len(t))
        size = max(int(t.max()) for t in (a, b) if len(t)) - low + 1
        if size < 2**32:  # and users are fewer than 2³¹
            return a - low, b - low, size
    rank = pl.concat([time, other]).rank("dense").to_numpy().astype(np.int64)
    return rank[: len(time)], rank[len(time) :], int(rank.max(initial=0)) + 1
