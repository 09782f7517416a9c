"""Reads the TOML file of a spec and checks each section, as far as possible without the data."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from din_jax.errors import DinError
from din_jax.prepare.log import section_values, split_reader
from din_jax.prepare.log.section_values import FILE_KEYS, TIME_KEYS
from din_jax.prepare.log.spec import (
    Behaviors,
    Column,
    Impressions,
    ListedHistory,
    Negatives,
    SideTable,
    Spec,
    TableOptions,
)
from din_jax.prepare.log.spec_checks import check_across_sections
from din_jax.prepare.log.toml_section import Section, suggestion
from din_jax.prepare.negative_laws import EXPECTED_LAW, read_law

_KEYS = {
    "impressions": (
        *(*FILE_KEYS, "columns", "label", "user", "item", "time", *TIME_KEYS),
        *("weight", "equal_times", "profile", "ad", "context"),
    ),
    "behaviours": (
        *(*FILE_KEYS, "columns", "user", "item", "time", *TIME_KEYS),
        *("order", "prior", "ad", "fields"),
    ),
    "history": ("item", "time", *TIME_KEYS, "ad", "newest_first"),
    "items": (*FILE_KEYS, "item", "valid_from", *TIME_KEYS, "columns", "title"),
    "users": (*FILE_KEYS, "user", "valid_from", *TIME_KEYS, "columns"),
    "negatives": ("per_positive", "by", "category", "exclude"),
    "tables": ("min_count", "unknown_share", "buckets", "ids"),
}
_FIRST = {
    "behaviours": ("path",),
    "items": ("path",),
    "users": ("path",),
    "history": ("item", "ad"),
}
_SECTIONS = (
    *("impressions", "behaviours", "history", "items", "users"),
    *("negatives", "split", "tables"),
)


def read(path: str | Path, data: str | Path | None = None, *, to_score: bool = False) -> Spec:
    """Reads a spec.

    Args:
      path: the TOML file.
      data: the folder that the paths of the tables start from; by default the spec's own.
      to_score: whether the rows are to be scored: they need no label and no split.

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
            "one to start from, and python -m din_jax.prepare spec writes one"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DinError(
            f'{path}: not TOML: {error}; expected lines like label = "click" below headers like '
            "[impressions]"
        ) from error
    return parse(source, path, Path(data) if data is not None else path.parent, to_score=to_score)


def parse(source: dict[str, Any], path: Path, folder: Path, *, to_score: bool = False) -> Spec:
    """Reads a spec that has been parsed.

    Args:
      source: the TOML, or the JSON that a store's origin has of it.
      path: what messages name.
      folder: see `read`.
      to_score: see `read`.

    Raises:
      DinError: see `read`.
    """
    return _Reader(path, folder, Section(path, "", source, _SECTIONS), to_score).spec()


class _Reader:
    """Reads the sections of a spec."""

    def __init__(self, path: Path, folder: Path, top: Section, to_score: bool):
        self.path, self.folder, self.top, self.to_score = path, folder, top, to_score
        tables = top.value.get("tables", {})
        if not isinstance(tables, dict):
            raise top.invalid("tables", "sections [tables.NAME]")
        self.options = {name: self._table_options(name, value) for name, value in tables.items()}

    def spec(self) -> Spec:
        for required in ("impressions", *(() if self.to_score else ("split",))):
            if required not in self.top:
                raise self.top.missing(required, f"a section [{required}]")
        impressions = self._impressions()
        behaviors = tuple(
            self._behaviors(name, value)
            for name, value in self._one_or_several("behaviours", default="history").items()
        )
        histories = tuple(
            self._history(name, value)
            for name, value in self._one_or_several("history", default="history").items()
        )
        items = self._side_tables("items", "item")
        users = self._side_tables("users", "user")
        spec = Spec(
            path=self.path,
            impressions=impressions,
            behaviors=behaviors,
            histories=histories,
            items=items,
            users=users,
            negatives=self._negatives() if "negatives" in self.top else None,
            split=split_reader.read_split(self.path, self.top.value["split"])
            if "split" in self.top
            else None,
            tables=self._tables(impressions, behaviors, histories, items + users),
            source=self.top.value,
            to_score=self.to_score,
        )
        check_across_sections(spec, to_score=self.to_score)
        return spec

    def _one_or_several(self, kind: str, default: str = "") -> dict[str, Any]:
        """{name: section}: of each [kind.NAME], or of [kind] alone, whose name is `default`."""
        if kind not in self.top:
            return {}
        value = self.top.value[kind]
        several = isinstance(value, dict) and value and not set(_FIRST[kind]) & set(value)
        if several and all(isinstance(section, dict) for section in value.values()):
            return dict(value)
        return {default: value}

    def _section(self, kind: str, name: str, value: Any) -> Section:
        return Section(self.path, f"{kind}.{name}" if name else kind, value, _KEYS[kind])

    def _columns(self, section: Section, key: str) -> tuple[Column, ...]:
        return section_values.columns(section, key, self.options)

    @staticmethod
    def _check_distinct(section: Section, *keys: str) -> None:
        """Raises if two of these keys, as far as they are present, name one column."""
        key_of_column: dict[str, str] = {}
        for key in filter(section.__contains__, keys):
            column = section.value[key]
            if not isinstance(column, str):
                continue
            if column in key_of_column:
                raise DinError(
                    f"{section.location} {key_of_column[column]} and {key} are both {column!r}; "
                    "expected a column of its own for each"
                )
            key_of_column[column] = key

    def _impressions(self) -> Impressions:
        section = self._section("impressions", "", self.top.value["impressions"])
        self._check_distinct(section, "label", "user", "item", "time", "weight")
        label = section_values.label(section)
        if label is None and not self.to_score and "negatives" not in self.top:
            raise section.missing(
                "label",
                "the name of a column of 0 and 1. If each row is something that a user took, say "
                "how to draw what was not taken: [negatives]. If the rows are to be scored by a "
                "model of another store: --like",
            )
        if label is not None and label.impressions is not None and "weight" in section:
            raise DinError(
                f"{section.location} has numbers of clicks and impressions, which are the weights, "
                "and weight. Remove one of the two"
            )
        equal_times = section.value.get("equal_times", "excluded")
        if equal_times not in ("excluded", "in_order"):
            raise section.invalid("equal_times", '"excluded" or "in_order"')
        return Impressions(
            files=section_values.files(section, self.folder),
            label=label,
            user=section.optional_text("user"),
            item=section.optional_text("item"),
            time=section_values.time(section),
            weight=section.optional_text("weight"),
            in_order=equal_times == "in_order",
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
        time, prior = section_values.time(section), section.flag("prior")
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
        behaviors = Behaviors(
            name=name,
            files=section_values.files(section, self.folder),
            user=section.text("user"),
            item=section.optional_text("item"),
            time=time,
            order=section.optional_text("order"),
            ad=self._columns(section, "ad"),
            extra=self._columns(section, "fields"),
        )
        if behaviors.item is None and not behaviors.ad:
            raise section.missing(
                "item",
                'the name of a column; or in ad columns that the ad has too: ad = ["category"]',
            )
        return behaviors

    def _history(self, name: str, value: Any) -> ListedHistory:
        single = value is self.top.value["history"]
        section = self._section("history", "" if single else name, value)
        item = self._column_of_lists(section, "item")
        ad = self._columns(section, "ad")
        if item is None and not ad:
            raise section.missing("item", "the name of a column of lists")
        times = self._column_of_lists(section, "time", "column", "separator", "list")
        if times is not None:
            section.value = {**section.value, "time": times.column}
            if times.separator is None and times.list is None:  # as the others are written
                like = item or ad[0]
                times = dataclasses.replace(times, separator=like.separator, list=like.list)
        return ListedHistory(
            name=name,
            item=item,
            time=section_values.time(section),
            time_lists=times,
            ad=ad,
            newest_first=section.flag("newest_first"),
        )

    def _column_of_lists(self, section: Section, key: str, *accepted: str) -> Column | None:
        """The column of a key of [history], with some of a column's keys or all; or None."""
        if key not in section:
            return None
        stated = section.value[key]
        inner = {"column": stated} if isinstance(stated, str) and stated else stated
        if not isinstance(inner, dict) or "column" not in inner:
            raise section.invalid(key, 'a column of lists, or {column = "a", separator = ","}')
        if accepted:
            Section(section.path, f"{section.name}.{key}", inner, accepted)
        return section_values.column(section, key, key, {**inner, "table": key}, self.options)

    def _side_tables(self, kind: str, key: str) -> tuple[SideTable, ...]:
        side_tables = []
        for name, value in self._one_or_several(kind).items():
            section = self._section(kind, name, value)
            self._check_distinct(section, key, "valid_from")
            side_table = SideTable(
                files=section_values.files(section, self.folder, header="header"),
                key=section.text(key),
                valid_from=section_values.time(section, "valid_from"),
                columns=self._columns(section, "columns"),
                # Nobody reads the titles of rows to score, whose table may lack them.
                title=None if self.to_score else section.optional_text("title"),
            )
            if not side_table.columns and "title" not in section:
                raise section.missing("columns", 'a list of columns, ["a", "b"]')
            side_tables.append(side_table)
        return tuple(side_tables)

    def _negatives(self) -> Negatives:
        section = self._section("negatives", "", self.top.value["negatives"])
        if "per_positive" not in section:
            raise section.missing("per_positive", "how many to draw for each interaction")
        by = section.text("by", EXPECTED_LAW)
        try:
            read_law(by)
        except DinError as error:
            raise section.invalid("by", EXPECTED_LAW) from error
        exclude = section.value.get("exclude", "before")
        if exclude not in ("before", "ever"):
            raise section.invalid("exclude", '"before" or "ever"')
        category = section.optional_text("category", "the ad's field")
        if (by == "in_category") != (category is not None):
            raise DinError(
                f'{section.location} by = "in_category" and category, the ad\'s field that has '
                "it, go together; add or remove one"
            )
        return Negatives(section.integer("per_positive", 1), by, category, exclude)

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
        if "ids" in section:
            options["ids"] = section.text("ids", '"train" or "all"')
            if options["ids"] not in ("train", "all"):
                raise section.invalid("ids", '"train" or "all"')
            if options["ids"] == "all":  # none is unknown, unless the spec says so
                options.setdefault("unknown_share", 0.0)
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
        histories: Iterable[ListedHistory],
        side_tables: Iterable[SideTable],
    ) -> dict[str, TableOptions]:
        """{embedding table: its options}, of every table that a column names."""
        columns = [c for group in impressions.fields.values() for c in group]
        columns += [c for b in behaviors for c in (*b.ad, *b.extra)]
        columns += [c for h in histories for c in h.ad]
        columns += [c for side_table in side_tables for c in side_table.columns]
        keys = [
            name
            for name, column in (("item", impressions.item), ("user", impressions.user))
            if column is not None
        ]
        names = dict.fromkeys([*keys, *(c.table for c in columns)])
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
        result = {name: self.options.get(name, TableOptions()) for name in names}
        for column in columns:
            if column.transform is None and result[column.table].transform is None:
                continue
            others = {c.transform for c in columns if c.table == column.table}
            if len(others) > 1 or column.table in keys:
                raise DinError(
                    f"{self.path}: {column.name!r} is numeric, and another column of "
                    f"{column.table!r} is "
                    "not, or by another transform; give it a name or table of its own"
                )
            result[column.table] = TableOptions(transform=column.transform)
        return result | self._of_negatives(result, impressions, side_tables)

    def _of_negatives(
        self,
        tables: dict[str, TableOptions],
        impressions: Impressions,
        side_tables: Iterable[SideTable],
    ) -> dict[str, TableOptions]:
        """Tables of the ad where negatives are drawn: they have all ids, unless the spec says.

        Negatives are drawn from the whole catalogue. If items that training lacks were unknown,
        they would be so mostly as negatives, and "unknown" would tell the label.
        """
        if "negatives" not in self.top:
            return {}
        named = self.top.value.get("tables", {})
        ads = {"item", *(c.table for c in impressions.fields["ad"])}
        ads |= {
            c.table
            for s in side_tables
            if s.files.section.split(".")[0] == "items"
            for c in s.columns
        }
        return {
            name: dataclasses.replace(tables[name], ids="all", unknown_share=0.0)
            for name in ads
            if name in tables
            and tables[name].transform is None
            and tables[name].buckets is None
            and not {"ids", "unknown_share", "min_count"} & {*named.get(name, {})}
        }
