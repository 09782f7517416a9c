"""Wide & Deep's crosses in plain Python; `oracles` has the rest, and says what a sample is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def bucket(visited: int, shown: int, rows: int, buckets: int) -> int:
    """The row of a cross: exact if all pairs of known ids have room, else by MurmurHash3's mix."""
    if not visited or not shown:
        return 0
    if (rows - 1) ** 2 <= buckets:
        return 1 + (visited - 1) * (rows - 1) + shown - 1

    def mixed(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
        x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
        return x ^ (x >> 16)

    return 1 + mixed((mixed(visited) + shown) % 2**32) % buckets


def crossed(sample: dict[str, Any], schema: Any, table: str, buckets: int, most: int) -> list[int]:
    """The rows of a cross table, "SEQUENCE-FIELD-cross", that a sample looks up."""
    visited, field = visited_ids(sample, schema, table)
    shown = sample["fields"][field.ad]
    return [
        bucket(v, a, schema.rows(field.table), buckets)
        for v in visited
        for a in ([shown] if isinstance(shown, int) else shown[:most])
    ]


def visited_ids(sample: dict[str, Any], schema: Any, table: str) -> tuple[list[int], Any]:
    """The ids of the behaviour field that a cross table is of, and that field."""
    name, field_name, _ = table.split("-")
    (field,) = (
        f for s in schema.sequences for f in s.fields if (s.name, f.name) == (name, field_name)
    )
    visited: list[int] = []
    for behavior in sample["sequences"][name]:
        ids = behavior[field.name]
        visited += [ids] if isinstance(ids, int) else ids
    return visited, field


def cross(
    sample: dict[str, Any],
    schema: Any,
    weights: np.ndarray,
    table: str,
    buckets: int,
    most: int,
    mean: bool,
) -> float:
    """The sum of a sample's weights in a cross table, or their mean over the visited ids."""
    total = math.fsum(weights[i][0] for i in crossed(sample, schema, table, buckets, most))
    return total / max(len(visited_ids(sample, schema, table)[0]), 1) if mean else total
