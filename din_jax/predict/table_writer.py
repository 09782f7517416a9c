"""Writes a table in parts: Parquet, CSV or JSON lines."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import polars as pl

from din_jax.errors import DinError

SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")


class TableWriter:
    """Writes parts of a table to a temporary folder, and the table to its path when it is complete.

    Use it as a context manager: `append` the parts, and call `finish` at the end.

    Args:
      path: of the new file; its suffix tells the format.

    Raises:
      DinError: the suffix is none of `SUFFIXES`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if self.path.suffix not in SUFFIXES:
            raise DinError(
                f"{self.path}: its suffix {self.path.suffix!r} is not a table's; expected "
                f"{', '.join(SUFFIXES)}"
            )
        self._parts = 0

    def __enter__(self) -> TableWriter:
        self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(
            tempfile.mkdtemp(prefix=f".{self.path.name}.partial-", dir=self.path.absolute().parent)
        )
        self._whole = self._folder / f"whole{self.path.suffix}"
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, frame: pl.DataFrame) -> None:
        """Appends rows; text columns may be null in all rows of a part.

        Raises:
          DinError: a column can't be written as CSV.
        """
        if self.path.suffix == ".parquet":
            frame.write_ipc(self._folder / f"{self._parts:09}.arrow")
        elif self.path.suffix == ".csv":
            nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
            if nested:
                raise DinError(
                    f"{self.path}: the column {nested[0]!r} has lists, which CSV can't hold; name "
                    "a .parquet or .jsonl file"
                )
            with self._whole.open("ab") as file:
                frame.write_csv(file, include_header=not self._parts)
        else:
            with self._whole.open("ab") as file:
                frame.write_ndjson(file)
        self._parts += 1

    def finish(self) -> None:
        """Writes the table to its path.

        Raises:
          DinError: no part has been appended.
        """
        if not self._parts:
            raise DinError(f"{self.path}: there are no rows to write")
        if self.path.suffix == ".parquet":
            parts = [pl.scan_ipc(p) for p in sorted(self._folder.glob("*.arrow"))]
            pl.concat(parts, how="diagonal_relaxed").sink_parquet(self._whole)
        with self._whole.open("rb") as file:
            os.fsync(file.fileno())
        os.rename(self._whole, self.path)
