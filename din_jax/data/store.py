"""A prepared data set on disk: memory-mapped columns, vocabularies with counts, a fingerprint.

    STORE/
      schema.json                          schema, splits, lengths, origin, fingerprint, checksums
      samples/label.npy, user.npy          one entry per sample
      samples/time.npy                     (if a sequence has times) int64, in seconds
      samples/weight.npy                   (if the schema is weighted) float32
      fields/NAME.npy                      one id per sample; or a multi-hot field's values,
      fields/NAME.offsets.npy              concatenated, and the offset of each sample's values;
      fields/NAME.weights.npy              (weighted multi-hot only) float32, of each value
                                           of a numeric field one float32 per sample, NaN: missing
      sequences/NAME.start.npy, .end.npy   each sample's history is events[start:end]
      events/NAME/FIELD.npy                each behaviour once, user after user, in time order
      events/NAME/FIELD.offsets.npy        (multi-hot only) the offset of each behaviour's values
      events/NAME/FIELD.weights.npy        (weighted multi-hot only) float32, of each value
                                           (of a numeric field float32, NaN: missing)
      events/NAME.time.npy                 (if the sequence has times) int64, in seconds
      vocab/TABLE.parquet                  row, id, count
      titles/TABLE.parquet                 (optional) row, title: see `din_jax.data.titles`
      counts/…, baselines/…                cached results (`din_jax.data.cache`)
      verified.json                        when it was verified (`din_jax.data.verification`)

Each behaviour is stored once: samples refer to ranges of events, so that nothing is padded or
repeated. Samples are ordered by split: train, validation, test.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from din_jax.data.columns import SPLITS as SPLITS, UNLABELLED as UNLABELLED, column_names
from din_jax.data.schema import Schema
from din_jax.data.verification import MEND, Verify, check_description, check_store
from din_jax.errors import DinError

# Polars is imported only where vocabularies are read: training does not need it, and its import
# takes 0.3 s and 20 MB.
if TYPE_CHECKING:
    import polars as pl

FORMAT = "din_jax store"
VERSION = 1
LATER_VERSION = (
    2  # of a store with weights, numbers or samples without labels; older versions read 1
)


class Vocabulary(NamedTuple):
    """The raw ids of a table's rows: row r is `ids[r]`, which training has `counts[r]` times.

    `ids[0]` is None: row 0 is "unknown".
    """

    ids: pl.Series
    counts: npt.NDArray[Any]


class Store:
    """Opens a store for reading. Columns are memory-mapped and read on access.

    Args:
      path: the store's folder.
      verify: whether its content is compared with its checksums: "once", if that was not done
        before or a file has changed since; "full", in any case; "none".

    Attributes:
      path, schema: the store's folder and its schema.
      fingerprint: hexadecimal digest of all that training reads, computed when it was written.
      origin: how the store was made.
      like: fingerprints of the stores whose vocabularies it has (`prepare log --like`).

    Raises:
      DinError: `path` is no store, has another version, or a file is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: Verify = "once"):
        self.path = Path(path)
        description = read_description(self.path)
        try:
            self.schema = Schema.from_json(description["schema"])
            self.fingerprint: str = description["fingerprint"]
            self.origin: dict[str, Any] = description["origin"]
            self.like: tuple[str, ...] = tuple(description.get("like", ()))
            self._splits = {name: description["splits"][name] for name in SPLITS}
            lengths = {name: description["lengths"][name] for name in column_names(self.schema)}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DinError(
                f"{self.path}/schema.json lacks {error}: it is damaged; {MEND}"
            ) from error
        check_store(self.path, description, self.schema, verify)
        self._columns = {name: self._map(name, n) for name, n in lengths.items()}

    @staticmethod
    def of_columns(
        schema: Schema,
        columns: Mapping[str, npt.NDArray[Any]],
        splits: Mapping[str, tuple[int, int]],
    ) -> Store:
        """A store in memory, without vocabularies: samples to score.

        Args:
          schema: of the samples.
          columns: {name: column}, all that `column_names` names.
          splits: {split: its first sample, and the one after its last}.
        """
        store = object.__new__(Store)
        store.path, store.schema, store.fingerprint = Path("memory"), schema, ""
        store.origin, store.like = {}, ()
        store._splits = {name: list(splits.get(name, (0, 0))) for name in SPLITS}
        store._columns = {name: columns[name] for name in column_names(schema)}
        return store

    def __len__(self) -> int:
        """The number of samples in all splits."""
        return len(self._columns["samples/label"])

    def _map(self, name: str, length: int) -> npt.NDArray[Any]:
        path = self.path / f"{name}.npy"
        try:
            column = np.load(path, mmap_mode="r") if length else np.load(path)
        except Exception as error:  # a damaged header raises exceptions of several modules
            raise DinError(f"{path}: missing or damaged ({error}); {MEND}") from error
        if column.shape != (length,):
            raise DinError(
                f"{path}: {list(column.shape)} entries, but schema.json says {length}; {MEND}"
            )
        return np.asarray(column)  # a plain view: indexing np.memmap itself is slow

    def column(self, name: str) -> npt.NDArray[Any]:
        """A read-only column, by its path in the store without ".npy"."""
        return self._columns[name]

    def with_columns(self, columns: Mapping[str, npt.NDArray[Any]]) -> Store:
        """A copy of the store with some columns replaced in memory, for experiments.

        Args:
          columns: {name: column}, each with the length of the column that it replaces.
        """
        other = copy.copy(self)
        other._columns = {**self._columns, **columns}
        return other

    def split(self, name: str) -> range:
        """The samples of a split, or of consecutive splits joined by "+" ("train+validation").

        Raises:
          DinError: there is no such split.
        """
        parts = name.split("+")
        if any(part not in self._splits for part in parts):
            raise DinError(f"no split {name!r}; {self.path} has: {', '.join(self._splits)}")
        bounds = [self._splits[part] for part in parts]
        if any(first[1] != second[0] for first, second in itertools.pairwise(bounds)):
            raise DinError(f"split {name!r}: join splits in their order: {'+'.join(self._splits)}")
        return range(bounds[0][0], bounds[-1][1])

    def vocabulary(self, table: str) -> Vocabulary:
        """Reads the raw ids of a table's rows and their counts in training.

        Raises:
          DinError: the file is missing or damaged.
        """
        import polars as pl

        path = self.path / "vocab" / f"{table}.parquet"
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DinError(f"{path}: missing or damaged; {MEND}") from error
        return Vocabulary(frame["id"], frame["count"].to_numpy())


def read_description(path: Path) -> dict[str, Any]:
    """Reads a store's `schema.json`.

    Raises:
      DinError: it is missing or damaged, or has another version.
    """
    file = path / "schema.json"
    if not path.exists():
        raise DinError(
            f"no store at {path}; make one with `python -m din_jax.prepare NAME --out {path}`"
        )
    try:
        description: dict[str, Any] = json.loads(file.read_text())
        if description["format"] != FORMAT or not isinstance(description["version"], int):
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DinError(f"{path} is not a din_jax store: {file} can't be read ({error})") from error
    if description["version"] not in (VERSION, LATER_VERSION):
        raise DinError(
            f"{path} is a store of version {description['version']}, this din_jax reads version "
            f"{VERSION} or {LATER_VERSION}; prepare it again with `python -m din_jax.prepare`"
        )
    check_description(file, description)
    return description
