"""Writes a joined log and its fitted tables to a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from din_jax.data import vocabularies
from din_jax.data.numbers import NumberTransform
from din_jax.data.schema import (
    GROUPS,
    BehaviorField,
    Field,
    NumericBehaviorField,
    NumericField,
    Schema,
    Sequence,
    Table,
)
from din_jax.data.store import UNLABELLED
from din_jax.data.store_writer import StoreWriter, smallest_unsigned
from din_jax.data.titles import titles_of
from din_jax.prepare.log.features import Feature
from din_jax.prepare.log.joined_log import JoinedLog
from din_jax.prepare.log.vocabulary_fitting import FittedTable

_THREADS = 2
_ENTRIES_PER_WRITE = 1 << 20  # samples or behaviours of a multi-hot feature


class ColumnWriter(Protocol):
    """What columns are written to."""

    def append(self, name: str, values: npt.NDArray[Any]) -> None:
        """Appends to a column."""


# Which samples or behaviours are of each split.
_Entries: TypeAlias = Mapping[str, slice] | Mapping[str, np.ndarray]


def write_store(
    log: JoinedLog,
    tables: Mapping[str, FittedTable],
    out: str | Path,
    origin: dict[str, Any],
    notes: Callable[[], Iterable[str]],
    like: tuple[str, ...] = (),
) -> None:
    """Writes the store with its origin, to which counts of the samples, then `notes`, are added."""
    schema = log_schema(log, tables)
    labels = log.label.cast(pl.Float64)
    for name, samples in log.splits.items():
        origin["samples"][name] = samples.stop - samples.start
        rate = labels[samples].mean()
        origin["label rate"][name] = None if rate is None else round(float(rate), 6)  # type: ignore[arg-type]

    with StoreWriter(out, schema) as writer:
        origin["unknown"] |= write_columns(writer, log, tables, schema)
        for name, sequence in log.sequences.items():
            length = sequence.end - sequence.start
            origin["histories"][name] = {
                split: {
                    "mean": round(float(length[samples].mean()), 3),
                    "longest": int(length[samples].max()),
                    "empty": round(float((length[samples] == 0).mean()), 6),
                }
                for split, samples in log.splits.items()
                if samples.stop > samples.start
            }
        for name, table in tables.items():
            if not isinstance(table, NumberTransform):
                writer.vocabulary(name, table.ids, table.counts)
                if name == "item" and log.titles:
                    titles = [titles_of(table.ids, *of_table) for of_table in log.titles]
                    writer.titles(name, pl.select(pl.coalesce(titles)).to_series())
        origin["notes"] += notes()
        writer.finish(
            {s: (part.start, part.stop) for s, part in log.splits.items()}, origin, like=like
        )


def write_columns(
    writer: ColumnWriter, log: JoinedLog, tables: Mapping[str, FittedTable], schema: Schema
) -> dict[str, dict[str, float | None]]:
    """Writes all columns of a store; returns {feature: {split: fraction of unknown ids}}."""
    id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
    writer.append("samples/label", log.label.fill_null(UNLABELLED).to_numpy())
    users = len(log.users) or len(log.user)
    writer.append("samples/user", log.user.astype(smallest_unsigned(users)))
    if log.weight is not None:
        writer.append("samples/weight", log.weight.astype(np.float32))
    if log.time is not None:
        writer.append("samples/time", log.time)

    def write_feature(name: str, feature: Feature, entries: _Entries) -> dict[str, float | None]:
        rows = _values_of(feature, tables, id_type)
        rows.write(writer, name)
        return {split: rows.unknown_rate(of_split) for split, of_split in entries.items()}

    features: list[tuple[str, str, Feature, _Entries]] = [
        (name, f"fields/{name}", feature, log.splits) for name, feature in log.all_fields().items()
    ]
    for name, sequence in log.sequences.items():
        offset_type = smallest_unsigned(sequence.events)
        writer.append(f"sequences/{name}.start", sequence.start.astype(offset_type))
        writer.append(f"sequences/{name}.end", sequence.end.astype(offset_type))
        if sequence.time is not None:
            writer.append(f"events/{name}.time", sequence.time)
        in_histories = {s: sequence.in_histories_of(part) for s, part in log.splits.items()}
        features += [
            (f"{name}.{field}", f"events/{name}/{field}", feature, in_histories)
            for field, feature in sequence.features.items()
        ]
    with ThreadPoolExecutor(_THREADS) as threads:  # NumPy and Polars release the interpreter
        unknown = threads.map(lambda f: write_feature(*f[1:]), features)
        return {f[0]: rates for f, rates in zip(features, unknown, strict=True)}


def _values_of(
    feature: Feature, tables: Mapping[str, FittedTable], id_type: Mapping[str, np.dtype]
) -> _FeatureRows | _Numbers:
    table = tables[feature.table]
    if isinstance(table, NumberTransform):
        return _Numbers(feature, table)
    return _FeatureRows(feature, table, id_type[feature.table])


class _Numbers:
    """The transformed numbers of a feature; NaN where they are missing."""

    def __init__(self, feature: Feature, transform: NumberTransform):
        values = feature.values.cast(pl.Float64).fill_null(np.nan).to_numpy()
        self.index = feature.value_index
        self.numbers = np.append(transform.apply(values), np.float32(np.nan))  # of index −1

    def unknown_rate(self, entries: np.ndarray | slice) -> float | None:
        """Which fraction of some entries is missing; None if there are none."""
        index = self.index[entries]
        return float(np.isnan(self.numbers[index]).mean()) if len(index) else None

    def write(self, writer: ColumnWriter, name: str) -> None:
        """Writes the numbers as a column of a store."""
        writer.append(name, self.numbers[self.index])


class _FeatureRows:
    """The rows of its embedding table that a feature's values have."""

    def __init__(
        self, feature: Feature, table: vocabularies.Fitted | vocabularies.Buckets, dtype: np.dtype
    ):
        self.index, self.multi_hot = feature.value_index, feature.multi_hot
        values, self.weights = feature.values, np.empty(0, np.float32)
        self.weighted = feature.weights is not None
        if feature.weights is not None:
            self.weights = feature.weights.explode().drop_nulls().to_numpy().astype(np.float32)
        if self.multi_hot:
            values = values.list.drop_nulls()
            length = values.list.len().fill_null(0).to_numpy().astype(np.int64)
            values = values.filter(pl.Series(length > 0)).explode()
        else:
            length = np.ones(len(values), np.int64)
        self.rows = table.rows(values).astype(dtype)
        self.first = np.cumsum(length) - length
        # Index −1 is the last element: an empty list, or row 0.
        self.length = np.append(length, 0)
        self.first = np.append(self.first, 0)
        if not self.multi_hot:
            self.rows = np.append(self.rows, dtype.type(0))

    def unknown_rate(self, entries: np.ndarray | slice) -> float | None:
        """Which fraction of the ids of some entries is unknown; None if there are no ids."""
        index = self.index[entries]
        if not self.multi_hot:
            return float((self.rows[index] == 0).mean()) if len(index) else None
        unknown_before = np.append(0, np.cumsum(self.rows == 0))
        unknown = unknown_before[self.first + self.length] - unknown_before[self.first]
        ids = int(self.length[index].sum())
        return float(unknown[index].sum() / ids) if ids else None

    def write(self, writer: ColumnWriter, name: str) -> None:
        """Writes the feature as a column of a store, and the offsets of a multi-hot one."""
        if not self.multi_hot:
            writer.append(name, self.rows[self.index])
            return
        length = self.length[self.index]
        offset_type = smallest_unsigned(length.sum())
        writer.append(name, self.rows[:0])
        writer.append(f"{name}.offsets", np.zeros(1, offset_type))
        if self.weighted:
            writer.append(f"{name}.weights", self.weights[:0])
        written = 0
        for begin in range(0, len(length), _ENTRIES_PER_WRITE):
            part = slice(begin, begin + _ENTRIES_PER_WRITE)
            end = np.cumsum(length[part])
            shift = self.first[self.index[part]] - (end - length[part])
            positions = np.arange(end[-1]) + np.repeat(shift, length[part])
            writer.append(name, self.rows[positions])
            if self.weighted:
                writer.append(f"{name}.weights", self.weights[positions])
            writer.append(f"{name}.offsets", (end + written).astype(offset_type))
            written += int(end[-1])


def log_schema(log: JoinedLog, tables: Mapping[str, FittedTable]) -> Schema:
    """The schema of a log's store."""

    def is_number(feature: Feature) -> bool:
        return isinstance(tables[feature.table], NumberTransform)

    features = [(group, name, f) for group in GROUPS for name, f in log.fields[group].items()]
    return Schema(
        tables=tuple(
            Table(name, len(table.ids) + 1)
            for name, table in tables.items()
            if not isinstance(table, NumberTransform)
        ),
        fields=tuple(
            Field(
                name,
                f.table,
                group,
                f.multi_hot,
                optional=name == "user_id",
                weighted=f.weights is not None,
            )
            for group, name, f in features
            if not is_number(f)
        ),
        sequences=tuple(
            Sequence(
                name,
                tuple(
                    BehaviorField(
                        field, f.table, field, f.multi_hot, weighted=f.weights is not None
                    )
                    for field, f in sequence.features.items()
                    if not is_number(f)
                ),
                times=sequence.time is not None,
                numbers=tuple(
                    NumericBehaviorField(field, ad=field)
                    for field, f in sequence.features.items()
                    if is_number(f)
                ),
            )
            for name, sequence in log.sequences.items()
        ),
        numbers=tuple(NumericField(name, group) for group, name, f in features if is_number(f)),
        weighted=log.weight is not None,
    )


def table_counts(table: FittedTable) -> dict[str, Any]:
    """What the report says of a table."""
    if isinstance(table, NumberTransform):
        return {"numbers, transform": table.transform}
    if isinstance(table, vocabularies.Buckets):
        return {"buckets": len(table.ids)}
    return {"ids": len(table.ids), "made unknown": table.left_out, "too rare": table.rare}


def as_json(value: Any) -> Any:
    """Converts TOML values to JSON values: dates and times become text."""
    if isinstance(value, dict):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [as_json(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
