"""Reads the tables of a spec into frames whose ids and times can be compared with one another.

Columns that have a role are named ".user", ".item", ".time", ".label", ".split" and ".order";
features have their field's name, which can't start with a dot.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log import spec as specs
from din_jax.prepare.log.typed_columns import TypedColumns


class Tables:
    """The tables of a spec without duplicate rows.

    Attributes:
      frames: {section of the spec: frame}.
      counts: {section: {what is counted: rows}}.
      notes: of what is not an error but may be a mistake.
    """

    def __init__(self, spec: specs.Spec):
        self.counts: dict[str, dict[str, int]] = {}
        self.notes: list[str] = []
        self.frames = {"impressions": self._read_impressions(spec)}
        self.frames |= {b.files.section: self._read_behaviors(b) for b in spec.behaviors}
        self.frames |= {s.files.section: self._read_side_table(s, ".item") for s in spec.items}
        self.frames |= {s.files.section: self._read_side_table(s, ".user") for s in spec.users}
        for key in (".user", ".item", ".time"):
            self._unify_type(spec, key)

    def _read_impressions(self, spec: specs.Spec) -> pl.DataFrame:
        impressions = spec.impressions
        fields = [
            (column, key)
            for key, group in (("profile", "user"), ("ad", "ad"), ("context", "context"))
            for column in impressions.fields[group]
        ]
        columns = TypedColumns(
            impressions.files,
            *((column.column, key) for column, key in fields),
            (spec.split.column, "column of [split]"),
            (impressions.label, "label"),
            (impressions.user, "user"),
            (impressions.item, "item"),
            (impressions.time, "time"),
        )
        columns.add_label(".label", impressions.label)
        columns.add_id(".user", impressions.user)
        columns.add_id(".item", impressions.item)
        columns.add_time(".time", impressions.time)
        if spec.split.column is not None:
            columns.add_text(".split", spec.split.column)
        for column, _ in fields:
            columns.add_feature(column)
        return self._distinct(columns)

    def _read_behaviors(self, behaviors: specs.Behaviors) -> pl.DataFrame:
        columns = TypedColumns(
            behaviors.files,
            *((column.column, "ad") for column in behaviors.ad),
            (behaviors.user, "user"),
            (behaviors.item, "item"),
            (behaviors.time, "time"),
            (behaviors.order, "order"),
        )
        columns.add_id(".user", behaviors.user)
        columns.add_id(".item", behaviors.item)
        if behaviors.time is not None:
            columns.add_time(".time", behaviors.time)
        if behaviors.order is not None:
            columns.add_time(".order", behaviors.order)
        for column in behaviors.ad:
            columns.add_feature(column)
        return self._distinct(columns)

    def _read_side_table(self, side_table: specs.SideTable, key: str) -> pl.DataFrame:
        columns = TypedColumns(
            side_table.files,
            *((column.column, "columns") for column in side_table.columns),
            (side_table.key, key.removeprefix(".")),
            (side_table.valid_from, "valid_from"),
        )
        columns.add_id(key, side_table.key)
        unique = [key]
        if side_table.valid_from is not None:
            columns.add_time(".time", side_table.valid_from)
            unique.append(".time")
        for column in side_table.columns:
            columns.add_feature(column)
        frame = self._distinct(columns)
        conflicts = frame.group_by(unique, maintain_order=True).len().filter(pl.col("len") > 1)
        if len(conflicts):
            valid_from = side_table.valid_from
            raise DinError(
                f"{side_table.files.path}: [{columns.section}] has {conflicts['len'][0]} different "
                f"rows of {side_table.key} = {conflicts[key][0]!r}"
                + (f" and {valid_from} = {conflicts['.time'][0]}" if valid_from else "")
                + f" ({len(conflicts):,} such cases); expected one. Leave one of them, or name in "
                "valid_from the column that says from when on a row is valid"
            )
        return frame

    def _distinct(self, columns: TypedColumns) -> pl.DataFrame:
        frame = columns.distinct()
        self.counts[columns.section] = {
            "read": columns.row_count,
            "duplicates": columns.row_count - len(frame),
        }
        self.notes += columns.notes
        return frame

    def _unify_type(self, spec: specs.Spec, key: str) -> None:
        """Casts a key that tables are joined by to one type in all frames."""
        having_key = {
            section: frame for section, frame in self.frames.items() if key in frame.columns
        }
        types = {section: frame[key].dtype for section, frame in having_key.items()}
        if key == ".time" and len({dtype.is_temporal() for dtype in types.values()}) > 1:
            raise DinError(
                f"{spec.path}: times are numbers in some tables and dates in others: "
                + ", ".join(f"[{section}] {dtype}" for section, dtype in types.items())
                + "; write all as numbers or all as dates"
            )
        target = common_type(types.values())
        for section, frame in having_key.items():
            self.frames[section] = frame.with_columns(pl.col(key).cast(target))


def common_type(types: Iterable[pl.DataType]) -> pl.DataType:
    """The type in which ids or times of several columns are compared; text if no other fits."""
    distinct = set(types)
    if len(distinct) == 1:
        return distinct.pop()
    if all(dtype.is_integer() for dtype in distinct) and pl.UInt64 not in distinct:
        return pl.Int64()
    if all(dtype.is_numeric() for dtype in distinct) and pl.Float64 in distinct:
        return pl.Float64()
    return pl.String()
