"""Writes a store: appends to its columns, and checks them at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from din_jax.data.columns import SPLITS, ColumnFile
from din_jax.data.files import checksum, json_checksum, sync, sync_tree, write_parquet
from din_jax.data.fingerprint import fingerprint, vocabulary_digest
from din_jax.data.schema import Schema
from din_jax.data.store import FORMAT, LATER_VERSION, VERSION
from din_jax.data.store_checks import StoreChecks
from din_jax.errors import DinError

# Polars is imported only where vocabularies are written: its import takes 0.3 s and 20 MB.
if TYPE_CHECKING:
    import polars as pl


def smallest_unsigned(maximum: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds `maximum`."""
    return np.min_scalar_type(int(maximum))


class StoreWriter:
    """Writes a store to a temporary folder, which is renamed to its path when it is complete.

    Use it as a context manager: `append` to the columns any number of times (nothing is buffered in
    memory), add the `vocabulary` of each table, and call `finish` at the end. After an exception in
    the block, or if the process is killed, there is nothing at the store's path.

    Raises:
      DinError: `path` exists already, or `finish` finds columns that are missing, of unequal
        lengths, or with invalid values: see `docs/store.md`.
    """

    def __init__(self, path: str | os.PathLike[str], schema: Schema):
        check_free(path)
        self.path = Path(path)
        self.schema = schema
        self._partial = self.path.parent / f".{self.path.name}.partial-{os.getpid()}"
        self._columns: dict[str, _Column] = {}
        self._digests: dict[str, str] = {}

    def __enter__(self) -> StoreWriter:
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, OSError) and str(self._partial) in str(
            error.filename or self._partial
        ):
            error.filename = str(self.path)  # the disk is full: the file will not be there
        for column in self._columns.values():
            with contextlib.suppress(OSError):  # the disk is full: the exception has said so
                column.file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, name: str, values: npt.NDArray[Any]) -> None:
        """Appends to the column `name` ("samples/label", "events/history/item", …).

        The first call fixes the column's type.
        """
        if name not in self._columns:
            self._columns[name] = _Column(self._partial / f"{name}.npy", values.dtype)
        self._columns[name].append(values)

    def vocabulary(self, table: str, ids: pl.Series, counts: npt.NDArray[Any]) -> None:
        """Sets the raw ids of rows 1, 2, … of a table, and their counts in training.

        Raises:
          DinError: the table has another number of rows, or an id occurs twice.
        """
        import polars as pl

        if table not in {t.name for t in self.schema.tables}:
            raise DinError(f"vocabulary of {table!r}: the schema has no such table")
        rows = self.schema.rows(table)
        if len(ids) != rows - 1 or len(counts) != rows - 1:
            raise DinError(
                f"vocabulary of table {table!r}: {len(ids)} ids and {len(counts)} counts; "
                f"the schema has {rows - 1} rows besides row 0"
            )
        if ids.n_unique() != len(ids):
            raise DinError(f"vocabulary of table {table!r}: an id occurs twice")
        path = self._partial / "vocab" / f"{table}.parquet"
        path.parent.mkdir(exist_ok=True)
        frame = pl.DataFrame(
            {
                "id": pl.concat([pl.Series([None], dtype=ids.dtype), ids]),
                "count": np.concatenate([[0], counts]).astype(np.int64),
            }
        )
        write_parquet(frame.with_row_index("row"), path)
        self._digests[f"vocab/{table}"] = vocabulary_digest(ids, counts)

    def titles(self, table: str, titles: pl.Series) -> None:
        """Sets the display names of a table's rows 1, 2, …; null for none. They are optional."""
        from din_jax.data.titles import write_titles  # imports Polars

        write_titles(self._partial, table, titles)

    def finish(
        self,
        splits: Mapping[str, tuple[int, int]],
        origin: Mapping[str, Any],
        *,
        like: tuple[str, ...] = (),
    ) -> None:
        """Checks the columns, writes `schema.json` and renames the folder to the store's path.

        What has been renamed is on the disk: a loss of power leaves the whole store, or nothing.

        Args:
          splits: the samples [start, stop) of "train", "validation" and "test".
          origin: how the store was made, for its readers; any JSON object.
          like: fingerprints of the stores whose vocabularies it has, see `Store.like`.
        """
        columns = {name: column.close() for name, column in sorted(self._columns.items())}
        checks = StoreChecks(self.schema, columns, splits)
        checks.check()
        missing = {t.name for t in self.schema.tables} - {
            name.removeprefix("vocab/") for name in self._digests
        }
        if missing:
            raise DinError(f"store: no vocabulary for: {', '.join(sorted(missing))}")
        self._digests |= {name: column.digest.hexdigest() for name, column in self._columns.items()}
        description: dict[str, Any] = {
            "format": FORMAT,
            "version": LATER_VERSION if checks.is_later() else VERSION,
            "schema": self.schema.to_json(),
            "splits": {name: list(splits[name]) for name in SPLITS},
            "lengths": {name: column.length for name, column in columns.items()},
        }
        if like:
            description["like"] = list(like)
        description["fingerprint"] = fingerprint(description, self._digests)
        files = (path for path in self._partial.rglob("*") if path.is_file())
        description["files"] = {
            str(path.relative_to(self._partial)): checksum(path) for path in sorted(files)
        }
        description["origin"] = json.loads(json.dumps(dict(origin)))  # as it will be read
        description["checksum"] = json_checksum(description)
        (self._partial / "schema.json").write_text(json.dumps(description, indent=2) + "\n")
        sync_tree(self._partial)
        try:
            os.rename(self._partial, self.path)
        except OSError as error:
            raise DinError(
                f"{self.path} was created by another program meanwhile; delete it and prepare again"
            ) from error
        sync(self.path.absolute().parent)


def check_free(path: str | os.PathLike[str]) -> None:
    """Raises `DinError` if no store can be created at `path`; call it before expensive work."""
    path = Path(path)
    if path.exists():
        raise DinError(f"{path} exists already; delete it or choose another path")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        # Tried, because a file's permissions alone do not tell.
        tempfile.TemporaryDirectory(prefix=".", dir=parent).cleanup()
    except OSError as error:
        raise DinError(
            f"{path} can't be made: {parent} is not a writable folder; choose another path"
        ) from error


class _Column:
    """A .npy file that is appended to; `close` rewrites its header with the final length."""

    def __init__(self, path: Path, dtype: np.dtype[Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.dtype = dtype
        self.length = 0
        self.low, self.high = 0, 0  # the least and the greatest value, if there are values
        self.digest = hashlib.sha256()
        self.file = path.open("wb")
        self._write_header()
        self.header_bytes = self.file.tell()

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow.
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self.dtype),
                "fortran_order": False,
                "shape": (self.length,),
            },
        )

    def append(self, values: npt.NDArray[Any]) -> None:
        stored = values.astype(self.dtype)
        # NaN, which `finish` refuses, equals nothing.
        equal_nan = stored.dtype.kind == "f"
        if values.ndim != 1 or not np.array_equal(stored, values, equal_nan=equal_nan):
            raise ValueError(f"{self.file.name}: {values.dtype}{values.shape} in {self.dtype}[:]")
        if len(stored) and stored.dtype.kind in "iu":
            low, high = int(stored.min()), int(stored.max())
            self.low = min(low, self.low) if self.length else low
            self.high = max(high, self.high) if self.length else high
        data = stored.tobytes()
        self.digest.update(data)
        self.file.write(data)
        self.length += len(values)

    def close(self) -> ColumnFile:
        self.file.seek(0)
        self._write_header()
        self.file.close()
        path, bounds = Path(self.file.name), (self.low, self.high)
        return ColumnFile(path, self.dtype, self.length, self.header_bytes, bounds)
