"""Checks what a store holds: lengths, labels, ids, offsets, histories, times, weights, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as Items

import numpy as np

from din_jax.data.columns import SPLITS, UNLABELLED, ColumnFile, column_names, sequence_named
from din_jax.data.schema import Schema, Sequence
from din_jax.errors import DinError

WEIGHTS = (1e-20, 1e20)  # of a sample, or 0; float32 sums of others could be 0 or infinite
_LATEST = 253_402_300_799  # the last second of the year 9999; greater times have another unit


class StoreChecks:
    """The checks of one store, whether it is being written or read.

    Args:
      schema: of the store.
      columns: {name: column}.
      splits: {split: its first sample, and the one after its last}.
    """

    def __init__(
        self, schema: Schema, columns: Mapping[str, ColumnFile], splits: Mapping[str, Items[int]]
    ):
        self.schema, self._columns, self._splits = schema, columns, splits

    def check(self) -> None:
        """Checks everything.

        Raises:
          DinError: columns are missing, of unequal lengths, or with invalid values: see
            `docs/store.md`.
        """
        self._check_lengths()
        self._check_values()

    def is_later(self) -> bool:
        """Whether the store has what readers of version 1 do not know."""
        schema = self.schema
        numbers = any((schema.numbers, *(s.numbers for s in schema.sequences)))
        weights = schema.weighted or any(f.weighted for f in schema.fields_of_ids())
        return weights or numbers or self._has_unlabelled()

    def _check_lengths(self) -> None:
        """Checks that all columns exist, their lengths, and the splits."""
        lengths = {name: column.length for name, column in sorted(self._columns.items())}
        expected = set(column_names(self.schema))
        if set(lengths) != expected:
            raise DinError(
                "store: columns missing: "
                + (", ".join(sorted(expected - set(lengths))) or "none")
                + "; columns that the schema does not know: "
                + (", ".join(sorted(set(lengths) - expected)) or "none")
            )
        samples = lengths["samples/label"]
        bounds = [bound for name in SPLITS for bound in self._splits[name]]
        if bounds[::2] != [0, *bounds[1:-1:2]] or bounds[-1] != samples or sorted(bounds) != bounds:
            raise DinError(
                f"store: the splits {dict(self._splits)} do not follow one another from 0 to "
                f"{samples}"
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
            for starts, ends in zip(
                self._columns[start].chunks(), self._columns[end].chunks(), strict=True
            ):
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
        for weights in column.chunks():
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
        chunks = (self._columns[column].chunks() for column in (start, end, "samples/time"))
        for starts, ends, times in zip(*chunks, strict=True):
            samples = np.flatnonzero(starts < ends)
            if len(samples):
                events = ends[samples].astype(np.int64) - 1
                last = self._columns[name].at(events)
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
        first = sequence.fields[0]
        name = f"events/{sequence.name}/{first.name}"
        if first.multi_hot:
            return self._columns[f"{name}.offsets"].length - 1
        return self._columns[name].length

    def _has_unlabelled(self) -> bool:
        """Whether samples lack a label, and all others have 0 or 1."""
        column = self._columns["samples/label"]
        return (
            column.dtype == np.uint8
            and column.length > 0
            and column.bounds[1] == UNLABELLED
            and all(((chunk <= 1) | (chunk == UNLABELLED)).all() for chunk in column.chunks())
        )

    def _check_range(self, name: str, low: int, high: int, unit: str = "") -> None:
        column = self._columns[name]
        if column.dtype.kind not in "iu":
            raise DinError(f"store: column {name} holds {column.dtype}, expected integers")
        if not column.length:
            return
        least, greatest = column.bounds
        if not low <= least <= greatest <= high:
            raise DinError(
                f"store: column {name} holds values from {least} to {greatest}, "
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
        for chunk in self._columns[name].chunks():
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
        for chunk in self._columns[f"{name}.offsets"].chunks():
            first = chunk[0] if first is None else first
            ascending = ascending and chunk[0] >= last and bool((chunk[1:] >= chunk[:-1]).all())
            last = chunk[-1]
        if first != 0 or last != values or not ascending:
            raise DinError(f"store: {name}.offsets must rise from 0 to {values}")
