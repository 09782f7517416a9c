"""Numeric fields in float64 NumPy; `oracles` has the rest, and says what a sample is.

A number is a float, or None where it is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Number = float | None


def inputs(x: Number) -> np.ndarray:
    """The number, and whether it is missing."""
    return np.array([0.0, 1.0]) if x is None else np.array([x, 0.0])


def vector(x: Number, vectors: np.ndarray) -> np.ndarray:
    """The number times the first of its field's two vectors, or the second."""
    return vectors[1] if x is None else x * vectors[0]


def behavior_parts(
    behavior: dict[str, Any], sequence: Any, vectors: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """The vectors of a behaviour's numbers, at the end of e_j."""
    return [vector(behavior[n.name], vectors[n.ad]) for n in sequence.numbers]


def ad_parts(
    sample: dict[str, Any], sequence: Any, vectors: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """The vectors of an ad's numbers, at the end of v_A."""
    return [vector(sample["fields"][n.ad], vectors[n.ad]) for n in sequence.numbers]


def linear(sample: dict[str, Any], schema: Any, weights: np.ndarray, mean: bool) -> float:
    """The weighted sum of a sample's numbers, those of a history summed or averaged before."""
    total, weight = 0.0, iter(weights)
    for field in schema.numbers:
        x, missing = inputs(sample["fields"][field.name])
        total += x * next(weight) + missing * next(weight)
    for sequence in schema.sequences:
        history = sample["sequences"][sequence.name]
        for number in sequence.numbers:
            rows = [inputs(behavior[number.name]) for behavior in history]
            by = len(rows) if mean and rows else 1
            total += sum(x for x, _ in rows) / by * next(weight)
            total += sum(missing for _, missing in rows) / by * next(weight)
    return float(total)
