"""Which columns a store of a schema has, and the files that hold them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence
from din_jax.errors import DinError

SPLITS = ("train", "validation", "test")
UNLABELLED = 255  # the label of a sample without one, which validation and test may have
CHUNK = 1 << 20  # entries of a column that are read at a time


def column_names(schema: Schema) -> Iterator[str]:
    """Yields the names of all columns of a store with this schema."""
    yield from ("samples/label", "samples/user")
    if any(sequence.times for sequence in schema.sequences):
        yield "samples/time"
    if schema.weighted:
        yield "samples/weight"
    for field in schema.fields:
        yield from _columns_of(f"fields/{field.name}", field)
    yield from (f"fields/{number.name}" for number in schema.numbers)
    for sequence in schema.sequences:
        yield from (f"sequences/{sequence.name}.start", f"sequences/{sequence.name}.end")
        for behavior in sequence.fields:
            yield from _columns_of(f"events/{sequence.name}/{behavior.name}", behavior)
        yield from (f"events/{sequence.name}/{number.name}" for number in sequence.numbers)
        if sequence.times:
            yield f"events/{sequence.name}.time"


def _columns_of(name: str, field: Field | BehaviorField) -> Iterator[str]:
    yield name
    if field.multi_hot:
        yield f"{name}.offsets"
    if field.weighted:
        yield f"{name}.weights"


def sequence_named(schema: Schema, name: str) -> Sequence:
    """The schema's sequence of this name."""
    return next(s for s in schema.sequences if s.name == name)


@dataclasses.dataclass(frozen=True)
class ColumnFile:
    """A column's .npy file, read in chunks: the pages of a memory map would stay in memory.

    Attributes:
      path: the file.
      dtype, length: of the column.
      header_bytes: where its values begin.
      known_bounds: its least and greatest value, if they are known.
    """

    path: Path
    dtype: np.dtype[Any]
    length: int
    header_bytes: int
    known_bounds: tuple[int, int] | None = None

    @staticmethod
    def open(path: Path) -> ColumnFile:
        """Reads the header of a column.

        Raises:
          DinError: the file is missing, damaged, or no column.
        """
        try:
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"the header has version {version}, expected (1, 0)")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                begin = file.tell()
            bytes_expected = begin + int(np.prod(shape)) * dtype.itemsize
            if len(shape) != 1 or dtype.hasobject or path.stat().st_size != bytes_expected:
                raise ValueError(f"its header says {dtype}{list(shape)}, which it does not hold")
        except Exception as error:  # a damaged header raises exceptions of several modules
            raise DinError(f"{path}: missing or damaged ({error})") from error
        return ColumnFile(path, dtype, shape[0], begin)

    def chunks(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the values, `CHUNK` at a time."""
        with self.path.open("rb") as file:
            file.seek(self.header_bytes)
            for start in range(0, self.length, CHUNK):
                yield np.fromfile(file, self.dtype, min(CHUNK, self.length - start))

    def at(self, indices: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The values at some places; the file is mapped only for them."""
        values: npt.NDArray[Any] = np.load(self.path, mmap_mode="r")[indices]
        return values

    @functools.cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest value of a column of integers that has some."""
        if self.known_bounds is not None:
            return self.known_bounds
        found = [(int(chunk.min()), int(chunk.max())) for chunk in self.chunks()]
        return min(low for low, _ in found), max(high for _, high in found)
