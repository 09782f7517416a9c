"""Reads the TOML file of a spec and checks each section, as far as possible without the data."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from din_jax.errors import DinError
from din_jax.prepare.log import split_reader
from din_jax.prepare.log.spec import (
    Behaviors,
    Column,
    Impressions,
    SideTable,
    Spec,
    TableFiles,
    TableOptions,
)
from din_jax.prepare.log.spec_checks import check_across_sections
from din_jax.prepare.log.times import UNITS
from din_jax.prepare.log.toml_section import Section, suggestion

_FILE_KEYS = ("path", "delimiter")
_KEYS = {
    "impressions": (
        *(*_FILE_KEYS, "label", "user", "item", "time", "time_unit"),
        *("profile", "ad", "context"),
    ),
    "behaviours": (*_FILE_KEYS, "user", "item", "time", "order", "prior", "ad"),
    "items": (*_FILE_KEYS, "item", "valid_from", "columns"),
    "users": (*_FILE_KEYS, "user", "valid_from", "columns"),
    "tables": ("min_count", "unknown_share", "buckets"),
    "column": ("column", "table", "separator"),
}
_SECTIONS = ("impressions", "behaviours", "items", "users", "split", "tables")


def read(path: str | Path, data: str | Path | None = None) -> Spec:
    """Reads a spec.

    Args:
      path: the TOML file.
      data: the folder that the paths of the tables start from; by default the spec's own.

    Raises:
      DinError: the file is missing or not TOML; a key is missing, unknown or of a wrong type; or
        keys contradict one another.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            source = tomllib.load(file)
    except OSError as error:
        if path.is_dir():
            problem = "is a folder"
        elif path.is_file():
            problem = f"cannot be read ({error.strerror})"
        else:
            problem = "no such file"
        raise DinError(
            f"{path}: {problem}; expected the spec of a log, a TOML file: docs/your-data.md has "
            "one to start from"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DinError(
            f'{path}: not TOML: {error}; expected lines like label = "click" below headers like '
            "[impressions]"
        ) from error
    top = Section(path, "", source, _SECTIONS)
    return _Reader(path, Path(data) if data is not None else path.parent, top).spec()


class _Reader:
    """Reads the sections of a spec."""

    def __init__(self, path: Path, folder: Path, top: Section):
        self.path, self.folder, self.top = path, folder, top
        tables = top.value.get("tables", {})
        if not isinstance(tables, dict):
            raise top.invalid("tables", "sections [tables.NAME]")
        self.options = {name: self._table_options(name, value) for name, value in tables.items()}

    def spec(self) -> Spec:
        for required in ("impressions", "split"):
            if required not in self.top:
                raise self.top.missing(required, f"a section [{required}]")
        impressions = self._impressions()
        behaviors = tuple(
            self._behaviors(name, value)
            for name, value in self._one_or_several("behaviours", default="history").items()
        )
        items, users = self._side_tables("items", "item"), self._side_tables("users", "user")
        spec = Spec(
            path=self.path,
            impressions=impressions,
            behaviors=behaviors,
            items=items,
            users=users,
            split=split_reader.read_split(self.path, self.top.value["split"]),
            tables=self._tables(impressions, behaviors, items + users),
            source=self.top.value,
        )
        check_across_sections(spec)
        return spec

    def _one_or_several(self, kind: str, default: str = "") -> dict[str, Any]:
        """{name: section}: of each [kind.NAME], or of [kind] alone, whose name is `default`."""
        if kind not in self.top:
            return {}
        value = self.top.value[kind]
        several = isinstance(value, dict) and value and _KEYS[kind][0] not in value
        if several and all(isinstance(section, dict) for section in value.values()):
            return dict(value)
        return {default: value}

    def _section(self, kind: str, name: str, value: Any) -> Section:
        return Section(self.path, f"{kind}.{name}" if name else kind, value, _KEYS[kind])

    def _files(self, section: Section) -> TableFiles:
        path = section.text("path", "a Parquet or CSV file, or a folder of them")
        expected = "the one character between the values of a CSV"
        delimiter = section.optional_text("delimiter", expected)
        if delimiter is not None and len(delimiter.encode()) != 1:
            raise section.invalid("delimiter", expected)
        return TableFiles(section.name, self.folder / path, delimiter)

    def _columns(self, section: Section, key: str) -> tuple[Column, ...]:
        """Reads a list of columns, or a section {field: {column, table, separator}}."""
        value = section.value.get(key, [])
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            value = {name: {} for name in value}
        if not isinstance(value, dict):
            raise section.invalid(
                key, f'a list of columns, ["a", "b"], or a section [{section.name}.{key}] of them'
            )
        return tuple(self._column(section, key, name, options) for name, options in value.items())

    def _column(self, section: Section, key: str, name: str, options: Any) -> Column:
        inner = Section(self.path, f"{section.name}.{key}.{name}", options, _KEYS["column"])
        if not name.isidentifier():
            raise DinError(
                f"{section.location} {key}: {name!r} can't be a field's name, which has only "
                "letters, digits and _; give it another one: "
                f"[{section.name}.{key}] NAME = {{column = {name!r}}}"
            )
        table = inner.optional_text("table", "the name of an embedding table") or name
        column = Column(
            name=name,
            column=inner.optional_text("column") or name,
            table=table,
            separator=inner.optional_text("separator", "what stands between values"),
            numeric=self.options.get(table, TableOptions()).buckets is not None,
        )
        if column.numeric and column.separator:
            raise DinError(
                f"{inner.location} has a separator, but table {table!r} has buckets, whose fields "
                "have one number each. Remove one of the two"
            )
        return column

    @staticmethod
    def _check_distinct(section: Section, *keys: str) -> None:
        """Raises if two of these keys, as far as they are present, name one column."""
        key_of_column: dict[str, str] = {}
        for key in filter(section.__contains__, keys):
            column = section.text(key)
            if column in key_of_column:
                raise DinError(
                    f"{section.location} {key_of_column[column]} and {key} are both {column!r}; "
                    "expected a column of its own for each"
                )
            key_of_column[column] = key

    def _impressions(self) -> Impressions:
        section = self._section("impressions", "", self.top.value["impressions"])
        self._check_distinct(section, "label", "user", "item", "time")
        units = f"the unit of times that are numbers: {', '.join(UNITS)}"
        time_unit = section.optional_text("time_unit", units)
        if time_unit is not None and time_unit not in UNITS:
            raise section.invalid("time_unit", units)
        return Impressions(
            files=self._files(section),
            label=section.text("label"),
            user=section.text("user"),
            item=section.text("item"),
            time=section.text("time"),
            time_unit=time_unit,
            fields={
                "user": self._columns(section, "profile"),
                "ad": self._columns(section, "ad"),
                "context": self._columns(section, "context"),
            },
        )

    def _behaviors(self, name: str, value: Any) -> Behaviors:
        single = value is self.top.value["behaviours"]
        section = self._section("behaviours", "" if single else name, value)
        self._check_distinct(section, "user", "item", "time")
        time, prior = section.optional_text("time"), section.flag("prior")
        if time is None and not prior:
            raise DinError(
                f"{section.location} has no 'time': nothing says which behaviours lie before an "
                "impression. Name the column, or declare with prior = true that all of them lie "
                "before all impressions"
            )
        if time is not None and prior:
            raise DinError(
                f"{section.location} has both time and prior = true; with a time each history "
                "ends strictly before its impression: remove prior"
            )
        return Behaviors(
            name=name,
            files=self._files(section),
            user=section.text("user"),
            item=section.text("item"),
            time=time,
            order=section.optional_text("order"),
            ad=self._columns(section, "ad"),
        )

    def _side_tables(self, kind: str, key: str) -> tuple[SideTable, ...]:
        side_tables = []
        for name, value in self._one_or_several(kind).items():
            section = self._section(kind, name, value)
            self._check_distinct(section, key, "valid_from")
            side_table = SideTable(
                files=self._files(section),
                key=section.text(key),
                valid_from=section.optional_text("valid_from"),
                columns=self._columns(section, "columns"),
            )
            if not side_table.columns:
                raise section.missing("columns", 'a list of columns, ["a", "b"]')
            side_tables.append(side_table)
        return tuple(side_tables)

    def _table_options(self, name: str, value: Any) -> TableOptions:
        section = self._section("tables", name, value)
        options: dict[str, Any] = {}
        for key, minimum in (("min_count", 1), ("buckets", 2)):
            if key in section:
                options[key] = section.integer(key, minimum)
        if "unknown_share" in section:
            share = section.value["unknown_share"]
            if type(share) not in (int, float) or not 0 <= share <= 1:
                raise section.invalid("unknown_share", "a share from 0 to 1")
            options["unknown_share"] = float(share)
        if "buckets" in options and len(options) > 1:
            raise DinError(
                f"{section.location} has buckets, which are for numbers, but also min_count or "
                "unknown_share, which are for ids. Remove one or the other"
            )
        return TableOptions(**options)

    def _tables(
        self,
        impressions: Impressions,
        behaviors: Iterable[Behaviors],
        side_tables: Iterable[SideTable],
    ) -> dict[str, TableOptions]:
        """{embedding table: its options}, of every table that a column names."""
        columns = [c for group in impressions.fields.values() for c in group]
        columns += [c for b in behaviors for c in b.ad]
        columns += [c for side_table in side_tables for c in side_table.columns]
        names = dict.fromkeys(["item", "user", *(c.table for c in columns)])
        for name, options in self.options.items():
            if name not in names:
                raise DinError(
                    f"{self.path}: [tables.{name}] names no embedding table"
                    f"{suggestion(name, names)}; the tables are: {', '.join(names)}"
                )
            if name in ("item", "user") and options.buckets:
                raise DinError(
                    f"{self.path}: [tables.{name}] has buckets, but the table has ids; remove "
                    "buckets"
                )
        return {name: self.options.get(name, TableOptions()) for name in names}
