"""What a sample is: tables, fields, behaviour sequences (Table 1 of the paper); JSON in and out.

The paper groups a sample's features into user profile, user behaviour, ad and context. Here the
profile, ad and context features are `Field`s, one-hot or multi-hot, and user behaviour is one or
several `Sequence`s, whose aligned fields (goods, shop, category) share tables with the ad's.
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
    """An embedding table: `rows` is K, row 0 ("unknown") included."""

    name: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Field:
    """A feature of a sample outside its behaviours.

    One id a sample, or with `multi_hot` any number of them. An `optional` field is an input of a
    model only where the config names it (`model.extra_fields`): the user's id, for instance.
    """

    name: str
    table: str
    group: Group
    multi_hot: bool = False
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class BehaviorField:
    """One aligned field of a behaviour sequence, and the `ad` field that it is compared with.

    One id a behaviour, or with `multi_hot` any number of them (a film's genres).
    """

    name: str
    table: str
    ad: str
    multi_hot: bool = False


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A user's behaviours in time order; all its fields have one entry a behaviour."""

    name: str
    fields: tuple[BehaviorField, ...]


@dataclasses.dataclass(frozen=True)
class Schema:
    """The tables, fields and behaviour sequences of a data set.

    Raises:
      DinError: a name is used twice or can't be a file's name, a table is missing or empty, or a
        behaviour field is compared with what isn't an ad field of the same table.
    """

    tables: tuple[Table, ...]
    fields: tuple[Field, ...]
    sequences: tuple[Sequence, ...]

    def __post_init__(self) -> None:
        _distinct("table", (t.name for t in self.tables))
        inputs = [f.name for f in self.fields] + [s.name for s in self.sequences]
        _distinct("field or sequence", inputs)
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
            _distinct(f"field of sequence {sequence.name!r}", (f.name for f in sequence.fields))
            for behavior in sequence.fields:
                who = f"field {behavior.name!r} of sequence {sequence.name!r}"
                if behavior.table not in names:
                    raise DinError(_no_table(who, behavior.table, names))
                ad = ads.get(behavior.ad)
                if ad is None or ad.table != behavior.table or ad.optional:
                    raise DinError(
                        f"schema: {who} is compared with {behavior.ad!r}, which is not an ad field "
                        f"of table {behavior.table!r} that is always an input; ad fields: "
                        + (", ".join(f"{f.name} ({f.table})" for f in ads.values()) or "none")
                    )

    def rows(self, table: str) -> int:
        """K of a table, row 0 included."""
        return next(t.rows for t in self.tables if t.name == table)

    def inputs(self, extra_fields: Iterable[str] = ()) -> tuple[Field, ...]:
        """The fields that a model reads: all but the optional ones that `extra_fields` leaves out.

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
        """The schema without these tables and all that reads them.

        Raises:
          DinError: there is no such table.
        """
        left_out = set(tables)
        for name in left_out - {t.name for t in self.tables}:
            raise DinError(
                f"model.without names {name!r}; the data set's tables are: "
                + ", ".join(t.name for t in self.tables)
            )
        sequences = (
            dataclasses.replace(s, fields=tuple(f for f in s.fields if f.table not in left_out))
            for s in self.sequences
        )
        return Schema(
            tuple(t for t in self.tables if t.name not in left_out),
            tuple(f for f in self.fields if f.table not in left_out),
            tuple(s for s in sequences if s.fields),
        )

    def ad_field(self, name: str) -> Field:
        """The one-hot ad field of this name.

        Raises:
          DinError: there is none.
        """
        ads = {f.name: f for f in self.fields if f.group == "ad" and not f.multi_hot}
        if name not in ads:
            raise DinError(f"no one-hot ad field {name!r}; the data set has: {', '.join(ads)}")
        return ads[name]

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` turns back into an equal schema."""
        return dataclasses.asdict(self)

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
                    Sequence(s["name"], tuple(BehaviorField(**f) for f in s["fields"]))
                    for s in value["sequences"]
                ),
            )
        except (KeyError, TypeError) as error:
            raise DinError(f"schema: missing or unknown key: {error}") from error


def _distinct(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name.isidentifier():
            raise DinError(
                f"schema: {what} {name!r}: a name has only letters, digits and _, "
                "and starts with no digit"
            )
        if name in seen:
            raise DinError(f"schema: {what} {name!r} is defined twice")
        seen.add(name)


def _no_table(who: str, table: str, names: set[str]) -> str:
    return f"schema: {who} names table {table!r}; the tables are: {', '.join(sorted(names))}"
