"""Your own log: impressions, behaviours and side tables, Parquet or CSV, by a spec in TOML.

A sample is an impression. Its history is the user's behaviours strictly before it: those of a table
of their own, or the impressions that the user clicked. Everything that is fitted (vocabularies,
their counts, quantiles) comes from the training split, that is from its samples and from the
behaviours that lie in the history of one of them; validation and test are only mapped.

docs/your-data.md describes the spec.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from din_jax.data.schema import GROUPS, BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import SPLITS
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.prepare import log_spec, vocabularies
from din_jax.prepare.log_source import Rows
from din_jax.prepare.log_spec import Column, Spec, is_share

_AT_ONCE = 1 << 20  # samples, or behaviours, whose several values are written together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument("--spec", required=True, help="the TOML file that describes the tables")
    parser.add_argument("--data", help="folder that the spec's paths start from (default: its own)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of a split by user, and of ids made unknown"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it."""
    origin = prepare(arguments.spec, arguments.out, data=arguments.data, seed=arguments.seed)
    print("\n".join(_report(origin)))
    print(f"store written to {arguments.out}")


def prepare(
    spec: str | Path, out: str | Path, *, data: str | Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Makes a store from the tables of a log.

    Args:
      spec: the TOML file that describes them (docs/your-data.md).
      out: folder of the store.
      data: the folder that the spec's paths start from; by default its own.
      seed: of a split by user, and of which ids are made unknown.

    Returns:
      Counts of what went in and came out, kept in the store as its origin.

    Raises:
      DinError: `out` exists; the spec or a table can't be used, the message says where; a split
        comes out empty; clicks of a later split would be behaviours of an earlier one.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    described = log_spec.read(spec, data)
    log = _Log(described, seed)
    fitted = {name: _fit(log, name, options, seed) for name, options in described.tables.items()}
    return _write(log, fitted, out, seed)


class _Feature(NamedTuple):
    """A feature of samples or behaviours: the i-th has values[at[i]], or none if at[i] is −1.

    `values` holds ids, lists of ids, or numbers.
    """

    table: str
    values: pl.Series
    at: np.ndarray

    @property
    def multi_hot(self) -> bool:
        return self.values.dtype == pl.List

    def occurrences(self, chosen: np.ndarray) -> pl.Series:
        """The single ids of the samples or behaviours that a mask chooses, one after another."""
        at = self.at[chosen]
        found = self.values[at[at >= 0]]
        return found.explode() if self.multi_hot else found


class _Sequence(NamedTuple):
    """Behaviours, users one after the other in time, and each sample's history: [start, end)."""

    features: dict[str, _Feature]
    events: int
    start: np.ndarray
    end: np.ndarray

    def seen_by(self, samples: slice) -> np.ndarray:
        """Mask of the behaviours that lie in the history of one of these samples."""
        size = self.events + 1
        change = np.bincount(self.start[samples], minlength=size)
        change -= np.bincount(self.end[samples], minlength=size)
        return np.cumsum(change)[:-1] > 0


class _Log:
    """The tables of a spec, read, split and joined.

    Samples are in order of split, then time, then the files' own. Users are numbered as they come
    up in it, so that no number of training depends on the other splits.

    Attributes:
      counts: {section: {what: rows}}.
      notes: what is no error, and yet may not be meant.
      splits: {split: its samples}.
      label, user: [samples].
      users, items: the raw ids.
      fields: {group of the schema: {field: feature of the samples}}.
      sequences: by name.
    """

    def __init__(self, spec: Spec, seed: int):
        self.spec = spec
        self.counts: dict[str, dict[str, int]] = {}
        self.notes: list[str] = []
        frames = {"impressions": self._read_impressions()}
        frames |= {b.place.section: self._read_behaviors(b) for b in spec.behaviors}
        frames |= {s.place.section: self._read_side(s, ".item") for s in spec.items}
        frames |= {s.place.section: self._read_side(s, ".user") for s in spec.users}
        for key in (".user", ".item", ".time"):
            _make_alike(spec, frames, key)

        samples, self.splits = _in_splits(spec, frames["impressions"], seed)
        self.counts["impressions"]["in no split"] = len(frames["impressions"]) - len(samples)
        self.label = samples[".label"].to_numpy()
        self.users = samples[".user"].unique(maintain_order=True)
        self.user = _index(samples[".user"], self.users)
        with_items = [samples, *(frames[b.place.section] for b in spec.behaviors)]
        self.items = pl.concat([frame[".item"] for frame in with_items]).unique(maintain_order=True)
        item = _index(samples[".item"], self.items)

        def joined(frame: pl.DataFrame, item: np.ndarray) -> dict[str, _Feature]:
            found = {"item": _Feature("item", self.items, item)}
            for side in spec.items:
                found |= _join(side, frames[side.place.section], ".item", self.items, item, frame)
            return found

        own = spec.impressions.fields
        of_items = joined(samples, item)
        of_users: dict[str, _Feature] = {}
        for side in spec.users:
            of_users |= _join(
                side, frames[side.place.section], ".user", self.users, self.user, samples
            )
        self.fields = {
            "user": {
                "user_id": _Feature("user", self.users, self.user),
                **_own(own["user"], samples),
                **of_users,
            },
            "ad": {**of_items, **_own(own["ad"], samples)},
            "context": _own(own["context"], samples),
        }

        self.sequences: dict[str, _Sequence] = {}
        if not spec.behaviors:
            self.sequences["history"] = self._clicks(samples)
        for behaviors in spec.behaviors:
            section = behaviors.place.section
            events = frames[section].with_columns(
                pl.Series(".user", _index(frames[section][".user"], self.users))
            )
            known = events.filter(pl.col(".user") >= 0)
            self.counts[section]["of users without impressions"] = len(events) - len(known)
            order = [c for c in (".user", ".time", ".order") if c in known.columns]
            known = known.sort(order, maintain_order=True)
            features = joined(known, _index(known[".item"], self.items))
            features |= _own(behaviors.ad, known)
            self.sequences[behaviors.name] = _sequence(features, known, samples, self.user)

    def all_fields(self) -> dict[str, _Feature]:
        """The features of the samples, of all groups."""
        return {name: f for group in self.fields.values() for name, f in group.items()}

    def found(self) -> dict[str, dict[str, float]]:
        """{section of a side table: {"samples", or a sequence: share of rows that it has}}."""
        shares: dict[str, dict[str, float]] = {}
        for group, sides in (("ad", self.spec.items), ("user", self.spec.users)):
            for side in sides:
                name = side.columns[0].name  # all columns of a table are found together
                having = {"samples": self.fields[group][name]}
                if group == "ad":
                    having |= {s: of.features[name] for s, of in self.sequences.items()}
                shares[side.place.section] = {
                    what: round(float((feature.at >= 0).mean()), 6)
                    for what, feature in having.items()
                    if len(feature.at)
                }
        return shares

    def _read_impressions(self) -> pl.DataFrame:
        spec = self.spec.impressions
        fields = [
            (column, key)
            for key, group in (("profile", "user"), ("ad", "ad"), ("context", "context"))
            for column in spec.fields[group]
        ]
        rows = Rows(
            spec.place,
            *((column.column, key) for column, key in fields),
            (self.spec.split.column, "column of [split]"),
            (spec.label, "label"),
            (spec.user, "user"),
            (spec.item, "item"),
            (spec.time, "time"),
        )
        rows.add_label(".label", spec.label)
        rows.add_id(".user", spec.user)
        rows.add_id(".item", spec.item)
        rows.add_time(".time", spec.time)
        if self.spec.split.column is not None:
            rows.add_text(".split", self.spec.split.column)
        for column, _ in fields:
            rows.add_feature(column)
        return self._distinct(rows)

    def _read_behaviors(self, spec: log_spec.Behaviors) -> pl.DataFrame:
        rows = Rows(
            spec.place,
            *((column.column, "ad") for column in spec.ad),
            (spec.user, "user"),
            (spec.item, "item"),
            (spec.time, "time"),
            (spec.order, "order"),
        )
        rows.add_id(".user", spec.user)
        rows.add_id(".item", spec.item)
        if spec.time is not None:
            rows.add_time(".time", spec.time)
        if spec.order is not None:
            rows.add_time(".order", spec.order)
        for column in spec.ad:
            rows.add_feature(column)
        return self._distinct(rows)

    def _read_side(self, spec: log_spec.Side, key: str) -> pl.DataFrame:
        rows = Rows(
            spec.place,
            *((column.column, "columns") for column in spec.columns),
            (spec.key, key.removeprefix(".")),
            (spec.valid_from, "valid_from"),
        )
        rows.add_id(key, spec.key)
        unique = [key]
        if spec.valid_from is not None:
            rows.add_time(".time", spec.valid_from)
            unique.append(".time")
        for column in spec.columns:
            rows.add_feature(column)
        frame = self._distinct(rows)
        twice = frame.group_by(unique, maintain_order=True).len().filter(pl.col("len") > 1)
        if len(twice):
            raise DinError(
                f"{spec.place.path}: [{rows.section}] has {twice['len'][0]} different rows of "
                f"{spec.key} = {twice[key][0]!r}"
                + (f" and {spec.valid_from} = {twice['.time'][0]}" if spec.valid_from else "")
                + f" ({len(twice):,} such cases); expected one. Leave one of them, or name in "
                "valid_from the column that says from when on a row holds"
            )
        return frame

    def _distinct(self, rows: Rows) -> pl.DataFrame:
        frame = rows.distinct()
        self.counts[rows.section] = {"read": rows.read, "duplicates": rows.read - len(frame)}
        self.notes += rows.notes
        return frame

    def _clicks(self, samples: pl.DataFrame) -> _Sequence:
        """The clicked impressions as behaviours."""
        events = (
            samples.select(".time", ".label", pl.Series(".user", self.user))
            .with_row_index(".sample")
            .filter(pl.col(".label") == 1)
            .sort(".user", ".time", maintain_order=True)
        )
        sample = events[".sample"].to_numpy()
        features = {
            name: feature._replace(at=feature.at[sample])
            for name, feature in self.fields["ad"].items()
        }
        found = _sequence(features, events, samples, self.user)
        # Splits by column need not follow one another in time: a training sample might look at a
        # click of the test split, and so at its label.
        for name, later in itertools.pairwise(SPLITS):
            chosen = self.splits[name]
            ahead = np.concatenate([[0], np.cumsum(sample >= self.splits[later].start)])
            wrong = ahead[found.end[chosen]] > ahead[found.start[chosen]]
            if wrong.any():
                user = self.users[int(self.user[chosen][np.argmax(wrong)])]
                raise DinError(
                    f"{self.spec.path}: {wrong.sum():,} samples of the split {name}, of user "
                    f"{user!r} for instance, come after clicks of the same user that [split] puts "
                    "in a later split; those would be in their histories, label and all. Split by "
                    "time or by user, or give the behaviours a table of their own, [behaviours]"
                )
        return found


def _own(columns: Iterable[Column], frame: pl.DataFrame) -> dict[str, _Feature]:
    """Features that are columns of a table itself."""
    everyone = np.arange(len(frame))
    return {c.name: _Feature(c.table, frame[c.name], everyone) for c in columns}


def _join(
    side: log_spec.Side,
    table: pl.DataFrame,
    key: str,
    ids: pl.Series,
    of: np.ndarray,
    frame: pl.DataFrame,
) -> dict[str, _Feature]:
    """Features that a side table has for rows of another one.

    Args:
      side, table, key: the side table, and the column of its ids.
      ids, of: the row i of `frame` is of the id ids[of[i]].
      frame: has ".time", if the side table has; what held then is taken.
    """
    known = _index(table[key], ids)
    if (known < 0).all():
        raise DinError(
            f"{side.place.path}: no {key.removeprefix('.')} of [{side.place.section}], "
            f"{side.key} = {table[key][0]!r} for instance, is one of [impressions] or its "
            f"behaviours, {ids[0]!r} for instance; write them alike, or name the right column"
        )
    if side.valid_from is None:
        row_of = np.full(len(ids) + 1, -1)  # the last is of ids that nobody asks for
        row_of[known] = np.arange(len(table))
        at = row_of[of]
    else:
        rows = table.select(".time", pl.Series(".id", known)).with_row_index(".row")
        rows = rows.sort(".id", ".time")
        last = _places(rows, ".id", of, frame[".time"], "right") - 1
        found = (last >= 0) & (rows[".id"].to_numpy()[last] == of)
        at = np.where(found, rows[".row"].to_numpy().astype(np.int64)[last], -1)
    return {c.name: _Feature(c.table, table[c.name], at) for c in side.columns}


def _sequence(
    features: dict[str, _Feature], events: pl.DataFrame, samples: pl.DataFrame, user: np.ndarray
) -> _Sequence:
    """The histories: of each sample's user, the events before its time, or all if they are prior.

    Args:
      features: of the events.
      events: sorted by ".user", a number, then by ".time" if they have it.
      samples, user: the samples and the number of each one's user.
    """
    of_event = events[".user"].to_numpy()
    start = np.searchsorted(of_event, user, "left")
    if ".time" in events.columns:
        # "left": behind what is earlier, before what is of the same time.
        end = _places(events, ".user", user, samples[".time"], "left")
    else:
        end = np.searchsorted(of_event, user, "right")
    return _Sequence(features, len(events), start, end)


def _places(
    rows: pl.DataFrame, key: str, of: np.ndarray, time: pl.Series, side: Literal["left", "right"]
) -> np.ndarray:
    """Where (of[i], time[i]) belongs among rows sorted by (`key`, ".time"), as `np.searchsorted`.

    Pairs are compared as single numbers: the key, then the rank of the time.
    """
    rank = pl.concat([rows[".time"], time]).rank("dense").to_numpy().astype(np.int64)
    ranks = int(rank.max(initial=0)) + 1
    pairs = rows[key].to_numpy().astype(np.int64) * ranks + rank[: len(rows)]
    asked = of * ranks + rank[len(rows) :]
    # In ascending order, since that is six times as fast as at random.
    order = np.argsort(asked)
    places = np.empty(len(asked), np.int64)
    places[order] = np.searchsorted(pairs, asked[order], side)
    return places


def _index(values: pl.Series, ids: pl.Series) -> np.ndarray:
    """int64: where each value stands in `ids`; −1 for those that don't."""
    rows = vocabularies.Fitted(ids, np.empty(0), 0).rows(values)
    return rows.astype(np.int64) - 1


def _make_alike(spec: Spec, frames: dict[str, pl.DataFrame], key: str) -> None:
    """Gives a key that tables are joined by one type in all `frames`, in place."""
    having = {section: frame for section, frame in frames.items() if key in frame.columns}
    types = {section: frame[key].dtype for section, frame in having.items()}
    if key == ".time" and len({dtype.is_temporal() for dtype in types.values()}) > 1:
        raise DinError(
            f"{spec.path}: times are numbers in some tables and dates in others: "
            + ", ".join(f"[{section}] {dtype}" for section, dtype in types.items())
            + "; write them alike"
        )
    target = _common_type(types.values())
    for section, frame in having.items():
        frames[section] = frame.with_columns(pl.col(key).cast(target))


def _common_type(types: Iterable[pl.DataType]) -> pl.DataType:
    """What ids or times of several columns are compared as: if all else fails, as text."""
    distinct = set(types)
    if len(distinct) == 1:
        return distinct.pop()
    if all(dtype.is_integer() for dtype in distinct) and pl.UInt64 not in distinct:
        return pl.Int64()
    if all(dtype.is_numeric() for dtype in distinct) and pl.Float64 in distinct:
        return pl.Float64()
    return pl.String()


def _in_splits(
    spec: Spec, impressions: pl.DataFrame, seed: int
) -> tuple[pl.DataFrame, dict[str, slice]]:
    """The impressions of the splits, in order of split and time, and where each split lies."""
    split, time = spec.split, impressions[".time"]
    if split.by == "column":
        number = _named_splits(spec, impressions[".split"])
    elif split.by == "user":
        number = _users_splits(split.cuts, impressions[".user"], seed)
    else:
        number = np.zeros(len(time), np.int8)
    if split.by != "user":
        # Both are found before anything is cut off.
        among = number == 0
        begins = {name: _begin(spec, name, time.filter(pl.Series(among))) for name in split.cuts}
        for name, begin in begins.items():
            number[among & (time >= begin).to_numpy()] = SPLITS.index(name)
    sizes = np.bincount(number, minlength=len(SPLITS))
    if not sizes[: len(SPLITS)].all():
        raise DinError(
            f"{spec.path}: [split] leaves a split without impressions: "
            + ", ".join(f"{name} has {n:,}" for name, n in zip(SPLITS, sizes, strict=False))
            + f"; the times go from {time.min()!s} to {time.max()!s}. Give each split some"
            + (f". {log_spec.SHARE_OR_POINT}" if split.by == "time" else "")
        )
    bounds = [0, *np.cumsum(sizes[: len(SPLITS)]).tolist()]
    samples = (
        impressions.with_columns(pl.Series(".split", number))
        .sort(".split", ".time", maintain_order=True)
        .head(bounds[-1])
    )
    return samples, {name: slice(bounds[i], bounds[i + 1]) for i, name in enumerate(SPLITS)}


def _named_splits(spec: Spec, names: pl.Series) -> np.ndarray:
    """[rows] 0 to 2 for the splits, 3 for what the spec ignores, by a column's values."""
    split = spec.split
    number = {value: 3 for value in split.ignore}
    for name, values in split.values.items():
        number |= {value: SPLITS.index(name) for value in values}
    found = names.value_counts(sort=True)
    unknown = found.filter(~pl.col(names.name).is_in(list(number)))
    if len(unknown):
        some = ", ".join(f"{value!r} ({n:,} rows)" for value, n in unknown.head(10).iter_rows())
        raise DinError(
            f"{spec.impressions.place.path}: column {split.column!r} names splits that [split] "
            f"does not: {some}; give them to train, validation or test, or leave them out with "
            f"ignore = [{unknown[names.name][0]!r}]"
        )
    return names.replace_strict(number, return_dtype=pl.Int8).to_numpy().copy()


def _users_splits(cuts: Mapping[str, Any], users: pl.Series, seed: int) -> np.ndarray:
    """[rows] 0 to 2, by a seeded choice of the users."""
    distinct = users.unique().sort()
    drawn = _rng(seed, "split").permutation(len(distinct))
    number = np.zeros(len(distinct), np.int8)
    begin = 0
    for name, share in cuts.items():
        end = begin + round(len(distinct) * share)
        number[drawn[begin:end]] = SPLITS.index(name)
        begin = end
    return number[_index(users, distinct)]


def _begin(spec: Spec, name: str, time: pl.Series) -> Any:
    """The time at which a split begins, cut off from rows of these times."""
    cuts = spec.split.cuts
    cut = cuts[name]
    if is_share(cut):
        # Rows of one time stay together, in the later split.
        later = [c for other, c in cuts.items() if SPLITS.index(other) >= SPLITS.index(name)]
        at = round(len(time) * (1 - sum(c for c in later if is_share(c))))
        return time.sort()[min(at, len(time) - 1)]
    if isinstance(cut, datetime.datetime) != time.dtype.is_temporal():
        raise DinError(
            f"{spec.path}: [split] {name} = {cut}, but the times of [impressions], "
            f"{spec.impressions.time!r}, are {time.dtype} from {time.min()!r} to {time.max()!r}; "
            "give it as one of those"
        )
    return cut


def _rng(seed: int, what: str) -> np.random.Generator:
    """One generator a purpose, so that a table more or less changes no other's draws."""
    return np.random.default_rng([seed, zlib.crc32(what.encode())])


_Fitted = vocabularies.Fitted | vocabularies.Buckets


def _fit(log: _Log, table: str, options: log_spec.TableOptions, seed: int) -> _Fitted:
    """Fits a table on training: its samples, and the behaviours in their histories, each once."""
    train = log.splits["train"]
    chosen = np.zeros(len(log.label), bool)
    chosen[train] = True
    found = [f.occurrences(chosen) for f in log.all_fields().values() if f.table == table]
    for sequence in log.sequences.values():
        of_table = [f for f in sequence.features.values() if f.table == table]
        if of_table:
            seen = sequence.seen_by(train)
            found += [f.occurrences(seen) for f in of_table]
    alike = _common_type(ids.dtype for ids in found)
    ids = pl.concat([ids.cast(alike).alias("id") for ids in found])
    if options.buckets is not None:
        return vocabularies.fit_buckets(ids, options.buckets)
    return vocabularies.fit(
        ids,
        _rng(seed, table),
        unknown_share=options.unknown_share,
        min_count=options.min_count,
    )


class _Rows:
    """The rows of its table that a feature's values have."""

    def __init__(self, feature: _Feature, fitted: _Fitted, dtype: np.dtype):
        self.at, self.multi_hot = feature.at, feature.multi_hot
        values = feature.values
        if self.multi_hot:
            values = values.list.drop_nulls()
            length = values.list.len().fill_null(0).to_numpy().astype(np.int64)
            values = values.filter(pl.Series(length > 0)).explode()
        else:
            length = np.ones(len(values), np.int64)
        self.rows = fitted.rows(values).astype(dtype)
        self.first = np.cumsum(length) - length
        # at = −1 is the last: no values, or row 0.
        self.length = np.append(length, 0)
        self.first = np.append(self.first, 0)
        if not self.multi_hot:
            self.rows = np.append(self.rows, dtype.type(0))

    def one_hot(self) -> np.ndarray:
        """[samples or behaviours] rows."""
        return self.rows[self.at]

    def unknown_share(self, chosen: np.ndarray | slice) -> float | None:
        """How many of the ids of some samples or behaviours are unknown; None if there are none."""
        at = self.at[chosen]
        if not self.multi_hot:
            return float((self.rows[at] == 0).mean()) if len(at) else None
        before = np.append(0, np.cumsum(self.rows == 0))
        unknown = before[self.first + self.length] - before[self.first]
        ids = int(self.length[at].sum())
        return float(unknown[at].sum() / ids) if ids else None

    def write(self, writer: StoreWriter, name: str) -> None:
        """Writes the feature as a column of a store, and the offsets of a multi-hot one."""
        if not self.multi_hot:
            writer.append(name, self.rows[self.at])
            return
        length = self.length[self.at]
        offset_type = smallest_unsigned(length.sum())
        writer.append(name, self.rows[:0])
        writer.append(f"{name}.offsets", np.zeros(1, offset_type))
        written = 0
        for begin in range(0, len(length), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            end = np.cumsum(length[part])
            shift = self.first[self.at[part]] - (end - length[part])
            places = np.arange(end[-1]) + np.repeat(shift, length[part])
            writer.append(name, self.rows[places])
            writer.append(f"{name}.offsets", (end + written).astype(offset_type))
            written += int(end[-1])


def _write(log: _Log, fitted: Mapping[str, _Fitted], out: str | Path, seed: int) -> dict[str, Any]:
    schema = _schema(log, fitted)
    id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
    origin: dict[str, Any] = {
        "preparation": "log",
        "seed": seed,
        "rows": log.counts,
        "found": log.found(),
        "samples": {},
        "label rate": {},
        "tables": {name: _described(table) for name, table in fitted.items()},
        "unknown": {},
        "histories": {},
        "notes": log.notes,
        "spec": _json(log.spec.source),
    }
    for name, part in log.splits.items():
        origin["samples"][name] = part.stop - part.start
        origin["label rate"][name] = round(float(log.label[part].mean()), 6)

    with StoreWriter(out, schema) as writer:
        writer.append("samples/label", log.label)
        writer.append("samples/user", log.user.astype(smallest_unsigned(len(log.users))))
        for name, feature in log.all_fields().items():
            rows = _Rows(feature, fitted[feature.table], id_type[feature.table])
            rows.write(writer, f"fields/{name}")
            origin["unknown"][name] = {s: rows.unknown_share(p) for s, p in log.splits.items()}
        for name, sequence in log.sequences.items():
            offset_type = smallest_unsigned(sequence.events)
            writer.append(f"sequences/{name}.start", sequence.start.astype(offset_type))
            writer.append(f"sequences/{name}.end", sequence.end.astype(offset_type))
            for field, feature in sequence.features.items():
                rows = _Rows(feature, fitted[feature.table], id_type[feature.table])
                rows.write(writer, f"events/{name}/{field}")
                origin["unknown"][f"{name}.{field}"] = {
                    s: rows.unknown_share(sequence.seen_by(p)) for s, p in log.splits.items()
                }
            length = sequence.end - sequence.start
            origin["histories"][name] = {
                split: {
                    "mean": round(float(length[part].mean()), 3),
                    "longest": int(length[part].max()),
                    "empty": round(float((length[part] == 0).mean()), 6),
                }
                for split, part in log.splits.items()
            }
        for name, table in fitted.items():
            writer.vocabulary(name, table.ids, table.counts)
        writer.finish({s: (p.start, p.stop) for s, p in log.splits.items()}, origin)
    return origin


def _schema(log: _Log, fitted: Mapping[str, _Fitted]) -> Schema:
    return Schema(
        tables=tuple(Table(name, len(table.ids) + 1) for name, table in fitted.items()),
        fields=tuple(
            Field(name, f.table, group, f.multi_hot, optional=name == "user_id")
            for group in GROUPS
            for name, f in log.fields[group].items()
        ),
        sequences=tuple(
            Sequence(
                name,
                tuple(
                    BehaviorField(field, f.table, ad=field, multi_hot=f.multi_hot)
                    for field, f in sequence.features.items()
                ),
            )
            for name, sequence in log.sequences.items()
        ),
    )


def _described(table: _Fitted) -> dict[str, int]:
    if isinstance(table, vocabularies.Buckets):
        return {"buckets": len(table.ids)}
    return {"ids": len(table.ids), "made unknown": table.left_out, "too rare": table.rare}


def _json(value: Any) -> Any:
    """TOML's values as JSON has them: times as text."""
    if isinstance(value, dict):
        return {key: _json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_json(part) for part in value]
    return value if isinstance(value, str | int | float | bool) else str(value)


def _report(origin: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a terminal."""
    for section, counts in origin["rows"].items():
        yield _line(f"[{section}] rows", ", ".join(f"{what} {n:,}" for what, n in counts.items()))
    for section, shares in origin["found"].items():
        text = ", ".join(f"{what} {share:.2%}" for what, share in shares.items())
        yield _line(f"[{section}] ids found of", text)
    for split, samples in origin["samples"].items():
        rate = origin["label rate"][split]
        yield _line(f"{split} samples", f"{samples:,}, label rate {rate:.4f}")
    for name, counts in origin["tables"].items():
        yield _line(f"table {name}", ", ".join(f"{what} {n:,}" for what, n in counts.items()))
    yield _line("unknown ids of", "  ".join(f"{split:>10}" for split in SPLITS))
    for name, rates in origin["unknown"].items():
        shown = ("none" if rate is None else f"{rate:.2%}" for rate in rates.values())
        yield _line(f"  {name}", "  ".join(f"{rate:>10}" for rate in shown))
    for name, of_split in origin["histories"].items():
        for split, length in of_split.items():
            yield _line(
                f"{name} of {split}",
                f"mean length {length['mean']:,.1f}, longest {length['longest']:,}, "
                f"empty {length['empty']:.1%}",
            )
    for note in origin["notes"]:
        yield _line("note", note)


def _line(what: str, text: str) -> str:
    return f"{what:<28}{text}"
