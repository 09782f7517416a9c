"""The schema of a data set: its tables, fields and behaviour sequences (Table 1 of the paper).

The paper groups a sample's features into user profile, user behaviour, ad and context. Here
profile, ad and context features are `Field`s, one-hot or multi-hot. User behaviour is one or
several `Sequence`s, whose aligned fields (goods, shop, category) share tables with the ad's fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from din_jax.errors import DinError

Group = Literal["user", "ad", "context"]
GROUPS: tuple[Group, ...] = ("user", "ad", "context")


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table with K = `rows` rows, of which row 0 is "unknown"."""

    name: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Field:
    """A feature of a sample that is not a behaviour.

    It has one id per sample, or any number of ids if `multi_hot`. An `optional` field, such as the
    user's id, is an input of a model only if the config names it (`model.extra_fields`).
    """

    name: str
    table: str
    group: Group
    multi_hot: bool = False
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class BehaviorField:
    """A field of a behaviour sequence, and the `ad` field that it is compared with.

    It has one id per behaviour, or any number of ids if `multi_hot` (a film's genres).
    """

    name: str
    table: str
    ad: str
    multi_hot: bool = False


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A user's behaviours in time order. All fields have one entry per behaviour.

    `times`: whether the store has the behaviours' times.
    """

    name: str
    fields: tuple[BehaviorField, ...]
    times: bool = False


@dataclasses.dataclass(frozen=True)
class Schema:
    """The tables, fields and behaviour sequences of a data set.

    `weighted`: whether the store has the samples' weights, `samples/weight`.

    Raises:
      DinError: a name is used twice or is no identifier, a table is missing or empty, or a
        behaviour field is compared with something other than an ad field of the same table.
    """

    tables: tuple[Table, ...]
    fields: tuple[Field, ...]
    sequences: tuple[Sequence, ...]
    weighted: bool = False

    def __post_init__(self) -> None:
        _check_names("table", (t.name for t in self.tables))
        inputs = [f.name for f in self.fields] + [s.name for s in self.sequences]
        _check_names("field or sequence", inputs)
        for table in self.tables:
            if table.rows < 1:
                raise DinError(
                    f"schema: table {table.name!r} has {table.rows} rows; it needs at least row 0"
                )
        names = {t.name for t in self.tables}
        ads = {f.name: f for f in self.fields if f.group == "ad"}
        for field in self.fields:
            if field.table not in names:
                raise DinError(_no_table(f"field {field.name!r}", field.table, names))
            if field.group not in GROUPS:
                raise DinError(
                    f"schema: field {field.name!r} has group {field.group!r}; "
                    f"expected one of {', '.join(GROUPS)}"
                )
        for sequence in self.sequences:
            if not sequence.fields:
                raise DinError(f"schema: sequence {sequence.name!r} has no fields")
            _check_names(f"field of sequence {sequence.name!r}", (f.name for f in sequence.fields))
            for behavior in sequence.fields:
                field_name = f"field {behavior.name!r} of sequence {sequence.name!r}"
                if behavior.table not in names:
                    raise DinError(_no_table(field_name, behavior.table, names))
                ad = ads.get(behavior.ad)
                if ad is None or ad.table != behavior.table or ad.optional:
                    raise DinError(
                        f"schema: {field_name} is compared with {behavior.ad!r}, which is not an "
                        f"ad field of table {behavior.table!r} that is always an input; ad fields: "
                        + (", ".join(f"{f.name} ({f.table})" for f in ads.values()) or "none")
                    )

    def rows(self, table: str) -> int:
        """K, the number of rows of a table, including row 0."""
        return next(t.rows for t in self.tables if t.name == table)

    def inputs(self, extra_fields: Iterable[str] = ()) -> tuple[Field, ...]:
        """The fields that a model reads: those not optional, and those in `extra_fields`.

        Raises:
          DinError: `extra_fields` names something that is not an optional field.
        """
        extra = tuple(extra_fields)
        optional = [f.name for f in self.fields if f.optional]
        for name in extra:
            if name not in optional:
                raise DinError(
                    f"model.extra_fields names {name!r}; the data set's optional fields are: "
                    + (", ".join(optional) or "none")
                )
        return tuple(f for f in self.fields if not f.optional or f.name in extra)

    def without(self, tables: Iterable[str]) -> Schema:
        """The schema without these tables and the fields that use them.

        Raises:
          DinError: there is no such table.
        """
        removed = set(tables)
        for name in removed - {t.name for t in self.tables}:
            raise DinError(
                f"model.without names {name!r}; the data set's tables are: "
                + ", ".join(t.name for t in self.tables)
            )
        sequences = (
            dataclasses.replace(s, fields=tuple(f for f in s.fields if f.table not in removed))
            for s in self.sequences
        )
        return Schema(
            tuple(t for t in self.tables if t.name not in removed),
            tuple(f for f in self.fields if f.table not in removed),
            tuple(s for s in sequences if s.fields),
            self.weighted,
        )

    def ad_field(self, name: str) -> Field:
        """The one-hot ad field of this name.

        Raises:
          DinError: there is no such field.
        """
        ads = {f.name: f for f in self.fields if f.group == "ad" and not f.multi_hot}
        if name not in ads:
            raise DinError(f"no one-hot ad field {name!r}; the data set has: {', '.join(ads)}")
        return ads[name]

    def to_json(self) -> dict[str, Any]:
        """Converts the schema to a JSON object, which `from_json` reads."""
        value = dataclasses.asdict(self)
        for sequence in value["sequences"]:
            if not sequence["times"]:  # as in stores of versions that knew no times
                del sequence["times"]
        if not self.weighted:  # as in stores of versions that knew no weights
            del value["weighted"]
        return value

    @staticmethod
    def from_json(value: dict[str, Any]) -> Schema:
        """The inverse of `to_json`.

        Raises:
          DinError: a key is missing or unknown.
        """
        try:
            return Schema(
                tables=tuple(Table(**t) for t in value["tables"]),
                fields=tuple(Field(**f) for f in value["fields"]),
                sequences=tuple(
                    Sequence(**{**s, "fields": tuple(BehaviorField(**f) for f in s["fields"])})
                    for s in value["sequences"]
                ),
                weighted=value.get("weighted", False),
            )
        except (KeyError, TypeError) as error:
            raise DinError(f"schema: missing or unknown key: {error}") from error


def _check_names(kind: str, names: Iterable[str]) -> None:
    """Raises DinError unless all names are distinct identifiers."""
    seen: set[str] = set()
    for name in names:
        if not name.isidentifier():
            raise DinError(
                f"schema: {kind} {name!r}: a name has only letters, digits and _, "
                "and does not start with a digit"
            )
        if name in seen:
            raise DinError(f"schema: {kind} {name!r} is defined twice")
        seen.add(name)


def _no_table(field: str, table: str, names: set[str]) -> str:
    return f"schema: {field} names table {table!r}; the tables are: {', '.join(sorted(names))}"
