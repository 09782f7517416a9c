"""A request out of a store, whose scores an artifact must have wherever it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from din_jax.data.packing import Packer
from din_jax.data.schema import BehaviorField, Field, NumericField, Schema
from din_jax.data.store import SPLITS, Store
from din_jax.data.transform import Transform
from din_jax.data.vocabularies import Buckets

_CANDIDATES = 4
_TRIED = 1000  # samples among which that with the longest history is taken


def probe_request(store: Store, schema: Schema, *, max_history: int = 20) -> dict[str, Any]:
    """The user of a test sample, and the ads of that and the next ones, as raw values.

    Numbers and buckets are given by a number of about their size: a store does not keep the raw
    ones.
    """
    samples = next(s for s in map(store.split, reversed(SPLITS)) if len(s))
    raw = _Raw(store)
    packer = Packer(store, max_history)
    tried = np.arange(samples.start, min(samples.stop, samples.start + _TRIED))
    history = [name in {s.name for s in schema.sequences} for name in packer.axes]
    lengths = packer.lengths(tried)[:, history].sum(axis=1)
    sample = int(tried[np.argmax(lengths)])
    ads = range(sample, min(sample + _CANDIDATES, samples.stop))
    request: dict[str, Any] = {"user": {}, "context": {}, "candidates": {}, "behaviors": {}}
    inputs: list[Field | NumericField] = [*schema.fields, *schema.numbers]
    for field in inputs:
        if field.group == "ad":
            request["candidates"][field.name] = [raw.field(field, ad) for ad in ads]
        else:
            request[field.group][field.name] = raw.field(field, sample)
    for sequence in schema.sequences:
        start, end = (int(a[0]) for a in packer.history(sequence.name, np.array([sample])))
        events = range(start, end)
        columns: dict[str, list[Any]] = {}
        for behavior in sequence.fields:
            name = f"events/{sequence.name}/{behavior.name}"
            columns[behavior.name] = [raw.ids(behavior, name, event) for event in events]
        for number in sequence.numbers:
            columns[number.name] = [1.0 for _ in events]
        if sequence.times:
            columns["time"] = [int(store.column(f"events/{sequence.name}.time")[e]) for e in events]
            request["time"] = int(store.column("samples/time")[sample])
        request["behaviors"][sequence.name] = columns
    return request


class _Raw:
    """Raw values of a store's rows."""

    def __init__(self, store: Store):
        self.store = store
        self.tables = Transform.of_store(store).tables

    def field(self, field: Field | NumericField, sample: int) -> Any:
        if isinstance(field, NumericField):
            return 1.0
        return self.ids(field, f"fields/{field.name}", sample)

    def ids(self, field: Field | BehaviorField, name: str, entry: int) -> Any:
        rows = self.store.column(name)
        if not field.multi_hot:
            return self._of_row(field.table, int(rows[entry]))
        offsets = self.store.column(f"{name}.offsets")
        part = slice(int(offsets[entry]), int(offsets[entry + 1]))
        ids = [self._of_row(field.table, int(row)) for row in rows[part]]
        if not field.weighted:
            return ids
        weights = self.store.column(f"{name}.weights")[part].tolist()
        return [list(pair) for pair in zip(ids, weights, strict=True)]

    def _of_row(self, table: str, row: int) -> Any:
        if not row:
            return None
        fitted = self.tables[table]
        if isinstance(fitted, Buckets):
            return float(fitted.ids[row - 1]) if row > 1 else None
        value = fitted.ids[row - 1]
        return value if isinstance(value, int | str | float) else pl.Series([value]).cast(str)[0]
