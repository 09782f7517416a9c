"""Converts the columns of a table to the types that a spec needs: labels, ids, times, features."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from din_jax.data.store_checks import WEIGHTS
from din_jax.errors import DinError
from din_jax.prepare.log import dates, value_notes
from din_jax.prepare.log.spec import Label, TableFiles, Time
from din_jax.prepare.log.table_reader import TableReader
from din_jax.prepare.log.text_values import as_text, is_one_of, most_frequent
from din_jax.prepare.log.toml_section import shorten
from din_jax.prepare.log.value_types import whole_numbers

_SECONDS_OF_2001 = 10**9


class TypedColumns:
    """The columns of a table that a spec names, checked and converted one by one.

    A value that can't be converted is an error, which names the first such row.

    Args:
      files: of the table.
      reader: has read them.
      raw: the columns that it read; those of `files.where` too.
      text_tables: the embedding tables whose ids stay text, even if it is like 4.0.

    Attributes:
      section: of the spec.
      raw: the columns as they were read, of the rows that count.
      converted: {name: values}.
      row_count: how many rows the files have.
      filtered: how many of them `files.where` left out.
      notes: of what is not an error but may be a mistake.
      zoned: {column of times: whether they have zones}, of those that are dates.
    """

    def __init__(
        self,
        files: TableFiles,
        reader: TableReader,
        raw: pl.DataFrame,
        text_tables: frozenset[str] = frozenset(),
    ):
        self.text_tables = text_tables
        self.section, self.files, self.reader = files.section, files, reader
        self.row_count = len(raw)
        self.notes: list[str] = []
        self.zoned: dict[str, bool] = {}
        self.converted: dict[str, pl.Series] = {}
        self._row: np.ndarray | None = None
        if not self.row_count:
            raise DinError(f"{reader.path}: the table [{self.section}] has no rows")
        self.raw = raw
        for column, values in files.where:
            kept, absent = is_one_of(self.raw[column], values)
            kept = kept.fill_null(False)
            self._note_absent(column, absent, "where")
            if not kept.any():
                raise DinError(
                    f"{reader.path}: no row of [{self.section}] has {column} = "
                    f"{' or '.join(map(repr, values))} as where demands; the column has "
                    + most_frequent(self.raw[column])
                )
            self._keep(kept)
        self.filtered = self.row_count - len(self.raw)

    def _note_absent(self, column: str, values: list[str], key: str) -> None:
        if values:
            self.notes.append(
                f"[{self.section}] no row has {column} = {' or '.join(map(repr, values))}, which "
                f"{key} names; the column has {most_frequent(self.raw[column])}"
            )

    def _keep(self, kept: pl.Series) -> None:
        index = np.flatnonzero(kept.to_numpy())
        self._row = index if self._row is None else self._row[index]
        self.raw = self.raw.filter(kept)

    def leave_out_without(self, column: str) -> int:
        """Leaves out the rows that lack a value, unless all do; returns how many they are."""
        values = self.raw[column]
        kept = (values.fill_nan(None) if values.dtype.is_float() else values).is_not_null()
        missing = len(kept) - int(kept.sum())
        if missing and kept.any():
            self._keep(kept)
            self.notes.append(
                f"[{self.section}] {missing:,} of {len(kept):,} rows have no {column!r}, by which "
                "the table is joined, and are left out"
            )
            return missing
        return 0

    @property
    def path(self) -> Path:
        """The file or folder of the table, as messages name it."""
        return self.reader.path

    def of_elements(self, column: str, lists: pl.Series) -> TypedColumns:
        """The elements of lists, end to end, as a column; messages name the rows of the lists."""
        flat = lists.filter(lists.list.len() > 0).explode().alias(column)
        elements = copy.copy(self)
        elements.raw, elements.notes, elements.converted = flat.to_frame(), [], {}
        elements.zoned = {}
        row = np.repeat(np.arange(len(lists)), lists.list.len().fill_null(0).to_numpy())
        elements._row = row if self._row is None else self._row[row]
        return elements

    def distinct(self) -> tuple[pl.DataFrame, int]:
        """All converted columns, without rows that equal an earlier one; the number of those.

        Rows are equal if they are so in every column read.
        """
        frame = pl.DataFrame(list(self.converted.values()))
        if self.files.keep_duplicates:
            return frame, 0
        first = self.raw.is_duplicated()
        if not first.any():
            return frame, 0
        row = "row of the table"
        rows = self.raw.with_row_index(row).unique(
            subset=self.raw.columns, keep="first", maintain_order=True
        )[row]
        dropped = len(frame) - len(rows)
        if dropped > 0.01 * len(frame):
            self.notes.append(
                f"[{self.section}] {dropped / len(frame):.1%} of the rows ({dropped:,}) equal an "
                "earlier row in every column that the spec reads, and count once; if they are "
                "events of their own, as where "
                'times are hours or days: duplicates = "keep"'
            )
        return frame[rows], dropped

    def add_id(self, name: str, column: str, *, required: bool = True) -> None:
        """Adds an id, which every row must have: integers or text."""
        ids = self.ids(column, self.raw[column])
        self.notes += value_notes.notes(self.section, name.strip("."), ids, column, "key")
        self.add(name, self._require_values(column, ids) if required else ids)

    def add_label(self, name: str, label: Label) -> None:
        """Adds labels, 0 or 1, or null where a value is missing."""
        column, raw = label.column, self.raw[label.column]
        if label.positive is not None:
            clicks, absent = is_one_of(raw, label.positive)
            if absent and not clicks.any():
                raise DinError(
                    f"{self.reader.path}: no row of [{self.section}] has a {column!r} of label's "
                    f"positive = {list(label.positive)}; the column has {most_frequent(raw)}"
                )
            self._note_absent(column, absent, "label")
            self.add(name, clicks.cast(pl.UInt8))
            return
        if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Boolean, pl.Null)):
            raise self.type_error(column, raw.dtype, "labels, 0 or 1")
        if raw.dtype == pl.String and raw.str.contains("^(?i:true|false)$").all():
            raw = raw.str.to_lowercase() == "true"
        number = raw.cast(pl.Float64, strict=False).fill_nan(None)
        if label.at_least is not None:
            self.refuse(column, number.is_null() & raw.is_not_null(), "a number")
            self.add(name, (number >= label.at_least).cast(pl.UInt8))
            return
        self.refuse(
            column,
            ~((number == 0) | (number == 1)).fill_null(False) & raw.is_not_null(),
            "a label, 0 or 1",
            lambda: (
                f"Write the column as 0 and 1; it has {most_frequent(raw)}. Or say which are "
                f"clicks: label = {{column = {column!r}, at_least = 4}} for numbers, "
                f'{{column = {column!r}, positive = ["…"]}} for names; or name what means no '
                'label: null_values = ["NULL"]'
            ),
        )
        self.add(name, number.cast(pl.UInt8))

    def add_number(self, name: str, column: str, *, minimum: float) -> None:
        """Adds finite numbers, which every row must have, of at least `minimum`."""
        raw = self._require_values(column, self.raw[column])
        numbers = self.numbers(column, raw)
        invalid = (numbers.is_null() | ~numbers.is_finite() | (numbers < minimum)).fill_null(True)
        self.refuse(column, invalid, f"a number from {minimum:g} on")
        self.add(name, numbers)

    def add_weight(self, name: str, column: str) -> None:
        """Adds weights of samples, which every row must have."""
        self.add_number(name, column, minimum=0)
        weight, (least, greatest) = self.converted[name], WEIGHTS
        self.refuse(
            column,
            (weight > 0) & ((weight < least) | (weight > greatest)),
            f"0, or a number from {least:g} to {greatest:g}",
        )

    def add_time(self, name: str, time: Time) -> None:
        """Adds a time, which every row must have: numbers, dates or date-times, those in UTC."""
        column = time.columns[0]
        raw = self.raw[column]
        if len(time.columns) > 1:
            parts = [as_text(self.raw[c]) for c in time.columns]
            raw = pl.select(pl.concat_str(parts, separator=" ")).to_series().alias(column)
        if time.format is not None and raw.dtype.is_numeric():
            raw = as_text(raw)
        self._require_values(column, raw)
        if raw.dtype == pl.String:
            values, zoned = dates.parse(raw, time, self._refuse_in(column, raw))
        elif raw.dtype == pl.Date:
            values, zoned = dates.in_utc(raw.cast(pl.Datetime("us")), time.zone), None
        elif isinstance(raw.dtype, pl.Datetime):
            zoned = raw.dtype.time_zone is not None
            if zoned:
                raw = raw.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            values = raw.cast(pl.Datetime("us"))
            values = values if zoned else dates.in_utc(values, time.zone)
        elif raw.dtype.is_integer():
            values, zoned = raw.cast(pl.Int64, strict=False), None
        elif raw.dtype.is_float():
            if raw.dtype == pl.Float32:
                self._note_coarse_times(column, raw)
            values, zoned = _finite_or_null(raw.cast(pl.Float64)), None
        else:
            raise self.type_error(column, raw.dtype, "times: numbers, dates or dates with times")
        in_zone = f" of {time.zone}, which has none in the hour that its clocks skip"
        self.refuse(column, values.is_null(), "a time" + in_zone * bool(time.zone), raw=raw)
        if values.dtype.is_temporal():
            if zoned is not None or time.zone is not None:  # whole days have none
                self.zoned[name] = bool(zoned) or time.zone is not None
        elif time.zone is not None:
            self.notes.append(
                f"[{self.section}] time_zone = {time.zone!r} has no meaning: the times are numbers"
            )
        self.add(name, values)

    def add_text(self, name: str, column: str) -> None:
        """Adds text, which every row must have: the names of splits."""
        ids = self._require_values(column, self.ids(column, self.raw[column]))
        self.add(name, ids.cast(pl.String))

    def titles(self, column: str) -> pl.Series:
        """A column as text: display names."""
        raw = self.raw[column]
        if raw.dtype.is_nested():
            raise self.type_error(column, raw.dtype, "text")
        return as_text(raw)

    def add(self, name: str, values: pl.Series) -> None:
        """Adds converted values."""
        self.converted[name] = values.alias(name)

    def ids(self, column: str, raw: pl.Series, lists: bool = False) -> pl.Series:
        """Checks that values are ids, or with `lists` lists of ids: whole numbers or text."""
        inner = raw.dtype
        if lists and isinstance(inner, (pl.List, pl.Array)):
            raw = raw.cast(pl.List(inner.inner))
            inner = inner.inner  # type: ignore[assignment]
            if inner.is_float():
                return self._whole_lists(column, raw)
        if raw.dtype.is_float() or raw.dtype == pl.String:
            try:
                whole = whole_numbers(raw)
            except OverflowError as error:
                raise DinError(
                    f"{self.reader.path}: column {column!r} of [{self.section}] has {error}, a "
                    "whole number written as a float; from 2⁵³ on floats are not exact, so that "
                    "ids would be mixed up. Write the column as whole numbers or text, from the "
                    "source"
                ) from error
            raw = raw if whole is None else whole
            inner = raw.dtype
        if inner.is_integer() or inner == pl.String:
            return raw
        if inner in (pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Null):
            return raw.cast(pl.List(pl.String) if raw.dtype == pl.List else pl.String)
        if lists and isinstance(inner, pl.List | pl.Array):
            raise self.type_error(
                column,
                raw.dtype,
                "ids, or lists of them",
                'or name which one of the lists\' values is read, take = "first" or "last"',
            )
        if isinstance(inner, pl.List | pl.Array):
            raise self.type_error(
                column,
                raw.dtype,
                "one id a row",
                "if this is the history that stands in the impression's own row, name it in a "
                f"section [history] with item = {column!r}",
            )
        raise self.type_error(
            column,
            raw.dtype,
            "ids: whole numbers or text" + (", or lists of them" if lists else ""),
            "write them as whole numbers, or give their table buckets: [tables.NAME] buckets = 20"
            if inner.is_float() and lists
            else "write them so",
        )

    def _whole_lists(self, column: str, raw: pl.Series) -> pl.Series:
        try:
            whole = whole_numbers(raw.explode())
        except OverflowError:
            whole = None
        if whole is None:
            raise self.type_error(column, raw.dtype, "lists of whole numbers or text")
        return raw.cast(pl.List(pl.Int64))

    def numbers(self, column: str, raw: pl.Series) -> pl.Series:
        """Values as numbers; null where missing."""
        if not (raw.dtype.is_numeric() or raw.dtype in (pl.String, pl.Boolean, pl.Null)):
            raise self.type_error(column, raw.dtype, "numbers")
        numbers = raw.cast(pl.Float64, strict=False)
        self.refuse(column, numbers.is_null() & raw.is_not_null(), "a number")
        return numbers

    def note_strange_times(self, name: str, column: str) -> None:
        """Notes times that programs write where there is none, among others."""
        values = self.converted[name]
        if values.dtype.is_temporal():
            strange = (values.dt.year() <= 1970) | (values.dt.year() >= 9999)
        else:
            late = bool(values.max() > _SECONDS_OF_2001)  # type: ignore[operator]
            strange = ((values == 0) | (values == -1)) & late
        share = float(strange.mean() or 0)  # type: ignore[arg-type]
        if 0 < share < 0.5:
            self.notes.append(
                f"[{self.section}] column {column!r} is {values.filter(strange)[0]} in "
                f"{int(strange.sum()):,} of {len(values):,} rows, as where there is no time; if it "
                "is none, leave these rows out"
            )

    def _note_coarse_times(self, column: str, raw: pl.Series) -> None:
        largest = float(np.float32(raw.abs().max() or 0))  # type: ignore[arg-type]
        step = float(np.spacing(np.float32(largest)))
        if step >= 1:
            shared = int(raw.is_duplicated().sum())
            self.notes.append(
                f"[{self.section}] column {column!r} is Float32, which near {largest:.0f} moves "
                "in steps of "
                f"{step:.0f}: {shared / len(raw):.1%} of the rows share their time with another "
                "one, and what has one time is in no other's history; write it as whole numbers "
                "or Float64, from the source"
            )

    def _require_values(self, column: str, raw: pl.Series) -> pl.Series:
        self.refuse(column, raw.is_null(), "a value in every row")
        return raw

    def _refuse_in(self, column: str, raw: pl.Series) -> Callable[[pl.Series, str], None]:
        return lambda invalid, expected: self.refuse(column, invalid, expected, raw=raw)

    def refuse(
        self,
        column: str,
        invalid: pl.Series,
        expected: str,
        fix: Callable[[], str] | None = None,
        raw: pl.Series | None = None,
    ) -> None:
        """Raises for the first invalid row, if there is one."""
        row = invalid.arg_max() if invalid.any() else None
        if row is None:
            return
        value = (self.raw[column] if raw is None else raw)[row]
        value = value.to_list() if isinstance(value, pl.Series) else value
        few = 2 * invalid.sum() < len(invalid)
        advice = (
            fix()
            if fix
            else ("Fix or delete the row" if few else "Write the column so")
            + f" ({invalid.sum():,} of {len(invalid):,} rows have this error)"
        )
        place = int(row if self._row is None else self._row[row])
        raise DinError(
            f"{self.reader.row_location(place)}: column {column!r} of [{self.section}] is "
            f"{'empty' if value is None else shorten(value)}; expected {expected}. {advice}"
        )

    def type_error(
        self, column: str, dtype: pl.DataType, expected: str, fix: str = "write them so"
    ) -> DinError:
        """The error of a column that has another type than expected."""
        return DinError(
            f"{self.reader.path}: column {column!r} of [{self.section}] has type "
            f"{_short(dtype)}; expected {expected}; {_of_nested(column, dtype) or fix}"
        )


def _short(dtype: pl.DataType) -> str:
    text = str(dtype)
    return text if len(text) <= 200 else text[:199] + "…"


def _of_nested(column: str, dtype: pl.DataType) -> str:
    """How to name a field of a nested column; "" of others."""
    while isinstance(dtype, pl.List | pl.Array):
        dtype = dtype.inner  # type: ignore[assignment]
    if not isinstance(dtype, pl.Struct) or not dtype.fields:
        return ""
    return f'name one of its fields, as {{ column = "{column}.{dtype.fields[0].name}" }}'


def _finite_or_null(numbers: pl.Series) -> pl.Series:
    """Null in place of infinities and NaN."""
    return pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
