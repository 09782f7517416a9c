"""From the raw values of a request to the arrays of `din_jax.export.scoring`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from din_jax.data.packing import age_bucket
from din_jax.data.schema import Field, NumericField, Schema
from din_jax.data.transform import Transform
from din_jax.data.vocabularies import Buckets
from din_jax.errors import DinError

Arrays = dict[str, Any]

_GREATEST = float(np.finfo(np.float32).max)  # number that a model reads
_LATEST = 2**53  # time, in seconds: exact as a float


class InvalidRequest(DinError):
    """A request that can't be scored.

    Attributes:
      field: where in the request, "candidates.item" for instance.
    """

    def __init__(self, field: str, problem: str):
        super().__init__(f"{field}: {problem}")
        self.field = field


class Encoded(NamedTuple):
    """The arrays of one user, or of one user's C ads, without padding.

    A multi-hot field of ads has lists of C arrays.

    Attributes:
      arrays: as in `din_jax.export.scoring`, without the axes U, and of ragged C.
      size: of a user the lengths of the packed axes, {axis: length}; of ads {"": C} and the most
        values of an ad in each multi-hot field.
      unknown: how many ids are in no vocabulary; null is not counted.
      chosen: of a user, {sequence: (places of the behaviours that are used, how many were given)}.
    """

    arrays: Arrays
    size: dict[str, int]
    unknown: int
    chosen: dict[str, tuple[npt.NDArray[np.int64], int]] = {}  # noqa: RUF012


class Encoder:
    """Encodes the requests to a model.

    Args:
      transform: of the store that the model was trained on.
      schema: the inputs that the model reads; a part of the transform's schema.
      max_history: the number of most recent behaviours of a history to use.
      ages: whether the model reads the ages of behaviours.

    Attributes:
      user_fields, ad_fields: the fields of the user and the context, and those of the ad.
    """

    def __init__(self, transform: Transform, schema: Schema, max_history: int, *, ages: bool):
        self.transform, self.schema = transform, schema
        self.max_history, self.ages = max_history, ages
        inputs: list[Field | NumericField] = [*schema.fields, *schema.numbers]
        self.user_fields = {f.name: f for f in inputs if f.group == "user"}
        self.context_fields = {f.name: f for f in inputs if f.group == "context"}
        self.ad_fields = {f.name: f for f in inputs if f.group == "ad"}
        transform.index()

    def user(
        self,
        user: Mapping[str, Any],
        behaviors: Mapping[str, Any],
        context: Mapping[str, Any],
        time: int | None = None,
    ) -> Encoded:
        """Encodes a user, their behaviours and the context.

        Args:
          user, context: {field: raw value}; a multi-hot field has a list of them. None is unknown.
          behaviors: {sequence: {field: raw values, oldest first}}, or a list of {field: raw value};
            "time" has their times, in seconds. A sequence that is missing is empty.
          time: of the request, in seconds. Later behaviours are left out.

        Raises:
          InvalidRequest: a field is missing, unknown, or has another type than expected.
        """
        count = _Unknown()
        arrays: Arrays = {"fields": {}, "sequences": {}}
        size: dict[str, int] = {}
        for where, values, fields in (
            ("user", user, self.user_fields),
            ("context", context, self.context_fields),
        ):
            _check_names(where, values, fields)
            for name, field in fields.items():
                at = f"{where}.{name}"
                arrays["fields"][name] = value = self._one(field, values[name], at, count)
                if isinstance(value, dict):
                    size[name] = int(value["length"])
        used: dict[str, tuple[npt.NDArray[np.int64], int]] = {}
        sequences = {s.name: s for s in self.schema.sequences}
        _check_names("behaviors", behaviors, sequences, required=False)
        for name, sequence in sequences.items():
            where = f"behaviors.{name}"
            parts: list[Any] = [*sequence.fields, *sequence.numbers]
            times = ("time",) if sequence.times else ()
            columns = _columns(where, behaviors.get(name, ()), [p.name for p in parts], times)
            chosen, seconds = self._chosen(where, columns, time)
            length = len(chosen)
            used[name] = chosen, len(next(iter(columns.values()), ()))
            encoded: Arrays = {"mask": np.ones(length, bool), "fields": {}}
            size[name] = length
            for part in parts:
                at = f"{where}.{part.name}"
                raw = [columns[part.name][i] for i in chosen] if length else []
                if not hasattr(part, "table"):
                    encoded["fields"][part.name] = self._numbers(part.ad, raw, at)
                elif not part.multi_hot:
                    encoded["fields"][part.name] = self._ids(part.table, raw, at, count)
                else:
                    flat, lengths, weights = _flatten(raw, at, weighted=part.weighted)
                    encoded["fields"][part.name] = {
                        "values": self._ids(part.table, flat, at, count),
                        "segment_ids": np.repeat(np.arange(length, dtype=np.int32), lengths),
                        **weights,
                    }
                    size[f"{name}.{part.name}"] = len(flat)
            if self.ages:
                if seconds is None and length:
                    raise InvalidRequest(where, "time: missing; the model reads ages of behaviours")
                if time is None:
                    raise InvalidRequest("time", "missing; the model reads ages of behaviours")
                then = np.zeros(0, np.int64) if seconds is None else seconds
                encoded["age"] = age_bucket(time - then).astype(np.int32)
            arrays["sequences"][name] = encoded
        return Encoded(arrays, size, count.ids, used)

    def ads(self, candidates: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Encoded:
        """Encodes candidates.

        Args:
          candidates: {field of the ad: raw values of all candidates}, or a list of {field: raw
            value}.

        Raises:
          InvalidRequest: see `user`.
        """
        count = _Unknown()
        columns = _columns("candidates", candidates, list(self.ad_fields), ())
        number = len(next(iter(columns.values()))) if columns else 0
        arrays: Arrays = {}
        size = {"": number}
        for name, field in self.ad_fields.items():
            at = f"candidates.{name}"
            if isinstance(field, NumericField):
                arrays[name] = self._numbers(name, columns[name], at)
            elif not field.multi_hot:
                arrays[name] = self._ids(field.table, columns[name], at, count)
            else:
                flat, lengths, weights = _flatten(columns[name], at, weighted=field.weighted)
                values = {"values": self._ids(field.table, flat, at, count), **weights}
                ends = np.cumsum(lengths)[:-1]
                arrays[name] = {k: np.split(v, ends) if number else [] for k, v in values.items()}
                size[name] = max(lengths, default=0)
        return Encoded(arrays, size, count.ids)

    def _one(self, field: Field | NumericField, value: Any, at: str, count: _Unknown) -> Any:
        if isinstance(field, NumericField):
            return self._numbers(field.name, [value], at)[0]
        if not field.multi_hot:
            return self._ids(field.table, [value], at, count)[0]
        flat, lengths, weights = _flatten([value], at, weighted=field.weighted)
        return {
            "values": self._ids(field.table, flat, at, count),
            "length": np.int32(lengths[0]),
            **weights,
        }

    def _ids(
        self, table: str, values: Sequence[Any], at: str, count: _Unknown
    ) -> npt.NDArray[np.int32]:
        if isinstance(self.transform.tables[table], Buckets):
            _check_numbers(values, at)
        rows = self.transform.rows_of(table, values)
        if rows is None:
            rows = self.transform.rows(table, _series(values, at))
        count.ids += int((rows == 0).sum()) - sum(value is None for value in values)
        return rows.astype(np.int32)

    def _numbers(self, field: str, values: Sequence[Any], at: str) -> npt.NDArray[np.float32]:
        _check_numbers(values, at)
        return self.transform.transformed(field, pl.Series(values, dtype=pl.Float64, strict=False))

    def _chosen(
        self, where: str, columns: Mapping[str, Sequence[Any]], time: int | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """The behaviours to use, oldest first, and their times."""
        length = len(next(iter(columns.values()), ()))
        chosen = np.arange(length)
        seconds = None
        if columns.get("time"):
            for value in columns["time"]:
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not (number and abs(value) <= _LATEST):
                    raise InvalidRequest(f"{where}.time", f"{value!r}; expected seconds")
            seconds = np.floor(np.array(columns["time"], np.float64)).astype(np.int64)
            chosen = np.argsort(seconds, kind="stable")
            if time is not None:
                chosen = chosen[seconds[chosen] <= time]
        if self.max_history:
            chosen = chosen[-self.max_history :]
        return chosen, None if seconds is None else seconds[chosen]


class _Unknown:
    """Counts unknown ids."""

    ids = 0


def _check_names(
    where: str, values: Any, expected: Mapping[str, Any], *, required: bool = True
) -> None:
    if not isinstance(values, Mapping):
        raise InvalidRequest(where, f"expected an object of {', '.join(expected) or 'no field'}")
    known = ", ".join(expected) or "none"
    for name in values:
        if name not in expected:
            raise InvalidRequest(f"{where}.{name}", f"unknown; expected: {known}")
    for name in expected if required else ():
        if name not in values:
            raise InvalidRequest(f"{where}.{name}", "missing; expected a value, or null: unknown")


def _check_numbers(values: Sequence[Any], at: str) -> None:
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidRequest(at, f"{value!r}; expected a number or null")
        if value is not None and not abs(value) <= _GREATEST:
            problem = f"{value}; expected a finite number up to {_GREATEST:.2g}, or null if missing"
            raise InvalidRequest(at, problem)


def _columns(
    where: str, values: Any, fields: Sequence[str], optional: Sequence[str]
) -> dict[str, list[Any]]:
    """{field: values} of columns, or of rows; all of one length."""
    if isinstance(values, Mapping):
        columns = values
    elif isinstance(values, Sequence) and not isinstance(values, str | bytes):
        columns = _columns_of_rows(where, values, fields, optional)
    else:
        raise InvalidRequest(where, "expected a list of objects, or an object of lists")
    known = dict.fromkeys([*fields, *optional])
    result: dict[str, list[Any]] = {}
    for name, column in columns.items():
        if name not in known:
            raise InvalidRequest(f"{where}.{name}", f"unknown; expected: {', '.join(known)}")
        if not isinstance(column, Sequence | np.ndarray) or isinstance(column, str | bytes):
            raise InvalidRequest(f"{where}.{name}", "expected a list of values")
        result[name] = column.tolist() if isinstance(column, np.ndarray) else list(column)
    for name in fields:
        if name not in result:
            if any(result.values()):
                raise InvalidRequest(f"{where}.{name}", "missing; expected a list of values")
            result[name] = []
    lengths = {name: len(column) for name, column in result.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InvalidRequest(where, f"lists of different lengths: {found}; expected one length")
    return result


def _columns_of_rows(
    where: str, rows: Sequence[Any], fields: Sequence[str], optional: Sequence[str]
) -> dict[str, list[Any]]:
    names = list(fields)
    if rows and isinstance(rows[0], Mapping):
        names += [name for name in optional if name in rows[0]]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, row in enumerate(rows):
        _check_names(f"{where}[{i}]", row, columns)
        for name, column in columns.items():
            column.append(row[name])
    return columns


def _flatten(
    values: Sequence[Any], at: str, *, weighted: bool
) -> tuple[list[Any], list[int], dict[str, npt.NDArray[np.float32]]]:
    """The concatenated ids of lists, the lists' lengths, and {"weights": of the ids} if weighted.

    None is an empty list. A list of a weighted field is {id: weight}, or has pairs of these.
    """
    flat: list[Any] = []
    weights: list[Any] = []
    lengths = []
    for value in values:
        several = [] if value is None else value
        if weighted and isinstance(several, Mapping):
            several = list(several.items())
        if not isinstance(several, Sequence | np.ndarray) or isinstance(several, str | bytes):
            raise InvalidRequest(at, f"{value!r}; expected a list of {_expected(weighted)}")
        known = [v for v in several if v is not None]
        if weighted:
            for pair in known:
                if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                    raise InvalidRequest(at, f"{pair!r}; expected a pair of {_expected(True)}")
            weights += [weight for _, weight in known]
            known = [one for one, _ in known]
        flat += known
        lengths.append(len(known))
    if not weighted:
        return flat, lengths, {}
    _check_numbers(weights, at)
    if None in weights:
        raise InvalidRequest(at, "null; expected a number as weight")
    return flat, lengths, {"weights": np.array(weights, np.float32)}


def _expected(weighted: bool) -> str:
    return "id and weight" if weighted else "ids"


def _series(values: Sequence[Any], at: str) -> pl.Series:
    """Ids as a series; of several types as text."""
    types = {type(v) for v in values} - {type(None)}
    if not types:
        return pl.Series(values, dtype=pl.Int64)
    if types == {int}:
        low, high = (f(v for v in values if v is not None) for f in (min, max))
        if low >= -(2**63) and high < 2**63:
            return pl.Series(values, dtype=pl.Int64)
        return pl.Series([None if v is None else str(v) for v in values], dtype=pl.String)
    if types == {str}:
        return pl.Series(values, dtype=pl.String)
    texts: list[str | None] = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | str | None):
            raise InvalidRequest(at, f"{value!r}; expected an id: text or a whole number, or null")
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(at, f"{value}; expected an id: text or a whole number, or null")
        texts.append(None if value is None else str(value))
    if types == {float}:
        return pl.Series(values, dtype=pl.Float64)
    return pl.Series(texts, dtype=pl.String)
