"""Logistic regression on the scores of all other baselines, by scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.baselines.columns import Column

MOST_SAMPLES = 100_000  # training samples that it is fitted on, evenly spaced over all


class LogisticRegression:
    """A logistic regression on log counts, logits of rates, shares and numbers, all standardised.

    Its weights are 0 if all labels are equal.

    Args:
      columns: the other baselines' scores of N training samples.
      labels: [N] 0 or 1.
    """

    def __init__(self, columns: list[Column], labels: npt.NDArray[Any]):
        from sklearn import linear_model  # here, because its import takes a second

        inputs = np.stack([_transformed(column) for column in columns], axis=1)
        self.mean, self.std = inputs.mean(axis=0), inputs.std(axis=0)
        self.std[self.std < 1e-9] = 1.0  # of a constant
        self.weights, self.bias = np.zeros(len(columns)), 0.0
        if labels.min() < labels.max():
            fitted = linear_model.LogisticRegression(max_iter=1000)
            fitted.fit((inputs - self.mean) / self.std, labels)
            self.weights, self.bias = fitted.coef_[0], float(fitted.intercept_[0])

    def term(self, index: int, column: Column) -> npt.NDArray[Any]:
        """float64 [N]: what column number `index` adds to the samples' logits."""
        inputs = (_transformed(column) - self.mean[index]) / self.std[index]
        return inputs * self.weights[index]


def _transformed(column: Column) -> npt.NDArray[np.float64]:
    if column.kind == "count":
        return np.log1p(column.values)
    if column.kind == "rate":
        rate = np.clip(column.values, 1e-6, 1 - 1e-6)
        return np.log(rate / (1 - rate))
    return column.values
