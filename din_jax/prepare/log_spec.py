"""The spec of a log: a TOML file that says what the user's tables and columns mean.

`docs/your-data.md` describes every key. Here the file is read and checked as far as that can be
done without the data.
"""

from __future__ import annotations

import dataclasses
import datetime
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeGuard

from din_jax.errors import DinError
from din_jax.prepare.vocabularies import UNKNOWN_SHARE

CutPoint = int | float | datetime.datetime


@dataclasses.dataclass(frozen=True)
class Column:
    """A feature: where its values are and which embedding table their ids fall in.

    `separator` cuts text into several values. `numeric`: the table is of buckets.
    """

    name: str
    column: str
    table: str
    separator: str | None
    numeric: bool


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of the user's tables is: a file or a folder, named `section` in messages."""

    section: str
    path: Path
    delimiter: str | None  # None: a tab in files named .tsv, else a comma


@dataclasses.dataclass(frozen=True)
class Impressions:
    """The table of samples; `fields` is {"user" | "ad" | "context": its columns of that group}."""

    place: Place
    label: str
    user: str
    item: str
    time: str
    fields: dict[str, tuple[Column, ...]]


@dataclasses.dataclass(frozen=True)
class Behaviors:
    """A table of behaviours, and the sequence that it becomes. `time` is None if it is prior."""

    name: str
    place: Place
    user: str
    item: str
    time: str | None
    order: str | None
    ad: tuple[Column, ...]


@dataclasses.dataclass(frozen=True)
class Side:
    """A side table of items or users: `columns` by `key`, from `valid_from` on if it is given."""

    place: Place
    key: str
    valid_from: str | None
    columns: tuple[Column, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """How impressions are split.

    Attributes:
      by: "time", "user" or "column".
      column, values, ignore: by a column: which, the values of each split, and those left out.
      cuts: of validation and test, where they have one: a share of the rows (by a column, of those
        named train) or of the users, or the time at which the split begins.
    """

    by: str
    column: str | None
    values: dict[str, tuple[str, ...]]
    ignore: tuple[str, ...]
    cuts: dict[str, CutPoint]


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How a table is fitted: a vocabulary, or with `buckets` quantiles."""

    min_count: int = 1
    unknown_share: float = UNKNOWN_SHARE
    buckets: int | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """A whole spec.

    `behaviors` is empty where the clicked impressions are the behaviours. `tables` has an entry for
    every embedding table. `source` is the TOML as it was read.
    """

    path: Path
    impressions: Impressions
    behaviors: tuple[Behaviors, ...]
    items: tuple[Side, ...]
    users: tuple[Side, ...]
    split: Split
    tables: dict[str, TableOptions]
    source: dict[str, Any]


_PLACE = ("path", "delimiter")
_KEYS = {
    "impressions": (*_PLACE, "label", "user", "item", "time", "profile", "ad", "context"),
    "behaviours": (*_PLACE, "user", "item", "time", "order", "prior", "ad"),
    "items": (*_PLACE, "item", "valid_from", "columns"),
    "users": (*_PLACE, "user", "valid_from", "columns"),
    "split": ("by", "column", "train", "validation", "test", "ignore"),
    "tables": ("min_count", "unknown_share", "buckets"),
    "column": ("column", "table", "separator"),
}
_SECTIONS = ("impressions", "behaviours", "items", "users", "split", "tables")
_SPLIT_KEYS = {
    "time": ("by", "validation", "test"),
    "user": ("by", "validation", "test"),
    "column": _KEYS["split"],
}


def read(path: str | Path, data: str | Path | None = None) -> Spec:
    """Reads a spec.

    Args:
      path: the TOML file.
      data: the folder that the paths of the tables start from; by default the spec's own.

    Raises:
      DinError: the file is missing or no TOML, a key is missing, unknown or of a wrong type, or
        keys contradict one another.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            source = tomllib.load(file)
    except OSError as error:
        found = f"can not be read ({error.strerror})" if path.is_file() else "no such file"
        found = "is a folder" if path.is_dir() else found
        raise DinError(
            f"{path}: {found}; expected the spec of a log, a TOML file: docs/your-data.md has one "
            "to start from"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DinError(
            f'{path}: not TOML: {error}; expected lines like label = "click" below headers like '
            "[impressions]"
        ) from error
    top = _Section(path, "", source, _SECTIONS)
    reader = _Reader(path, Path(data) if data is not None else path.parent, top)
    return reader.spec(source)


class _Section:
    """One table of the TOML: typed access to its keys, each error naming where it stands."""

    def __init__(self, path: Path, name: str, value: Any, accepted: Iterable[str]):
        self.where = f"{path}: [{name}]" if name else f"{path}:"
        self.name, self.path = name, path
        if not isinstance(value, dict):
            raise DinError(f"{path}: {name} is {_shown(value)}; expected a section [{name}]")
        self.value: dict[str, Any] = value
        accepted = tuple(accepted)
        for key in value:
            if key not in accepted:
                what = "key" if name else "section"
                raise DinError(
                    f"{self.where} unknown {what} {key!r}{nearest(key, accepted)}; "
                    f"its {what}s are: {', '.join(accepted)}"
                )

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def wrong(self, key: str, expected: str) -> DinError:
        return DinError(f"{self.where} {key} = {_shown(self.value[key])}; expected {expected}")

    def missing(self, key: str, expected: str) -> DinError:
        return DinError(f"{self.where} has no {key!r}; expected {expected}")

    def text(self, key: str, expected: str = "the name of a column") -> str:
        if key not in self:
            raise self.missing(key, expected)
        value = self.value[key]
        if not isinstance(value, str) or not value:
            raise self.wrong(key, f"{expected}, in quotes")
        return value

    def optional_text(self, key: str, expected: str = "the name of a column") -> str | None:
        return self.text(key, expected) if key in self else None

    def flag(self, key: str) -> bool:
        value = self.value.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def whole(self, key: str, least: int) -> int:
        value = self.value[key]
        if type(value) is not int or value < least:
            raise self.wrong(key, f"a whole number from {least} on")
        return value


class _Reader:
    def __init__(self, path: Path, folder: Path, top: _Section):
        self.path, self.folder, self.top = path, folder, top
        self.options = {
            name: self._table_options(name, value) for name, value in _named(top, "tables").items()
        }

    def spec(self, source: dict[str, Any]) -> Spec:
        for required in ("impressions", "split"):
            if required not in self.top:
                raise self.top.missing(required, f"a section [{required}]")
        impressions = self._impressions()
        behaviors = tuple(
            self._behaviors(name, value)
            for name, value in self._one_or_several("behaviours", default="history").items()
        )
        items, users = self._sides("items", "item"), self._sides("users", "user")
        spec = Spec(
            path=self.path,
            impressions=impressions,
            behaviors=behaviors,
            items=items,
            users=users,
            split=self._split(),
            tables=self._tables(impressions, behaviors, items + users),
            source=source,
        )
        self._check(spec)
        return spec

    def _one_or_several(self, kind: str, default: str = "") -> dict[str, Any]:
        """{name: section}: [kind] alone is of the name `default`, else each [kind.NAME]."""
        if kind not in self.top:
            return {}
        value = self.top.value[kind]
        several = isinstance(value, dict) and value and _KEYS[kind][0] not in value
        if several and all(isinstance(part, dict) for part in value.values()):
            return dict(value)
        return {default: value}

    def _section(self, kind: str, name: str, value: Any) -> _Section:
        return _Section(self.path, f"{kind}.{name}" if name else kind, value, _KEYS[kind])

    def _place(self, section: _Section) -> Place:
        return Place(
            section.name,
            self.folder / section.text("path", "a Parquet or CSV file, or a folder of them"),
            self._delimiter(section),
        )

    @staticmethod
    def _delimiter(section: _Section) -> str | None:
        expected = "the one character between the values of a CSV"
        delimiter = section.optional_text("delimiter", expected)
        if delimiter is not None and len(delimiter.encode()) != 1:
            raise section.wrong("delimiter", expected)
        return delimiter

    def _columns(self, section: _Section, key: str) -> tuple[Column, ...]:
        """A list of columns, or a table {field: {column, table, separator}}."""
        value = section.value.get(key, [])
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            value = {name: {} for name in value}
        if not isinstance(value, dict):
            raise section.wrong(
                key, f'a list of columns, ["a", "b"], or a section [{section.name}.{key}] of them'
            )
        columns = []
        for name, options in value.items():
            where = f"{section.name}.{key}.{name}"
            inner = _Section(self.path, where, options, _KEYS["column"])
            if not name.isidentifier():
                raise DinError(
                    f"{section.where} {key}: {name!r} can't be a field's name, which has only "
                    "letters, digits and _; give it another one: "
                    f"[{section.name}.{key}] NAME = {{column = {name!r}}}"
                )
            table = inner.optional_text("table", "the name of an embedding table") or name
            options = self.options.get(table, TableOptions())
            columns.append(
                Column(
                    name=name,
                    column=inner.optional_text("column") or name,
                    table=table,
                    separator=inner.optional_text("separator", "what stands between values"),
                    numeric=options.buckets is not None,
                )
            )
            if columns[-1].numeric and columns[-1].separator:
                raise DinError(
                    f"{inner.where} has a separator, but table {table!r} is of buckets: of a "
                    "number there is one. Take one of the two out"
                )
        return tuple(columns)

    @staticmethod
    def _roles(section: _Section, *keys: str) -> None:
        """Raises if two of these keys, as far as there are any, name one column."""
        of_column: dict[str, str] = {}
        for key in filter(section.__contains__, keys):
            column = section.text(key)
            if column in of_column:
                raise DinError(
                    f"{section.where} {of_column[column]} and {key} are both {column!r}; expected "
                    "a column of its own for each"
                )
            of_column[column] = key

    def _impressions(self) -> Impressions:
        section = self._section("impressions", "", self.top.value["impressions"])
        self._roles(section, "label", "user", "item", "time")
        return Impressions(
            place=self._place(section),
            label=section.text("label"),
            user=section.text("user"),
            item=section.text("item"),
            time=section.text("time"),
            fields={
                "user": self._columns(section, "profile"),
                "ad": self._columns(section, "ad"),
                "context": self._columns(section, "context"),
            },
        )

    def _behaviors(self, name: str, value: Any) -> Behaviors:
        alone = value is self.top.value["behaviours"]
        section = self._section("behaviours", "" if alone else name, value)
        self._roles(section, "user", "item", "time")
        time, prior = section.optional_text("time"), section.flag("prior")
        if time is None and not prior:
            raise DinError(
                f"{section.where} has no 'time': nothing says which behaviours lie before an "
                "impression. Name the column, or declare with prior = true that all of them lie "
                "before all impressions"
            )
        if time is not None and prior:
            raise DinError(
                f"{section.where} has both time and prior = true; with a time the histories are "
                "cut strictly before each impression: take prior out"
            )
        return Behaviors(
            name=name,
            place=self._place(section),
            user=section.text("user"),
            item=section.text("item"),
            time=time,
            order=section.optional_text("order"),
            ad=self._columns(section, "ad"),
        )

    def _sides(self, kind: str, key: str) -> tuple[Side, ...]:
        sides = []
        for name, value in self._one_or_several(kind).items():
            section = self._section(kind, name, value)
            self._roles(section, key, "valid_from")
            side = Side(
                place=self._place(section),
                key=section.text(key),
                valid_from=section.optional_text("valid_from"),
                columns=self._columns(section, "columns"),
            )
            if not side.columns:
                raise section.missing("columns", 'a list of columns, ["a", "b"]')
            sides.append(side)
        return tuple(sides)

    def _table_options(self, name: str, value: Any) -> TableOptions:
        section = self._section("tables", name, value)
        options: dict[str, Any] = {}
        for key, least in (("min_count", 1), ("buckets", 2)):
            if key in section:
                options[key] = section.whole(key, least)
        if "unknown_share" in section:
            share = section.value["unknown_share"]
            if type(share) not in (int, float) or not 0 <= share <= 1:
                raise section.wrong("unknown_share", "a share from 0 to 1")
            options["unknown_share"] = float(share)
        if "buckets" in options and len(options) > 1:
            raise DinError(
                f"{section.where} has buckets, which are of numbers; min_count and unknown_share "
                "are of ids. Take one or the other out"
            )
        return TableOptions(**options)

    def _tables(
        self, impressions: Impressions, behaviors: Iterable[Behaviors], sides: Iterable[Side]
    ) -> dict[str, TableOptions]:
        columns = [c for group in impressions.fields.values() for c in group]
        columns += [c for b in behaviors for c in b.ad] + [c for s in sides for c in s.columns]
        names = dict.fromkeys(["item", "user", *(c.table for c in columns)])
        for name, options in self.options.items():
            if name not in names:
                raise DinError(
                    f"{self.path}: [tables.{name}] is of no table{nearest(name, names)}; "
                    f"the tables are: {', '.join(names)}"
                )
            if name in ("item", "user") and options.buckets:
                raise DinError(f"{self.path}: [tables.{name}] has buckets, but holds ids")
        return {name: self.options.get(name, TableOptions()) for name in names}

    def _split(self) -> Split:
        section = self._section("split", "", self.top.value["split"])
        by = section.text("by", '"time", "user" or "column"')
        if by not in _SPLIT_KEYS:
            raise section.wrong("by", f'"time", "user" or "column"{nearest(by, _SPLIT_KEYS)}')
        section = _Section(self.path, "split", section.value, _SPLIT_KEYS[by])
        values: dict[str, tuple[str, ...]] = {}
        cuts: dict[str, CutPoint] = {}
        for key in ("train", "validation", "test"):
            if by != "column" and key == "train":
                continue
            if key not in section:
                raise section.missing(key, _SPLIT_EXPECTED[by])
            value = section.value[key]
            if type(value) is float and 0 < value < 1 and key != "train":
                cuts[key] = value
            elif by == "column":
                values[key] = _values(section, key)
            elif by == "time":
                cuts[key] = _point(section, key)
            else:
                raise section.wrong(key, _SPLIT_EXPECTED[by])
        self._check_cuts(section, cuts)
        return Split(
            by=by,
            column=section.text("column") if by == "column" else None,
            values=values,
            ignore=_values(section, "ignore") if "ignore" in section else (),
            cuts=cuts,
        )

    @staticmethod
    def _check_cuts(section: _Section, cuts: Mapping[str, CutPoint]) -> None:
        shares = [cut for cut in cuts.values() if is_share(cut)]
        if len(cuts) == 2:
            if len(shares) == 1:
                raise DinError(
                    f"{section.where} has a share and a point in time: "
                    + ", ".join(f"{name} = {_shown(section.value[name])}" for name in cuts)
                    + f"; give two of a kind. {SHARE_OR_POINT}"
                )
            first, last = cuts["validation"], cuts["test"]
            if not shares and isinstance(first, datetime.datetime) != isinstance(
                last, datetime.datetime
            ):
                raise DinError(f"{section.where} has a date and a number for validation and test")
            if not shares and not first < last:  # type: ignore[operator]
                raise DinError(
                    f"{section.where} validation begins at {first}, not before test at {last}. "
                    + SHARE_OR_POINT
                )
        if sum(shares) >= 1:
            raise DinError(f"{section.where} the shares leave nothing to train on")

    def _check(self, spec: Spec) -> None:
        """What concerns several sections."""
        taken = {"item": "the candidate itself", "user_id": "the user itself"}
        if not spec.behaviors:
            taken["history"] = "the sequence of the clicked impressions"
        for behaviors in spec.behaviors:
            if behaviors.name in taken or not behaviors.name.isidentifier():
                raise DinError(
                    f"{self.path}: [{behaviors.place.section}]: {behaviors.name!r} can't be a "
                    "sequence's name: it is a field's too, or has other characters than letters, "
                    "digits and _. Choose another one"
                )
            taken[behaviors.name] = f"the sequence of [{behaviors.place.section}]"

        def take(column: Column, section: str) -> None:
            if column.name in taken:
                raise DinError(
                    f"{self.path}: [{section}] has a field {column.name!r}, a name that "
                    f"{taken[column.name]} has already; give it another one: "
                    f"NAME = {{column = {column.column!r}}}"
                )
            taken[column.name] = f"a field of [{section}]"

        for group in spec.impressions.fields.values():
            for column in group:
                take(column, "impressions")
                if column.column == spec.impressions.label:
                    raise DinError(
                        f"{self.path}: [impressions] has the label, {column.column!r}, as a field: "
                        "nothing would be left to predict. Take it out"
                    )
        for side in (*spec.items, *spec.users):
            for column in side.columns:
                take(column, side.place.section)
        own = {c.name: c for c in spec.impressions.fields["ad"]}
        for behaviors in spec.behaviors:
            for column in behaviors.ad:
                if column.name not in own or own[column.name].table != column.table:
                    raise DinError(
                        f"{self.path}: [{behaviors.place.section}] ad has {column.name!r}, which "
                        "is no ad column of [impressions] of the same table to be compared with; "
                        f"those are: {', '.join(own) or 'none'}"
                    )
            as_of = next((s for s in spec.items if s.valid_from), None)
            if behaviors.time is None and as_of is not None:
                raise DinError(
                    f"{self.path}: [{as_of.place.section}] has valid_from, but the behaviours of "
                    f"[{behaviors.place.section}] have no time to join it at; name their time, or "
                    "take valid_from out and leave one row an item"
                )


SHARE_OR_POINT = (
    "A share lies between 0 and 1 (0.1 is a tenth of the rows); any other number, or a date, is "
    "the point in time at which the split begins"
)
_SPLIT_EXPECTED = {
    "time": "the time at which it begins, or a share of the rows between 0 and 1, such as 0.1",
    "user": "a share of the users between 0 and 1, such as 0.1",
    "column": "the value that names the split, a list of values, or (validation and test) a share "
    "such as 0.1: the latest of the train rows",
}


def is_share(cut: CutPoint) -> TypeGuard[float]:
    """Whether it is a share of rows or users, not a point in time."""
    return isinstance(cut, float) and 0 < cut < 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Text that suggests the known name that is nearest, if one is near."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _named(top: _Section, kind: str) -> dict[str, Any]:
    value = top.value.get(kind, {})
    if not isinstance(value, dict):
        raise top.wrong(kind, f"sections [{kind}.NAME]")
    return value


def _values(section: _Section, key: str) -> tuple[str, ...]:
    """A value or a list of them, as text."""
    value = section.value[key]
    several = value if isinstance(value, list) else [value]
    if not several or not all(isinstance(v, str) or type(v) is int for v in several):
        raise section.wrong(key, _SPLIT_EXPECTED["column"])
    return tuple(map(str, several))


def _point(section: _Section, key: str) -> CutPoint:
    """A point in time: a number, or a date-time (UTC, without a zone)."""
    value = section.value[key]
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError as error:
            expected = "a date and time like 2024-05-01 12:00:00, or a share such as 0.1"
            raise section.wrong(key, expected) from error
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(datetime.UTC).replace(tzinfo=None)
        return value
    if isinstance(value, datetime.date):
        return datetime.datetime.combine(value, datetime.time())
    if type(value) not in (int, float):
        raise section.wrong(key, _SPLIT_EXPECTED["time"])
    return value


def _shown(value: Any) -> str:
    text = str(value) if isinstance(value, datetime.date) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
