"""Reads a file of `export_samples.py` as the inputs of other libraries."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from din_jax.data.schema import Schema
from din_jax.errors import DinError


class Split(NamedTuple):
    """The samples of a split: the library's inputs, and the labels and users for the metrics."""

    inputs: dict[str, np.ndarray]
    label: np.ndarray
    user: np.ndarray

    def whole_batches(self, size: int) -> Split:
        """Drops the samples of the last batch if it is not full, so that all steps have one size.

        Raises:
          DinError: there are fewer than two batches.
        """
        samples = len(self.label)
        if samples < 2 * size:
            raise DinError(
                f"--batch {size}: the file has {samples} training samples; two batches are needed"
            )
        count = samples // size * size
        inputs = {name: x[:count] for name, x in self.inputs.items()}
        return Split(inputs, self.label[:count], self.user[:count])

    def joined(self, other: Split) -> Split:
        """Concatenates two splits."""
        inputs = {k: np.concatenate([v, other.inputs[k]]) for k, v in self.inputs.items()}
        return Split(
            inputs,
            np.concatenate([self.label, other.label]),
            np.concatenate([self.user, other.user]),
        )


class Samples:
    """A file of `export_samples.py`. Splits are read on first access.

    Args:
      path: the file.
      extra_fields: names of optional fields to use as inputs.
      limit: the number of samples of each split to read; 0 reads all.

    Raises:
      DinError: the file can't be read, or has no such fields.
    """

    def __init__(self, path: Path, extra_fields: list[str], limit: int):
        try:
            self._arrays = np.load(path)
            described = json.loads(str(self._arrays["described"]))
        except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise DinError(
                f"{path} can't be read ({error}); make it with export_samples.py"
            ) from error
        self.schema = Schema.from_json(described["schema"])
        self.max_history = described["max_history"]
        self.fields = self.schema.inputs(extra_fields)
        behaviors = {behavior.ad for behavior in self.schema.sequences[0].fields}
        # The libraries concatenate ad and history in these orders, which must agree.
        self.histories = [field.name for field in self.fields if field.name in behaviors]
        self._limit = limit or None

    def columns(
        self, dim: int, sparse: Callable[..., Any], history: Callable[..., Any], **options: Any
    ) -> list[Any]:
        """The library's feature columns. An ad field and its history share a table.

        Args:
          dim: the width of every embedding.
          sparse, history: the library's `SparseFeat` and `VarLenSparseFeat`.
          options: additional arguments of `sparse`.
        """

        def feature(name: str, table: str) -> Any:
            rows = self.schema.rows(table) + 1  # one for padding
            return sparse(name, rows, embedding_dim=dim, embedding_name=table, **options)

        tables = {field.name: field.table for field in self.fields}
        return [feature(name, table) for name, table in tables.items()] + [
            history(
                feature(f"hist_{ad}", tables[ad]), maxlen=self.max_history, length_name="length"
            )
            for ad in self.histories
        ]

    def _split(self, name: str) -> Split:
        def read(column: str) -> np.ndarray:
            return self._arrays[f"{name}/{column}"][: self._limit]

        inputs = {f.name: read(f"fields/{f.name}") for f in self.fields}
        inputs |= {f"hist_{ad}": read(f"history/{ad}") for ad in self.histories}
        inputs["length"] = read("length")
        return Split(inputs, read("label"), read("user"))

    @cached_property
    def train(self) -> Split:
        """The training samples."""
        return self._split("train")

    @cached_property
    def validation(self) -> Split:
        """The validation samples."""
        return self._split("validation")

    @cached_property
    def both(self) -> Split:
        """The training and the validation samples."""
        return self.train.joined(self.validation)

    @cached_property
    def test(self) -> Split:
        """The test samples."""
        return self._split("test")

    def __getitem__(self, name: str) -> Split:
        """Reads a split: "train", "validation", "both" or "test"."""
        splits = {"train", "validation", "both", "test"}
        if name not in splits:
            raise KeyError(name)
        split: Split = getattr(self, name)
        return split
