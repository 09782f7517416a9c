"""The schema of a data set: its tables, fields and behaviour sequences (Table 1 of the paper).

The paper groups a sample's features into user profile, user behaviour, ad and context. Here
profile, ad and context features are `Field`s, one-hot or multi-hot. User behaviour is one or
several `Sequence`s, whose aligned fields (goods, shop, category) share tables with the ad's fields.
Features that are numbers, which the paper does not have, are `NumericField`s.
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

    It has one id per sample, or any number of ids if `multi_hot`, each with a weight if `weighted`.
    An `optional` field, such as the user's id, is an input of a model only if the config names it
    (`model.extra_fields`).
    """

    name: str
    table: str
    group: Group
    multi_hot: bool = False
    optional: bool = False
    weighted: bool = False


@dataclasses.dataclass(frozen=True)
class NumericField:
    """A feature of a sample that is a number, or missing (not in the paper)."""

    name: str
    group: Group


@dataclasses.dataclass(frozen=True)
class BehaviorField:
    """A field of a behaviour sequence, and the `ad` field that it is compared with.

    It has one id per behaviour, or any number of ids if `multi_hot` (a film's genres), each with a
    weight if `weighted`.
    """

    name: str
    table: str
    ad: str
    multi_hot: bool = False
    weighted: bool = False


@dataclasses.dataclass(frozen=True)
class NumericBehaviorField:
    """A number of a behaviour, or missing, and the numeric `ad` field that it is compared with."""

    name: str
    ad: str


@dataclasses.dataclass(frozen=True)
class Sequence:
    """A user's behaviours in time order. All fields have one entry per behaviour.

    `times`: whether the store has the behaviours' times. `numbers`: the numeric fields.
    """

    name: str
    fields: tuple[BehaviorField, ...]
    times: bool = False
    numbers: tuple[NumericBehaviorField, ...] = ()


@dataclasses.dataclass(frozen=True)
class Schema:
    """The tables, fields, behaviour sequences and numeric fields of a data set.

    `weighted`: whether the store has the samples' weights, `samples/weight`.

    Raises:
      DinError: a name is used twice or is no identifier, a table is missing or empty, a field of
        one id has weights, or a behaviour field is compared with something other than an ad field
        of the same table, or a numeric one with something other than a numeric ad field.
    """

    tables: tuple[Table, ...]
    fields: tuple[Field, ...]
    sequences: tuple[Sequence, ...]
    numbers: tuple[NumericField, ...] = ()
    weighted: bool = False

    def __post_init__(self) -> None:
        _check_names("table", (t.name for t in self.tables))
        inputs = _names(self.fields) + _names(self.numbers) + _names(self.sequences)
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
        for part_of_ids in self.fields_of_ids():
            if part_of_ids.weighted and not part_of_ids.multi_hot:
                raise DinError(
                    f"schema: field {part_of_ids.name!r} is weighted, but has one id; weights are "
                    "those of the ids of a multi-hot field"
                )
        inputs_of_samples: tuple[Field | NumericField, ...] = (*self.fields, *self.numbers)
        for part in inputs_of_samples:
            if part.group not in GROUPS:
                raise DinError(
                    f"schema: field {part.name!r} has group {part.group!r}; "
                    f"expected one of {', '.join(GROUPS)}"
                )
        for sequence in self.sequences:
            if not sequence.fields:
                raise DinError(f"schema: sequence {sequence.name!r} has no fields")
            names_of_fields = _names(sequence.fields) + _names(sequence.numbers)
            _check_names(f"field of sequence {sequence.name!r}", names_of_fields)
            self._check_numbers(sequence)
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

    def _check_numbers(self, sequence: Sequence) -> None:
        """Raises DinError unless each number of a sequence is compared with a numeric ad field."""
        ads = [number.name for number in self.numbers if number.group == "ad"]
        for number in sequence.numbers:
            if number.ad not in ads:
                raise DinError(
                    f"schema: numeric field {number.name!r} of sequence {sequence.name!r} is "
                    f"compared with {number.ad!r}, which is not a numeric ad field; numeric ad "
                    f"fields: {', '.join(ads) or 'none'}"
                )

    def fields_of_ids(self) -> tuple[Field | BehaviorField, ...]:
        """All fields of samples and of behaviours that are not numeric."""
        return (*self.fields, *(f for s in self.sequences for f in s.fields))

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

    def without(self, names: Iterable[str]) -> Schema:
        """The schema without these tables, with the fields that use them, and numeric fields.

        Raises:
          DinError: there is no such table or numeric field.
        """
        removed = set(names)
        tables, numbers = _names(self.tables), _names(self.numbers)
        for name in removed - {*tables, *numbers}:
            raise DinError(
                f"model.without names {name!r}; the data set's tables are: {', '.join(tables)}"
                + (f"; its numeric fields are: {', '.join(numbers)}" if numbers else "")
            )
        sequences = (
            dataclasses.replace(
                s,
                fields=tuple(f for f in s.fields if f.table not in removed),
                numbers=tuple(n for n in s.numbers if n.ad not in removed),
            )
            for s in self.sequences
        )
        return Schema(
            tuple(t for t in self.tables if t.name not in removed),
            tuple(f for f in self.fields if f.table not in removed),
            tuple(s for s in sequences if s.fields),
            tuple(n for n in self.numbers if n.name not in removed),
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
        for field in (*value["fields"], *(f for s in value["sequences"] for f in s["fields"])):
            if not field["weighted"]:
                del field["weighted"]
        for part in (value, *value["sequences"]):
            if not part["numbers"]:  # as in stores of versions that knew no numbers
                del part["numbers"]
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
                sequences=tuple(_sequence(s) for s in value["sequences"]),
                numbers=tuple(NumericField(**n) for n in value.get("numbers", ())),
                weighted=value.get("weighted", False),
            )
        except (KeyError, TypeError) as error:
            raise DinError(f"schema: missing or unknown key: {error}") from error


def _sequence(value: dict[str, Any]) -> Sequence:
    """The sequence of a JSON object of `Schema.to_json`."""
    fields = tuple(BehaviorField(**f) for f in value["fields"])
    numbers = tuple(NumericBehaviorField(**n) for n in value.get("numbers", ()))
    return Sequence(**{**value, "fields": fields, "numbers": numbers})


def _names(parts: Iterable[Any]) -> list[str]:
    return [part.name for part in parts]


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
