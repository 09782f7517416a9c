"""What a baseline gives, one number a sample, and how the ids of a field are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from din_jax.data.packing import ranges
from din_jax.data.schema import Field
from din_jax.data.store import Store

Kind = Literal["count", "rate", "share", "number"]


class Column(NamedTuple):
    """A baseline's scores of N samples.

    Attributes:
      name: the baseline, in words.
      kind: "count", a number from 0 on; "rate", the probability of a click; "share", a number from
        0 on, mostly below 1; "number", any number.
      values: float64 [N].
    """

    name: str
    kind: Kind
    values: npt.NDArray[np.float64]


class Fitted(Protocol):
    """Baselines that are fitted on the training samples, and score any sample of the store."""

    def columns(self, samples: npt.NDArray[Any], *, left_out: bool = False) -> Iterator[Column]:
        """Scores samples.

        Args:
          samples: int64 [N] their indices.
          left_out: whether training samples are scored as new ones would be: as if their own labels
            were not counted. What a regression is fitted on must be.
        """
        ...


class Values(NamedTuple):
    """The ids of a field: one a sample, or any number if there are offsets.

    Attributes:
      name: the field's name.
      rows: K of its table.
      ids: the ids of all samples of the store, end to end.
      offsets: where each sample's ids begin; None: one id a sample.
    """

    name: str
    rows: int
    ids: npt.NDArray[Any]
    offsets: npt.NDArray[Any] | None = None

    @staticmethod
    def of_field(store: Store, field: Field) -> Values:
        """The ids of a field of the store."""
        name = f"fields/{field.name}"
        offsets = store.column(f"{name}.offsets") if field.multi_hot else None
        return Values(field.name, store.schema.rows(field.table), store.column(name), offsets)

    def read(self, samples: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The ids of samples, int64 [V], and the position in `samples` of each id's sample, [V]."""
        if self.offsets is None:
            return self.ids[samples].astype(np.int64), np.arange(len(samples))
        start, end = (self.offsets[i].astype(np.int64) for i in (samples, samples + 1))
        positions, owner = ranges(start, end)
        return self.ids[positions].astype(np.int64), owner


def mean_by_owner(
    values: npt.NDArray[Any], owner: npt.NDArray[Any], count: int, *, empty: float = 0.0
) -> npt.NDArray[np.float64]:
    """The mean of each owner's values, float64 [count].

    Args:
      values, owner: [V] values, and the owner of each, 0 to count − 1.
      count: the number of owners.
      empty: the result of an owner without values.
    """
    n = np.bincount(owner, minlength=count)
    total = np.bincount(owner, weights=values, minlength=count)
    return np.where(n > 0, total / np.maximum(n, 1), empty)
