"""Pads and stacks encoded users and their ads to the arrays of `din_jax.export.scoring`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.data.schema import Schema
from din_jax.export.encoding import Encoded

Arrays = dict[str, Any]


def pad(
    users: Sequence[Encoded],
    ads: Sequence[Encoded],
    schema: Schema,
    capacity: Mapping[str, int],
    ads_capacity: Mapping[str, int],
    rows: int,
) -> tuple[Arrays, Arrays]:
    """Pads users and ads to arrays of `rows` users; the last ones repeat the first.

    Args:
      users, ads: one each a request.
      schema: of the inputs.
      capacity: {packed axis of a user: padded length}.
      ads_capacity: {"": C, multi-hot field: most values of an ad}.
      rows: U, at least as many as there are users.
    """
    filled = [*users, *[users[0]] * (rows - len(users))]
    arrays = [u.arrays for u in filled]
    fields: Arrays = {}
    for name, first in arrays[0]["fields"].items():
        column = [a["fields"][name] for a in arrays]
        if isinstance(first, dict):
            fields[name] = {
                kind: np.stack([c[kind] for c in column])
                if kind == "length"
                else _stack([c[kind] for c in column], capacity[name])
                for kind in first
            }
        else:
            fields[name] = np.stack(column)
    sequences: Arrays = {}
    for sequence in schema.sequences:
        of_user = [a["sequences"][sequence.name] for a in arrays]
        length = capacity[sequence.name]
        values: Arrays = {}
        for name, first in of_user[0]["fields"].items():
            column = [s["fields"][name] for s in of_user]
            if isinstance(first, dict):
                nested = capacity[f"{sequence.name}.{name}"]
                values[name] = {
                    kind: _stack(
                        [c[kind] for c in column], nested, length if kind == "segment_ids" else 0
                    )
                    for kind in first
                }
            else:
                values[name] = _stack(column, length)
        sequences[sequence.name] = {
            "mask": _stack([s["mask"] for s in of_user], length),
            "fields": values,
        }
        if "age" in of_user[0]:
            sequences[sequence.name]["age"] = _stack([s["age"] for s in of_user], length)
    candidates = [a.arrays for a in [*ads, *[ads[0]] * (rows - len(ads))]]
    padded_ads: Arrays = {}
    for name, first in candidates[0].items():
        column = [a[name] for a in candidates]
        if isinstance(first, dict):
            padded_ads[name] = _pad_lists(column, ads_capacity[""], ads_capacity[name])
        else:
            padded_ads[name] = _stack(column, ads_capacity[""])
    return {"fields": fields, "sequences": sequences}, padded_ads


def _stack(arrays: Sequence[npt.NDArray[Any]], length: int, fill: int = 0) -> npt.NDArray[Any]:
    """[U, length] arrays of up to this length."""
    stacked = np.full((len(arrays), length), fill, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


def _pad_lists(ads: Sequence[Arrays], candidates: int, length: int) -> Arrays:
    """{"values", "weights": [U, C, length], "length": int32[U, C]} of the lists of users' ads."""
    padded: Arrays = {
        kind: np.zeros(
            (len(ads), candidates, length), np.float32 if kind == "weights" else np.int32
        )
        for kind in ads[0]
    }
    lengths = np.zeros((len(ads), candidates), np.int32)
    for u, lists in enumerate(ads):
        for kind, of_ads in lists.items():
            for c, values in enumerate(of_ads):
                padded[kind][u, c, : len(values)] = values
                lengths[u, c] = len(values)
    return {**padded, "length": lengths}
