"""Stores in memory whose samples take their features from several samples of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.data.columns import column_names
from din_jax.data.packing import ranges
from din_jax.data.store import Store

Samples = npt.NDArray[Any]


def recombined(
    store: Store, samples: Samples, features: Mapping[str, Samples] | None = None
) -> Store:
    """A store of N samples, all of its split "test", that are put together from those of a store.

    Args:
      store: where they come from.
      samples: [N] the sample that sample i is, but for `features`.
      features: {field or behaviour sequence: [N] the sample that sample i takes it from}. So one
        user meets many ads, or a feature is permuted.
    """
    features = features or {}
    schema = store.schema
    columns: dict[str, npt.NDArray[Any]] = {}

    def take(name: str, sources: Samples) -> None:
        columns[name] = store.column(name)[sources]

    for name in ("label", "user", *["weight"] * schema.weighted):
        take(f"samples/{name}", samples)
    if any(sequence.times for sequence in schema.sequences):
        take("samples/time", samples)
    for field in schema.fields:
        name, sources = f"fields/{field.name}", features.get(field.name, samples)
        if not field.multi_hot:
            take(name, sources)
            continue
        offsets = store.column(f"{name}.offsets").astype(np.int64)
        start, end = offsets[sources], offsets[sources + 1]
        positions, _ = ranges(start, end)
        take(name, positions)
        columns[f"{name}.offsets"] = np.concatenate([[0], np.cumsum(end - start)])
        if field.weighted:
            take(f"{name}.weights", positions)
    for number in schema.numbers:
        take(f"fields/{number.name}", features.get(number.name, samples))
    for sequence in schema.sequences:
        sources = features.get(sequence.name, samples)
        for end_of in ("start", "end"):
            take(f"sequences/{sequence.name}.{end_of}", sources)
    for name in column_names(schema):
        if name.startswith("events/"):  # all behaviours: samples refer to ranges of them
            columns[name] = store.column(name)
    return Store.of_columns(schema, columns, {"test": (0, len(samples))})
