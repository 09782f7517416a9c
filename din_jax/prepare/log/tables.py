"""Reads the tables of a spec into frames whose ids and times can be compared with one another.

Columns that have a role are named ".user", ".item", ".time", ".label", ".weight", ".split",
".order" and, for the lists of a [history], ".NAME.item", ".NAME.time" and ".NAME.FIELD"; features
have their field's name, which can't start with a dot.
"""

from __future__ import annotations

import copy

import polars as pl

from din_jax.data.id_lookup import as_ids_of, distinct, index_in
from din_jax.errors import DinError
from din_jax.prepare.log import spec as specs
from din_jax.prepare.log.feature_columns import add_feature
from din_jax.prepare.log.history_columns import add_history
from din_jax.prepare.log.table_reader import TableReader
from din_jax.prepare.log.typed_columns import TypedColumns
from din_jax.prepare.log.value_types import common_type

_PADDING = ("0", "-1", "", "pad", "PAD", "<pad>", "<PAD>", "[PAD]")


class Tables:
    """The tables of a spec without duplicate rows.

    Args:
      spec: describes them.
      limit: how many rows of each to read, about; None reads all.
      impressions: whether to read the table of the impressions.

    Attributes:
      frames: {section of the spec: frame}.
      counts: {section: {what is counted: rows}}.
      notes: of what is not an error but may be a mistake.
      text_tables: the embedding tables whose ids stay text.
      titles: the items' ids and their titles, of each side table that has them.
    """

    def __init__(self, spec: specs.Spec, *, limit: int | None = None, impressions: bool = True):
        self.counts: dict[str, dict[str, int]] = {}
        self.notes: list[str] = []
        self._zoned: dict[str, bool] = {}
        self.titles: list[tuple[pl.Series, pl.Series]] = []
        self.text_tables = frozenset(n for n, options in spec.tables.items() if options.text)
        self._raw = _RawTables(spec, limit, self.text_tables)
        self.frames = {}
        if impressions:
            columns = self._raw.columns(spec.impressions.files)
            self.frames["impressions"] = self._read_impressions(spec, columns)
        self.frames |= {b.files.section: self._read_behaviors(b) for b in spec.behaviors}
        self.frames |= {s.files.section: self._read_side_table(s, ".item") for s in spec.items}
        self.frames |= {s.files.section: self._read_side_table(s, ".user") for s in spec.users}
        self.notes += self._raw.notes()
        del self._raw
        self._unify(spec)
        if impressions:
            self._note_meeting(spec)

    @staticmethod
    def without_impressions(spec: specs.Spec) -> Tables:
        """All tables but that of the impressions, which `with_impressions` adds in parts."""
        return Tables(spec, impressions=False)

    def with_impressions(self, spec: specs.Spec, columns: TypedColumns) -> Tables:
        """The tables with these impressions, and with the behaviours of their users alone."""
        tables = copy.copy(self)
        tables.notes, tables.counts, tables._zoned = [], dict(self.counts), dict(self._zoned)
        impressions = tables._read_impressions(spec, columns)
        tables.frames = {"impressions": impressions, **self.frames}
        tables._unify(spec)
        for section in (b.files.section for b in spec.behaviors):
            frame, users = tables.frames[section], tables.frames["impressions"][".user"]
            here = index_in(distinct(users), frame[".user"]) >= 0
            tables.frames[section] = frame.filter(pl.Series(here))
        return tables

    def _unify(self, spec: specs.Spec) -> None:
        self._check_zones(spec)
        for key in (".user", ".item", ".time"):
            self._unify_type(spec, key)

    def _read_impressions(self, spec: specs.Spec, columns: TypedColumns) -> pl.DataFrame:
        impressions = spec.impressions
        label, negatives = impressions.label, spec.negatives
        if label is None:
            pass
        elif label.impressions is not None:
            columns.add_number(".clicks", label.column, minimum=0)
            columns.add_number(".impressions", label.impressions, minimum=0)
        else:
            columns.add_label(".label", label)
        if impressions.weight is not None:
            columns.add_weight(".weight", impressions.weight)
        if impressions.user is not None:
            columns.add_id(".user", impressions.user)
        if impressions.item is not None:
            columns.add_id(".item", impressions.item)
        if impressions.time is not None:
            columns.add_time(".time", impressions.time)
            columns.note_strange_times(".time", impressions.time.name)
        if spec.split is not None and spec.split.column is not None:
            columns.add_text(".split", spec.split.column)
        for group in impressions.fields.values():
            for column in group:
                add_feature(columns, column)
        for history in spec.histories:
            add_history(columns, history)
        frame = self._distinct(columns, impressions.time)
        for history in spec.histories:
            if f".{history.name}.time" in columns.zoned:
                self._zoned[history.section] = columns.zoned[f".{history.name}.time"]
        if label is not None and label.impressions is not None:
            return _weighted_rows(impressions.files, frame)
        if label is None and negatives is not None:
            frame = frame.with_columns(pl.lit(1, pl.UInt8).alias(".label"))
        return frame

    def _read_behaviors(self, behaviors: specs.Behaviors) -> pl.DataFrame:
        columns = self._raw.columns(behaviors.files)
        columns.add_id(".user", behaviors.user)
        if behaviors.item is not None:
            columns.add_id(".item", behaviors.item)
        if behaviors.time is not None:
            columns.add_time(".time", behaviors.time)
            columns.note_strange_times(".time", behaviors.time.name)
        if behaviors.order is not None:
            columns.add_time(".order", specs.Time((behaviors.order,)))
        for column in (*behaviors.ad, *behaviors.extra):
            add_feature(columns, column)
        return self._distinct(columns, behaviors.time)

    def _read_side_table(self, side_table: specs.SideTable, key: str) -> pl.DataFrame:
        columns = self._raw.columns(side_table.files)
        without = columns.leave_out_without(side_table.key)
        columns.add_id(key, side_table.key)
        unique = [key]
        if side_table.valid_from is not None:
            columns.add_time(".time", side_table.valid_from)
            unique.append(".time")
        for column in side_table.columns:
            add_feature(columns, column)
        if side_table.title is not None:
            self.titles.append((columns.converted[key], columns.titles(side_table.title)))
            if side_table.title not in {side_table.key, *(c.column for c in side_table.columns)}:
                columns.raw = columns.raw.drop(side_table.title)  # it tells no two rows apart
        frame = self._distinct(columns, side_table.valid_from)
        if without:
            self.counts[columns.section][f"without {key.removeprefix('.')}"] = without
        conflicts = frame.group_by(unique, maintain_order=True).len().filter(pl.col("len") > 1)
        if len(conflicts):
            valid_from = side_table.valid_from
            raise DinError(
                f"{columns.path}: [{columns.section}] has {conflicts['len'][0]} different "
                f"rows of {side_table.key} = {conflicts[key][0]!r}"
                + (f" and {valid_from.name} = {conflicts['.time'][0]}" if valid_from else "")
                + f" ({len(conflicts):,} such cases); expected one. Leave one of them, or name in "
                "valid_from the column that says from when on a row is valid"
            )
        return frame

    def _distinct(self, columns: TypedColumns, time: specs.Time | None) -> pl.DataFrame:
        frame, dropped = columns.distinct()
        self.counts[columns.section] = {"read": columns.row_count, "duplicates": dropped}
        if columns.filtered:
            self.counts[columns.section]["left out by where"] = columns.filtered
        self.notes += columns.notes
        if time is not None and ".time" in columns.zoned:
            self._zoned[columns.section] = columns.zoned[".time"]
        return frame

    def _check_zones(self, spec: specs.Spec) -> None:
        if len({*self._zoned.values()}) > 1:
            zoned, plain = (
                next(s for s, zone in self._zoned.items() if zone is wanted)
                for wanted in (True, False)
            )
            raise DinError(
                f"{spec.path}: the times of [{zoned}] have a zone, and those of [{plain}] have "
                "none: by hours of difference a history would hold what came after its "
                "impression. Say in which "
                f'zone [{plain}] was written: time_zone = "Asia/Shanghai" for instance, or "UTC"'
            )

    def _unify_type(self, spec: specs.Spec, key: str) -> None:
        """Casts a key that tables are joined by to one type in all frames."""
        having_key = {
            section: frame for section, frame in self.frames.items() if key in frame.columns
        }
        types = {section: frame[key].dtype for section, frame in having_key.items()}
        if not types:
            return
        if key == ".time" and len({dtype.is_temporal() for dtype in types.values()}) > 1:
            raise DinError(
                f"{spec.path}: times are numbers in some tables and dates in others: "
                + ", ".join(f"[{section}] {dtype}" for section, dtype in types.items())
                + "; write all as numbers or all as dates"
            )
        target = common_type(types.values())
        for section, frame in having_key.items():
            if frame[key].dtype != target:
                self.frames[section] = frame.with_columns(pl.col(key).cast(target))

    def _note_meeting(self, spec: specs.Spec) -> None:
        """Raises where behaviours share no user or item with impressions; notes where few do."""
        impressions = self.frames["impressions"]
        for history in spec.histories:
            self._note_lists(spec, history)
        for behaviors in spec.behaviors:
            section = behaviors.files.section
            frame = self.frames[section]
            for key, column in ((".user", behaviors.user), (".item", behaviors.item)):
                if key not in frame.columns or key not in impressions.columns:
                    continue
                meets = index_in(distinct(impressions[key]), frame[key]) >= 0
                share = float(meets.mean()) if len(meets) else 0.0
                name = key.removeprefix(".")
                if not share and not spec.to_score:
                    raise DinError(
                        f"{behaviors.files.paths[0]}: no {name} of [{section}], {column} = "
                        f"{frame[key][0]!r} for instance, occurs in [impressions], which have "
                        f"{impressions[key][0]!r} for instance: all histories would be empty or "
                        f"strange. Write the {name}s of both in one way, or name the right column"
                    )
                self.counts[section][f"{name} found"] = int(meets.sum())
                if share < 0.1 and not spec.to_score:
                    self.notes.append(
                        f"[{section}] only {share:.2%} of the rows have a {name} that occurs in "
                        "[impressions]: are both written in one way?"
                    )

    def _note_lists(self, spec: specs.Spec, history: specs.ListedHistory) -> None:
        """As `_note_meeting`, of the items of a history in the row."""
        impressions = self.frames["impressions"]
        if history.item is None:
            return
        listed = impressions[f".{history.name}.item"].explode().drop_nulls()
        if not len(listed):
            self.notes.append(f"[{history.section}] every list is empty: samples have no history")
            return
        known = distinct(impressions[".item"])
        index = index_in(known, as_ids_of(listed, known.dtype).cast(known.dtype, strict=False))
        if not (index >= 0).any() and not spec.to_score:
            raise DinError(
                f"{spec.path}: no item of [{history.section}], {history.item.column} has "
                f"{listed[0]!r} for instance, occurs in [impressions], which have {known[0]!r} for "
                "instance: histories would be strange. Write both in one way, or name the right "
                "column"
            )
        padding = listed.filter(pl.Series(index < 0) & listed.cast(pl.String).is_in(_PADDING))
        if len(padding) > 0.05 * len(listed):
            share = len(padding) / len(listed)
            self.notes.append(
                f"[{history.section}] item is {padding[0]!r} in {share:.1%} of the behaviours, and "
                "in no row of [impressions]; if it only fills the lists up: "
                f'item = {{column = "{history.item.column}", …, null_values = ["{padding[0]}"]}}'
            )


class _RawTables:
    """Reads the files of a spec; sections with the same files share one reading."""

    def __init__(self, spec: specs.Spec, limit: int | None, text_tables: frozenset[str]):
        self._limit = limit
        self._text_tables = text_tables
        self._needed: dict[object, dict[str, str]] = {}
        self._sections: dict[str, dict[str, str]] = {}
        self._read: dict[object, tuple[TableReader, pl.DataFrame]] = {}
        self._waiting: dict[object, int] = {}
        self._notes: dict[str, None] = {}
        for files, columns in columns_of(spec):
            key = files.source()
            self._sections[files.section] = columns
            self._needed[key] = {**columns, **self._needed.get(key, {})}
            self._waiting[key] = self._waiting.get(key, 0) + 1

    def columns(self, files: specs.TableFiles) -> TypedColumns:
        """The columns of a section."""
        key = files.source()
        if key not in self._read:
            reader = TableReader(files)
            self._read[key] = reader, reader.read(self._needed[key], self._limit)
            self._notes |= dict.fromkeys(reader.notes)
        reader, frame = self._read[key]
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._read[key]
        raw = frame.select(list(self._sections[files.section]))
        return TypedColumns(files, reader, raw, self._text_tables)

    def notes(self) -> list[str]:
        """The notes of all readers."""
        return list(self._notes)


def columns_of(spec: specs.Spec) -> list[tuple[specs.TableFiles, dict[str, str]]]:
    """The files of each section, and {column: the key of the spec that names it}."""
    impressions, split = spec.impressions, spec.split
    first: dict[str, str] = {}
    for key, group in (("profile", "user"), ("ad", "ad"), ("context", "context")):
        first |= {c.column: key for c in impressions.fields[group]}
    for history in spec.histories:
        columns = [*([history.item] if history.item else []), *history.ad]
        first |= {c.column: f"[{history.name}]" for c in columns}
        first |= _times(history.time, "time of [history]")
    label = impressions.label
    first |= _present(
        (split.column if split else None, "column of [split]"),
        (label.column if label else None, "label"),
        (label.impressions if label else None, "impressions of label"),
        (impressions.weight, "weight"),
        (impressions.user, "user"),
        (impressions.item, "item"),
    )
    first |= _times(impressions.time, "time")
    tables = [(impressions.files, first)]
    for b in spec.behaviors:
        named = {c.column: "ad" for c in b.ad} | {c.column: "fields" for c in b.extra}
        named |= _present((b.user, "user"), (b.item, "item"), (b.order, "order"))
        tables.append((b.files, named | _times(b.time, "time")))
    for side_tables, key in ((spec.items, "item"), (spec.users, "user")):
        for s in side_tables:
            named = {c.column: "columns" for c in s.columns} | {s.key: key}
            named |= _present((s.title, "title"))
            tables.append((s.files, named | _times(s.valid_from, "valid_from")))
    return [
        (files, columns | {c: "where" for c, _ in files.where if c not in columns})
        for files, columns in tables
    ]


def _present(*named: tuple[str | None, str]) -> dict[str, str]:
    return {column: key for column, key in named if column is not None}


def _times(time: specs.Time | None, key: str) -> dict[str, str]:
    return {} if time is None else dict.fromkeys(time.columns, key)


def _weighted_rows(files: specs.TableFiles, frame: pl.DataFrame) -> pl.DataFrame:
    """Rows with numbers of clicks and impressions as weighted samples of label 1 and 0."""
    invalid = frame.filter(pl.col(".clicks") > pl.col(".impressions"))
    if len(invalid):
        raise DinError(
            f"{files.paths[0]}: [{files.section}] has {len(invalid):,} rows with more clicks than "
            f"impressions, {invalid['.clicks'][0]:g} of {invalid['.impressions'][0]:g} for "
            "instance; expected clicks among the impressions"
        )
    if not frame[".impressions"].sum():
        raise DinError(
            f"{files.paths[0]}: every row of [{files.section}] has 0 impressions; expected their "
            "number"
        )
    parts = [
        frame.with_columns(pl.lit(label, pl.UInt8).alias(".label"), weight.alias(".weight"))
        for label, weight in (
            (1, pl.col(".clicks")),
            (0, pl.col(".impressions") - pl.col(".clicks")),
        )
    ]
    row = ".row"
    both = pl.concat([part.with_row_index(row) for part in parts]).filter(pl.col(".weight") > 0)
    return both.sort(row, maintain_order=True).drop(row, ".clicks", ".impressions")
