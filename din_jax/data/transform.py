"""From raw values to a model's inputs, as a store's preparation fitted it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from din_jax.data.files import write_parquet
from din_jax.data.id_lookup import IdIndex
from din_jax.data.numbers import NumberTransform
from din_jax.data.schema import Schema
from din_jax.data.store import Store
from din_jax.data.vocabularies import Buckets, Fitted
from din_jax.errors import DinError

_FEW = 8  # an index is used where the ids are so many times the values


@dataclasses.dataclass(frozen=True)
class Transform:
    """Maps the raw values of a field to rows of its embedding table, or to numbers.

    Attributes:
      schema: of the inputs.
      tables: {embedding table: its vocabulary, or its buckets of numbers}.
      numbers: {numeric field: its transform}.
    """

    schema: Schema
    tables: Mapping[str, Fitted | Buckets]
    numbers: Mapping[str, NumberTransform]
    _indices: dict[str, IdIndex] = dataclasses.field(default_factory=dict, repr=False)

    @staticmethod
    def of_store(store: Store) -> Transform:
        """What a store was prepared with.

        Raises:
          DinError: a vocabulary is missing or damaged.
        """
        tables: dict[str, Fitted | Buckets] = {}
        for table in store.schema.tables:
            ids, counts = store.vocabulary(table.name)
            tables[table.name] = _table(ids[1:], counts[1:])
        transforms = store.origin.get("numbers", {})
        names = store.origin.get("number transforms", {})
        numbers = {
            number.name: NumberTransform.from_json(transforms[names.get(number.name, number.name)])
            if transforms
            else NumberTransform("none")
            for number in store.schema.numbers
        }
        return Transform(store.schema, tables, numbers)

    def rows(self, table: str, values: pl.Series) -> npt.NDArray[np.uint32]:
        """uint32 [N]: the rows of raw values in an embedding table; 0 for unknown ones and null.

        Whole numbers may be written as text or floats.
        """
        fitted = self.tables[table]
        if isinstance(fitted, Buckets) or len(fitted.ids) < _FEW * len(values):
            rows: npt.NDArray[np.uint32] = fitted.rows(values)
            return rows
        if table not in self._indices:
            self._indices[table] = IdIndex(fitted.ids)
        return self._indices[table].rows(values)

    def rows_of(self, table: str, values: Sequence[Any]) -> npt.NDArray[np.uint32] | None:
        """As `rows`, of a short list of ids that are written as in the data; else None."""
        fitted = self.tables[table]
        if isinstance(fitted, Buckets) or not values:
            return None
        if table not in self._indices:
            self._indices[table] = IdIndex(fitted.ids)
        return self._indices[table].rows_of(values)

    def transformed(self, field: str, values: pl.Series) -> npt.NDArray[np.float32]:
        """float32 [N]: the numbers of a numeric field as inputs; NaN where they are missing."""
        numbers = values.cast(pl.Float64, strict=False).fill_null(np.nan)
        return self.numbers[field].apply(numbers.to_numpy())

    def index(self) -> None:
        """Indexes all vocabularies now, and not when they are first used."""
        for name, table in self.tables.items():
            if isinstance(table, Fitted) and name not in self._indices:
                self._indices[name] = IdIndex(table.ids)

    def save(self, folder: Path) -> None:
        """Writes the transform to a new folder, which `load` reads."""
        folder.mkdir()
        description = {
            "schema": self.schema.to_json(),
            "numbers": {name: transform.to_json() for name, transform in self.numbers.items()},
        }
        (folder / "transform.json").write_text(json.dumps(description, indent=1))
        for name, table in self.tables.items():
            frame = pl.DataFrame({"id": table.ids, "count": table.counts})
            write_parquet(frame, folder / f"{name}.parquet")

    @staticmethod
    def load(folder: Path) -> Transform:
        """Reads what `save` has written.

        Raises:
          DinError: a file is missing or damaged.
        """
        try:
            description: dict[str, Any] = json.loads((folder / "transform.json").read_text())
            schema = Schema.from_json(description["schema"])
            numbers = {
                name: NumberTransform.from_json(value)
                for name, value in description["numbers"].items()
            }
            tables = {}
            for table in schema.tables:
                frame = pl.read_parquet(folder / f"{table.name}.parquet")
                tables[table.name] = _table(frame["id"], frame["count"].to_numpy())
        except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
            raise DinError(f"{folder}: missing or damaged ({error}); export it again") from error
        return Transform(schema, tables, numbers)


def _table(ids: pl.Series, counts: npt.NDArray[Any]) -> Fitted | Buckets:
    """A vocabulary, or buckets: those begin at −∞."""
    if ids.dtype == pl.Float64 and len(ids) and ids[0] == -np.inf:
        return Buckets(ids, counts)
    return Fitted(ids, counts, 0)
