"""Reads vectors of a table's ids that were trained elsewhere: Parquet by id, .npy by row."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from din_jax.data.store import Store, Vocabulary
from din_jax.errors import DinError

# Imported only where it is needed: see `din_jax.data.store`.
if TYPE_CHECKING:
    import polars as pl

_KEY = "config.model.pretrained"
_FEW = 0.5  # share of the occurrences in training below which `summary` adds a note


class Pretrained(NamedTuple):
    """The vectors of some rows of a table.

    Attributes:
      path: the file.
      rows: int32[n], ascending. Row 0, "unknown", is not among them.
      vectors: float32[n, D].
      of_rows: the share of the table's ids that have a vector.
      of_occurrences: the share of these ids' occurrences in training.
    """

    path: str
    rows: npt.NDArray[np.int32]
    vectors: npt.NDArray[np.float32]
    of_rows: float
    of_occurrences: float

    def checksum(self) -> str:
        """A digest of the rows and the vectors, not of the file's format or order."""
        digest = hashlib.sha256(self.rows.data)
        digest.update(np.ascontiguousarray(self.vectors).data)
        return digest.hexdigest()[:16]

    def summary(self, table: str) -> str:
        """A line for the user: how many of the table's ids have a vector."""
        line = (
            f"{table}: {self.path} has vectors of {self.of_rows:.1%} of the ids, "
            f"{self.of_occurrences:.1%} of their occurrences in training"
        )
        if self.of_occurrences < _FEW:
            line += "; note: the others begin as usual. Is it the file of these ids?"
        return line


def pretrained_files(text: str, tables: Collection[str]) -> dict[str, str]:
    """The files of vectors, {table: path}.

    Args:
      text: `config.model.pretrained`, "TABLE=FILE" separated by commas.
      tables: the tables that may have vectors.

    Raises:
      DinError: it can't be parsed, names a table twice, or one that is not in `tables`.
    """
    files: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, path = (word.strip() for word in part.partition("="))
        if not path or name not in tables or name in files:
            raise DinError(
                f"{_KEY} has {part!r}: expected TABLE=FILE, each table once; the tables of ids "
                f"that the model reads are: {', '.join(sorted(tables)) or 'none'}"
            )
        files[name] = path
    return files


def read_pretrained(text: str, store: Store, dims: Mapping[str, int]) -> dict[str, Pretrained]:
    """Reads the vectors that a config names, {table: `Pretrained`}.

    Two kinds of files are read:

    * FILE.parquet has a column `id`, the raw ids, and a column `vector`, lists of D numbers. Ids
      are compared in the type that they have in the store's vocabulary: 7 and "7" are equal. Ids
      that the vocabulary lacks, and null vectors, are left out.
    * FILE.npy is [K, D], in the order of the table's rows. Row 0, "unknown", is not read; other
      rows that are NaN throughout have no vector.

    Args:
      text: `config.model.pretrained`.
      store: the data set.
      dims: the widths D of the model's tables. Those that are no tables of the store have no ids.

    Raises:
      DinError: `text` can't be parsed; a file can't be read, has other columns, other widths, no id
        of the table, an id twice, or a number that is NaN or infinite.
    """
    tables = {table.name for table in store.schema.tables} & dims.keys()
    read = {}
    for name, path in pretrained_files(text, tables).items():
        vocabulary = store.vocabulary(name)
        where = f"{_KEY}: {path}"
        if not Path(path).is_file():
            raise DinError(f"{where}: no such file (relative to {Path.cwd()})")
        kinds = {".parquet": _by_id, ".npy": _by_row}
        if Path(path).suffix not in kinds:
            raise DinError(f"{where}: expected FILE.parquet, by id, or FILE.npy, by row")
        rows, vectors = kinds[Path(path).suffix](path, where, name, vocabulary, dims[name])
        occurrences = vocabulary.counts[1:].sum()
        read[name] = Pretrained(
            path,
            rows,
            vectors,
            len(rows) / max(len(vocabulary.ids) - 1, 1),
            float(vocabulary.counts[rows].sum() / max(occurrences, 1)),
        )
    return read


def _by_row(
    path: str, where: str, table: str, vocabulary: Vocabulary, dim: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The rows and vectors of a .npy file of [K, D]."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DinError(f"{where}: it can't be read as .npy ({error})") from error
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise DinError(
            f"{where}: an array {list(values.shape)} of {values.dtype}; expected numbers [K, D]"
        )
    if len(values) != len(vocabulary.ids):
        raise DinError(
            f"{where}: {len(values):,} rows, but the table {table!r} has {len(vocabulary.ids):,}, "
            f"with row 0 for unknown ids; give the vectors in the order of vocab/{table}.parquet "
            "in the store, or as Parquet with the columns id and vector"
        )
    _check_width(values.shape[1], where, table, dim)
    vectors = _float32(values)
    rows = np.flatnonzero(~np.isnan(vectors[1:]).all(axis=1)).astype(np.int32) + np.int32(1)
    if not len(rows):
        raise DinError(f"{where}: all its rows but row 0 are NaN; expected vectors")
    vectors = vectors[rows]
    _check_finite(vectors, where, lambda i: f"row {rows[i]}")
    return rows, vectors


def _by_id(
    path: str, where: str, table: str, vocabulary: Vocabulary, dim: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The rows and vectors of a Parquet file with the columns id and vector."""
    import polars as pl

    try:
        schema = pl.read_parquet_schema(path)
        if not {"id", "vector"} <= schema.keys():
            raise DinError(
                f"{where}: it has the columns {', '.join(schema)}; expected id and vector"
            )
        frame = pl.read_parquet(path, columns=["id", "vector"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DinError(f"{where}: it can't be read as Parquet ({error})") from error
    ids = frame["id"]
    if ids.null_count():
        raise DinError(f"{where}: the id of row {ids.is_null().arg_max()} is missing")
    try:
        lists = frame["vector"].cast(pl.List(pl.Float32))
        of_vocabulary = _in_type(ids, vocabulary.ids.dtype)
    except pl.exceptions.PolarsError as error:
        raise DinError(
            f"{where}: id is of type {ids.dtype} and vector of {frame['vector'].dtype}; expected "
            "whole numbers or text, and lists of numbers"
        ) from error
    _check_widths(lists, ids, where, table, dim)
    known = pl.DataFrame({"id": vocabulary.ids, "row": np.arange(len(vocabulary.ids))})
    given = pl.DataFrame({"id": of_vocabulary, "place": np.arange(len(ids))})
    matched = known.join(given, on="id", how="inner", maintain_order="left")
    if matched.is_empty():
        raise DinError(
            f"{where}: none of its ids is in the table {table!r}. It has "
            f"{_examples(ids)}, the table {_examples(vocabulary.ids[1:])}; write ids as the raw "
            f"data do (vocab/{table}.parquet in the store lists them)"
        )
    if matched["row"].n_unique() < len(matched):
        twice = matched.filter(pl.col("row").is_duplicated())
        first, second = twice["place"][0], twice["place"][1]
        raise DinError(
            f"{where}: rows {first} and {second} are both of id {ids[second]!r}; give each id once"
        )
    matched = matched.filter(lists.is_not_null().gather(matched["place"]))
    if matched.is_empty():
        raise DinError(f"{where}: all its ids of the table {table!r} lack a vector")
    places = matched["place"]
    vectors = lists.gather(places).explode().to_numpy().astype(np.float32).reshape(-1, dim)
    _check_finite(vectors, where, lambda i: f"row {places[i]}, of id {ids[places[i]]!r},")
    return matched["row"].to_numpy().astype(np.int32), vectors


def _in_type(ids: pl.Series, wanted: Any) -> pl.Series:
    """Ids in the type of a vocabulary; null where they can't be, and so are not in it."""
    import polars as pl

    if ids.dtype == wanted:
        return ids
    if ids.dtype.is_float() and not wanted.is_float():  # as pandas may write whole numbers
        whole = ids.cast(pl.Int64, strict=False)
        ids = whole.set((whole != ids).fill_null(True), None)
    if ids.dtype in (pl.Categorical, pl.Enum):
        ids = ids.cast(pl.String)
    return ids.cast(wanted, strict=False)


def _check_widths(lists: pl.Series, ids: pl.Series, where: str, table: str, dim: int) -> None:
    """Raises DinError unless all lists have D numbers."""
    widths = lists.list.len()
    usual: Any = widths.drop_nulls().mode().max()
    if usual is None:
        return
    others = (widths != usual).fill_null(False)
    if others.any():
        i = others.arg_max()
        raise DinError(
            f"{where}: the vector of row {i}, of id {ids[i]!r}, has {widths[i]} numbers, others "
            f"have {usual}; give vectors of one width"
        )
    _check_width(usual, where, table, dim)


def _check_width(width: int, where: str, table: str, dim: int) -> None:
    if width != dim:
        raise DinError(
            f"{where}: its vectors have {width} numbers, but the table {table!r} has the width "
            f"D={dim}; set config.model.table_dims={table}={width} (or "
            f"config.model.embedding_dim={width}), or reduce the vectors to {dim} first, by PCA "
            "for instance"
        )


def _check_finite(vectors: npt.NDArray[np.float32], where: str, name: Any) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise DinError(
            f"{where}: the vector of {name(int(finite.argmin()))} has a number that is missing, "
            "NaN, infinite or beyond float32; expected finite numbers"
        )


def _float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # too large: infinite, which is refused
        return np.asarray(values).astype(np.float32)


def _examples(ids: pl.Series) -> str:
    return f"ids such as {', '.join(repr(value) for value in ids[:3])} ({ids.dtype})"
