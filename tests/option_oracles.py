"""The options beyond the paper, in float64 NumPy and plain Python; `oracles` has the rest.

Samples are as in `oracles`. A behaviour may also have the bucket of its age, "age".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

POSITIONS, AGES = 16, 32  # buckets


def softmax(scores: Sequence[float]) -> list[float]:
    """exp(x_j) / Σ exp(x_i); of nothing, nothing."""
    raised = [math.exp(x - max(scores)) for x in scores]
    return [x / math.fsum(raised) for x in raised]


def normalized(weights: Sequence[float], how: str) -> list[float]:
    """The weights of one history, as `config.model.attention.normalize` says."""
    if how == "softmax":
        return softmax(weights)
    if how == "sigmoid":
        return [1 / (1 + math.exp(-w)) if w >= 0 else 1 - 1 / (1 + math.exp(w)) for w in weights]
    by = {"none": 1, "mean": len(weights), "sqrt": math.sqrt(len(weights))}[how]
    return [w / by for w in weights]


def place_bucket(place: int) -> int:
    """How often 1 + place can be halved before it is 1, at most 15; the last behaviour is at 0."""
    halvings, rest = 0, 1 + place
    while rest > 1:
        halvings, rest = halvings + 1, rest // 2
    return min(halvings, POSITIONS - 1)


def matched(visited: int | list[int], shown: int | list[int]) -> int:
    """How many of the visited ids are among the shown ones; 0 is unknown and matches nothing."""
    ids, ad = ([x] if isinstance(x, int) else x for x in (visited, shown))
    return sum(1 for i in ids if i != 0 and i in ad)


def has_id_of_ad(sample: dict[str, Any], sequence: Any) -> list[list[int]]:
    """[behaviour][field]: 1 if the behaviour has an id of the ad in this field, else 0."""
    return [
        [int(matched(b[f.name], sample["fields"][f.ad]) > 0) for f in sequence.fields]
        for b in sample["sequences"][sequence.name]
    ]


def codes(
    sample: dict[str, Any], sequence: Any, *, position: bool, age: bool, match: bool
) -> list[np.ndarray]:
    """Each behaviour's further inputs of the activation unit, one after the other."""
    history = sample["sequences"][sequence.name]
    vectors = []
    for i, (behavior, has_id) in enumerate(
        zip(history, has_id_of_ad(sample, sequence), strict=True)
    ):
        place = place_bucket(len(history) - 1 - i)
        parts = [np.eye(POSITIONS)[place]] * position
        parts += [np.eye(AGES)[behavior["age"]]] if age else []
        parts += [np.array(has_id, np.float64)] * match
        vectors.append(np.concatenate([np.empty(0), *parts]))
    return vectors


def match_counts(sample: dict[str, Any], sequence: Any) -> np.ndarray:
    """log(1 + n) of each field's matches n, then n / H of each, then log(1 + H)."""
    rows = has_id_of_ad(sample, sequence)
    found = [sum(row[f] for row in rows) for f in range(len(sequence.fields))]
    return np.array(
        [math.log(1 + n) for n in found]
        + [n / len(rows) if rows else 0.0 for n in found]
        + [math.log(1 + len(rows))]
    )


def intensity(weights: Sequence[float]) -> np.ndarray:
    """log(1 + Σ σ(w)) and Σ σ(w) / H of the unit's outputs for one history; of none, zeros."""
    total = math.fsum(normalized(weights, "sigmoid"))
    return np.array([math.log(1 + total), total / max(len(weights), 1)])


def bias(sample: dict[str, Any], fields: Sequence[str], tables: dict[str, np.ndarray]) -> float:
    """The sum of the scalars, by weight, of the ids in `config.model.bias_fields`."""
    total = 0.0
    for name in fields:
        ids = sample["fields"][name]
        several = [ids] if isinstance(ids, int) else ids
        for i, w in zip(several, getattr(ids, "weights", [1.0] * len(several)), strict=True):
            total += w * float(tables[f"{name}-field-bias"][i][0])
    return total
