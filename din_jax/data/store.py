"""A prepared data set on disk: memory-mapped columns, vocabularies with counts, a fingerprint.

    STORE/
      schema.json                       schema, splits, lengths, origin, fingerprint
      samples/label.npy, user.npy       one entry a sample
      fields/NAME.npy                   one id a sample; a multi-hot field's values, end to end,
      fields/NAME.offsets.npy           and where each sample's values begin
      sequences/NAME.start.npy, .end.npy   the sample's history is events[start:end]
      events/NAME/FIELD.npy             every behaviour, once: users one after the other, in time
      events/NAME/FIELD.offsets.npy     (multi-hot only) where each behaviour's values begin
      vocab/TABLE.parquet               row, id, count
      counts/…                          n_j, cached by runs that need it (`din_jax.data.counts`)

A history is stored once: samples point into it, so that nothing is padded or repeated. The samples
of a split lie together, train first, then validation, then test.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from din_jax.data.schema import Schema, Sequence
from din_jax.errors import DinError

# Imported where vocabularies are read or written: training needs none, and Polars takes 0.3 s and
# 20 MB.
if TYPE_CHECKING:
    import polars as pl

FORMAT = "din_jax store"
VERSION = 1
SPLITS = ("train", "validation", "test")


class Vocabulary(NamedTuple):
    """Row r of a table stands for raw id `ids[r]`, seen `counts[r]` times in training.

    `ids[0]` is None: row 0 is "unknown".
    """

    ids: pl.Series
    counts: np.ndarray


class Store:
    """A store opened for reading. Columns are memory-mapped: opening reads next to nothing.

    Attributes:
      path, schema: where it is and what a sample is.
      fingerprint: hexadecimal digest of all that training reads, taken when it was written.
      origin: how it was made.

    Raises:
      DinError: `path` is no store, is of another version, or a column is missing or cut short.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        described = read_description(self.path)
        try:
            self.schema = Schema.from_json(described["schema"])
            self.fingerprint: str = described["fingerprint"]
            self.origin: dict[str, Any] = described["origin"]
            self._splits = {name: described["splits"][name] for name in SPLITS}
            lengths = {name: described["lengths"][name] for name in column_names(self.schema)}
        except (KeyError, TypeError) as error:
            raise DinError(
                f"{self.path}/schema.json lacks {error}: it is damaged; prepare the store again"
            ) from error
        self._columns = {name: self._map(name, n) for name, n in lengths.items()}

    def __len__(self) -> int:
        """Samples of all splits together."""
        return len(self._columns["samples/label"])

    def _map(self, name: str, length: int) -> np.ndarray:
        path = self.path / f"{name}.npy"
        try:
            column = np.load(path, mmap_mode="r") if length else np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise DinError(
                f"{path}: missing or cut short ({error}); prepare the store again"
            ) from error
        if len(column) != length:
            raise DinError(
                f"{path}: {len(column)} entries, but schema.json says {length}; "
                "prepare the store again"
            )
        return np.asarray(column)  # a plain view: indexing np.memmap itself is slow

    def column(self, name: str) -> np.ndarray:
        """A column by its path in the store without ".npy", read-only."""
        return self._columns[name]

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> Store:
        """A copy of the store, in memory, in which some columns are replaced: for experiments.

        Args:
          columns: by name, each as long as the one that it replaces.
        """
        other = copy.copy(self)
        other._columns = {**self._columns, **columns}
        return other

    def split(self, name: str) -> range:
        """The samples of a split, or of several joined by "+" ("train+validation").

        Raises:
          DinError: there is no such split.
        """
        parts = name.split("+")
        if any(part not in self._splits for part in parts):
            raise DinError(f"no split {name!r}; {self.path} has: {', '.join(self._splits)}")
        bounds = [self._splits[part] for part in parts]
        if any(a[1] != b[0] for a, b in itertools.pairwise(bounds)):
            raise DinError(f"split {name!r}: join splits in their order: {'+'.join(self._splits)}")
        return range(bounds[0][0], bounds[-1][1])

    def vocabulary(self, table: str) -> Vocabulary:
        """The raw ids of a table's rows and their counts in training."""
        import polars as pl

        path = self.path / "vocab" / f"{table}.parquet"
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DinError(f"{path}: missing or damaged; prepare the store again") from error
        return Vocabulary(frame["id"], frame["count"].to_numpy())


def column_names(schema: Schema) -> Iterator[str]:
    """The names of all columns that a store of this schema has."""
    yield from ("samples/label", "samples/user")
    for field in schema.fields:
        name = f"fields/{field.name}"
        yield from (name, f"{name}.offsets") if field.multi_hot else (name,)
    for sequence in schema.sequences:
        yield from (f"sequences/{sequence.name}.start", f"sequences/{sequence.name}.end")
        for behavior in sequence.fields:
            name = f"events/{sequence.name}/{behavior.name}"
            yield from (name, f"{name}.offsets") if behavior.multi_hot else (name,)


def sequence_named(schema: Schema, name: str) -> Sequence:
    """The schema's sequence of this name."""
    return next(s for s in schema.sequences if s.name == name)


def read_description(path: Path) -> dict[str, Any]:
    """The content of a store's `schema.json`.

    Raises:
      DinError: it is missing, damaged, or of another version.
    """
    file = path / "schema.json"
    if not path.exists():
        raise DinError(
            f"no store at {path}; make one with `python -m din_jax.prepare NAME --out {path}`"
        )
    try:
        described = json.loads(file.read_text())
        if described["format"] != FORMAT or not isinstance(described["version"], int):
            raise KeyError("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DinError(f"{path} is not a din_jax store: {file} can't be read ({error})") from error
    if described["version"] != VERSION:
        raise DinError(
            f"{path} is a store of version {described['version']}, this din_jax reads version "
            f"{VERSION}; prepare it again with `python -m din_jax.prepare`"
        )
    return described
