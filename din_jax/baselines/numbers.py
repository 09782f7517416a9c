"""A sample's numbers as they are, and whether they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.baselines.columns import Column
from din_jax.data.store import Store


class Number:
    """The number of a numeric field; a missing one has the mean of the training samples.

    Args:
      store, name: the data set and the field.
      fit: the training samples. If some lack the number, whether it is missing is a column too.
    """

    def __init__(self, store: Store, name: str, fit: range):
        self.name, self.values = name, store.column(f"fields/{name}")
        trained = self.values[fit.start : fit.stop].astype(np.float64)
        known = trained[~np.isnan(trained)]
        self.mean = float(known.mean()) if len(known) else 0.0
        self.some_missing = len(known) < len(trained)

    def columns(self, samples: npt.NDArray[Any], *, left_out: bool = False) -> Iterator[Column]:
        """See `Fitted`; no label is counted."""
        values = self.values[samples].astype(np.float64)
        missing = np.isnan(values)
        yield Column(f"number {self.name}", "number", np.where(missing, self.mean, values))
        if self.some_missing:
            yield Column(f"missing {self.name}", "number", missing.astype(np.float64))
