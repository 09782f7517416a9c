"""Writes a store: appends to its columns, and checks them at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from din_jax.data.schema import Schema, Sequence
from din_jax.data.store import (
    FORMAT,
    LATER_VERSION,
    SPLITS,
    UNLABELLED,
    VERSION,
    column_names,
    sequence_named,
)
from din_jax.errors import DinError

# Polars is imported only where vocabularies are written: its import takes 0.3 s and 20 MB.
if TYPE_CHECKING:
    import polars as pl

_LATEST = 253_402_300_799  # the last second of the year 9999; greater times have another unit
WEIGHTS = (1e-20, 1e20)  # of a sample, or 0; float32 sums of others could be 0 or infinite
_CHECKED_AT_ONCE = 1 << 20  # entries of a column that `finish` reads at a time


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

    def __exit__(self, *_: object) -> None:
        for column in self._columns.values():
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
        frame.with_row_index("row").write_parquet(path)
        digest = hashlib.sha256(counts.astype("<i8").tobytes())
        digest.update(ids.cast(pl.String).str.join("\0").item().encode())
        self._digests[f"vocab/{table}"] = digest.hexdigest()

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

        Args:
          splits: the samples [start, stop) of "train", "validation" and "test".
          origin: how the store was made, for its readers; any JSON object.
          like: fingerprints of the stores whose vocabularies it has, see `Store.like`.
        """
        for column in self._columns.values():
            column.close()
        lengths = {name: column.length for name, column in sorted(self._columns.items())}
        self._check_lengths(lengths, splits)
        self._check_values()
        self._digests |= {name: column.digest.hexdigest() for name, column in self._columns.items()}
        description: dict[str, Any] = {
            "format": FORMAT,
            "version": LATER_VERSION if self._is_later() else VERSION,
            "schema": self.schema.to_json(),
            "splits": {name: list(splits[name]) for name in SPLITS},
            "lengths": lengths,
        }
        if like:
            description["like"] = list(like)
        content = json.dumps([description, sorted(self._digests.items())], sort_keys=True)
        description["fingerprint"] = hashlib.sha256(content.encode()).hexdigest()
        description["origin"] = dict(origin)
        (self._partial / "schema.json").write_text(json.dumps(description, indent=2) + "\n")
        try:
            os.rename(self._partial, self.path)
        except OSError as error:
            raise DinError(
                f"{self.path} was created by another program meanwhile; delete it and prepare again"
            ) from error

    def _check_lengths(
        self, lengths: dict[str, int], splits: Mapping[str, tuple[int, int]]
    ) -> None:
        """Checks that all columns and vocabularies exist, and the columns' lengths."""
        expected = set(column_names(self.schema))
        if set(lengths) != expected:
            raise DinError(
                "store: columns missing: "
                + (", ".join(sorted(expected - set(lengths))) or "none")
                + "; columns that the schema does not know: "
                + (", ".join(sorted(set(lengths) - expected)) or "none")
            )
        missing = {t.name for t in self.schema.tables} - {
            name.removeprefix("vocab/") for name in self._digests
        }
        if missing:
            raise DinError(f"store: no vocabulary for: {', '.join(sorted(missing))}")
        samples = lengths["samples/label"]
        bounds = [bound for name in SPLITS for bound in splits[name]]
        if bounds[::2] != [0, *bounds[1:-1:2]] or bounds[-1] != samples or sorted(bounds) != bounds:
            raise DinError(
                f"store: the splits {dict(splits)} do not follow one another from 0 to {samples}"
            )
        for name in lengths:
            folder, _, column = name.partition("/")
            offsets = f"{name}.offsets"
            if folder == "events":
                sequence = column.partition("/")[0].removesuffix(".time")
                length = self._events(sequence_named(self.schema, sequence))
            else:
                length = samples
            if name.endswith(".offsets"):
                length += 1
            if name.endswith(".weights"):
                length = lengths[name.removesuffix(".weights")]
            if offsets not in lengths and lengths[name] != length:
                raise DinError(
                    f"store: column {name} has {lengths[name]} entries, expected {length}"
                )

    def _check_values(self) -> None:
        """Checks the range of all values: labels, users, weights, ids, offsets and histories."""
        if not self._has_unlabelled():
            self._check_range("samples/label", 0, 1)
        self._check_range("samples/user", 0, np.iinfo(np.int32).max)
        if "samples/time" in self._columns:
            self._check_range("samples/time", -_LATEST, _LATEST, "seconds, ")
        if "samples/weight" in self._columns:
            self._check_weights()
        for field in self.schema.fields:
            self._check_range(f"fields/{field.name}", 0, self.schema.rows(field.table) - 1)
            if field.multi_hot:
                self._check_offsets(f"fields/{field.name}")
            if field.weighted:
                self._check_numbers(f"fields/{field.name}.weights", missing=False)
        for number in self.schema.numbers:
            self._check_numbers(f"fields/{number.name}")
        for sequence in self.schema.sequences:
            for behavior in sequence.fields:
                name = f"events/{sequence.name}/{behavior.name}"
                self._check_range(name, 0, self.schema.rows(behavior.table) - 1)
                if behavior.multi_hot:
                    self._check_offsets(name)
                if behavior.weighted:
                    self._check_numbers(f"{name}.weights", missing=False)
            for behavior_number in sequence.numbers:
                self._check_numbers(f"events/{sequence.name}/{behavior_number.name}")
            events = self._events(sequence)
            start, end = f"sequences/{sequence.name}.start", f"sequences/{sequence.name}.end"
            self._check_range(start, 0, events)
            self._check_range(end, 0, events)
            first = 0  # the first sample of a chunk
            for starts, ends in zip(self._chunks(start), self._chunks(end), strict=True):
                if (starts > ends).any():
                    i = int(np.argmax(starts > ends))
                    raise DinError(
                        f"store: {start}[{first + i}] is {starts[i]}, "
                        f"after {end}[{first + i}], {ends[i]}"
                    )
                first += len(starts)
            if sequence.times:
                self._check_times(sequence)

    def _check_weights(self) -> None:
        column, (least, greatest) = self._columns["samples/weight"], WEIGHTS
        if column.dtype != np.float32:
            raise DinError(f"store: column samples/weight holds {column.dtype}, expected float32")
        first = 0  # the first sample of a chunk
        for weights in self._chunks("samples/weight"):
            valid = (weights == 0) | ((weights >= least) & (weights <= greatest))
            if not valid.all():
                i = int(np.argmin(valid))
                raise DinError(
                    f"store: samples/weight[{first + i}] is {weights[i]:g}, expected 0, or a "
                    f"number from {least:g} to {greatest:g}"
                )
            first += len(weights)

    def _check_times(self, sequence: Sequence) -> None:
        """Checks that no history ends with a behaviour that is later than its sample."""
        name, start, end = (
            f"events/{sequence.name}.time",
            f"sequences/{sequence.name}.start",
            f"sequences/{sequence.name}.end",
        )
        self._check_range(name, -_LATEST, _LATEST, "seconds, ")
        first = 0  # the first sample of a chunk
        for starts, ends, times in zip(
            self._chunks(start), self._chunks(end), self._chunks("samples/time"), strict=True
        ):
            samples = np.flatnonzero(starts < ends)
            if len(samples):
                events = ends[samples].astype(np.int64) - 1
                # Mapped for one chunk only, since its pages would stay in memory.
                last = np.load(self._partial / f"{name}.npy", mmap_mode="r")[events]
                later = last > times[samples]
                if later.any():
                    i = int(np.argmax(later))
                    raise DinError(
                        f"store: samples/time[{first + samples[i]}] is {times[samples[i]]}, before "
                        f"the last behaviour of its history, {name}[{events[i]}], {last[i]}"
                    )
            first += len(starts)

    def _events(self, sequence: Sequence) -> int:
        """The number of events of a sequence, according to its first field."""
        name = f"events/{sequence.name}/{sequence.fields[0].name}"
        if sequence.fields[0].multi_hot:
            return self._columns[f"{name}.offsets"].length - 1
        return self._columns[name].length

    def _has_unlabelled(self) -> bool:
        """Whether samples lack a label, and all others have 0 or 1."""
        column = self._columns["samples/label"]
        return (
            column.dtype == np.uint8
            and column.high == UNLABELLED
            and all(
                ((chunk <= 1) | (chunk == UNLABELLED)).all()
                for chunk in self._chunks("samples/label")
            )
        )

    def _is_later(self) -> bool:
        """Whether the store has what readers of version 1 do not know."""
        schema = self.schema
        numbers = any((schema.numbers, *(s.numbers for s in schema.sequences)))
        weights = schema.weighted or any(f.weighted for f in schema.fields_of_ids())
        return weights or numbers or self._has_unlabelled()

    def _check_range(self, name: str, low: int, high: int, unit: str = "") -> None:
        column = self._columns[name]
        if column.dtype.kind not in "iu":
            raise DinError(f"store: column {name} holds {column.dtype}, expected integers")
        if column.length and not low <= column.low <= column.high <= high:
            raise DinError(
                f"store: column {name} holds values from {column.low} to {column.high}, "
                f"expected {unit}{low} to {high}"
            )

    def _check_numbers(self, name: str, *, missing: bool = True) -> None:
        """Checks float32 numbers: none is infinite, and none NaN unless numbers may be missing."""
        if self._columns[name].dtype != np.float32:
            raise DinError(
                f"store: column {name} holds {self._columns[name].dtype}, expected float32"
                + ", NaN where the number is missing" * missing
            )
        first = 0  # the first entry of a chunk
        for chunk in self._chunks(name):
            invalid = np.isinf(chunk) if missing else ~np.isfinite(chunk)
            if invalid.any():
                i = int(np.argmax(invalid))
                raise DinError(
                    f"store: {name}[{first + i}] is {chunk[i]}, expected a finite number"
                    + ", or NaN where it is missing" * missing
                )
            first += len(chunk)

    def _check_offsets(self, name: str) -> None:
        values = self._columns[name].length
        self._check_range(f"{name}.offsets", 0, values)
        ascending, first, last = True, None, 0
        for chunk in self._chunks(f"{name}.offsets"):
            first = chunk[0] if first is None else first
            ascending = ascending and chunk[0] >= last and bool((chunk[1:] >= chunk[:-1]).all())
            last = chunk[-1]
        if first != 0 or last != values or not ascending:
            raise DinError(f"store: {name}.offsets must rise from 0 to {values}")

    def _chunks(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """Reads a closed column in chunks; the pages of a memory map would stay in memory."""
        column = self._columns[name]
        with (self._partial / f"{name}.npy").open("rb") as file:
            file.seek(column.header_bytes)
            for start in range(0, column.length, _CHECKED_AT_ONCE):
                yield np.fromfile(file, column.dtype, min(_CHECKED_AT_ONCE, column.length - start))


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

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.flush()
        with contextlib.suppress(OSError):  # not every file system supports it
            os.fsync(self.file.fileno())
        self.file.close()
