"""Fits all baselines, measures them on a split, and chooses the best of them on validation."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from din_jax.baselines.click_rates import ClickRates
from din_jax.baselines.co_occurrence import CoOccurrence
from din_jax.baselines.columns import Column, Fitted, Values
from din_jax.baselines.histories import InHistories
from din_jax.baselines.logistic_regression import MOST_SAMPLES, LogisticRegression
from din_jax.baselines.numbers import Number
from din_jax.data.cache import cached
from din_jax.data.packing import Packer
from din_jax.data.store import UNLABELLED, Store
from din_jax.errors import DinError
from din_jax.metrics import WEIGHTED, auc, log_loss, lower_is_better, user_weighted_auc

_VERSION = 1  # of the baselines; metrics that another version has cached are ignored
_SAMPLES_AT_ONCE = 1 << 16
LOGISTIC_REGRESSION = "logistic regression"
Metrics = dict[str, float]


class Baselines:
    """All simple baselines of a store, fitted on one split when they are first needed.

    These are click rates and popularity (`ClickRates`), of the user of Eq. 10 and of every field
    but the optional ones of users, which are ids of this user; the ad's values in histories
    (`InHistories`), of every field of every sequence; co-occurrence (`CoOccurrence`), of each
    sequence's first field if it and the ad's field are one-hot; the samples' numbers (`Number`);
    and a logistic regression on these.

    Args:
      store: the data set.
      fit: the split that they are fitted on. Nothing else of the store changes them.
      max_history: the number of most recent behaviours of a history to use; 0 uses all.
    """

    def __init__(self, store: Store, fit: str = "train", *, max_history: int = 0):
        self.store, self.fit, self.max_history = store, fit, max_history

    def metrics(self, split: str) -> dict[str, Metrics]:
        """Measures each baseline on a split: {name: {metric: value}}.

        The metrics are user_weighted_auc (Eq. 10), auc and, of probabilities, log_loss; NaN where
        one can't be computed. If the store has the samples' weights, `weighted_auc` and so on
        follow; no baseline is fitted with them. On the split `fit` the click rates, the clicks and
        the coefficients of the logistic regression are fitted to the same labels, like a model's
        weights.

        Raises:
          DinError: there is no such split, or it or the split `fit` has no samples.
        """
        samples = self._samples(split)
        weighted = self.store.schema.weighted
        users, labels, *weights = (
            self.store.column(f"samples/{name}")[samples.start : samples.stop]
            for name in ("user", "label", "weight")[: 3 if weighted else 2]
        )
        labelled = labels != UNLABELLED
        if not labelled.any():
            raise DinError(f"{self.store.path}: no sample of {split} has a label")
        users, labels = users[labelled], labels[labelled]
        weights = [w[labelled] for w in weights]
        rows = samples.start + np.flatnonzero(labelled)
        found: dict[str, Metrics] = {}
        for column in self.scores(rows):
            metrics = found[column.name] = {}
            for prefix, w in (("", None), *((WEIGHTED, w) for w in weights)):
                metrics[f"{prefix}user_weighted_auc"] = user_weighted_auc(
                    users, labels, column.values, w
                )
                metrics[f"{prefix}auc"] = auc(labels, column.values, w)
                if column.kind == "rate":
                    metrics[f"{prefix}log_loss"] = log_loss(labels, column.values, w)
        return found

    def cached_metrics(self, split: str) -> dict[str, Metrics]:
        """`metrics`, cached in the store's folder if it is writable."""
        key = [_VERSION, split, self.fit, self.max_history]
        content = cached(
            self.store, "baselines", key, lambda: json.dumps(self.metrics(split)).encode()
        )
        metrics: dict[str, Metrics] = json.loads(content)
        return metrics

    def scores(self, samples: npt.NDArray[Any]) -> Iterator[Column]:
        """The scores of the samples with these indices, int64 [N], one baseline at a time."""
        fitted, regression = self._fitted
        logits = np.full(len(samples), regression.bias)
        for i, column in enumerate(_columns(fitted, samples)):
            yield column
            logits += regression.term(i, column)
        yield Column(LOGISTIC_REGRESSION, "rate", np.exp(-np.logaddexp(0, -logits)))

    @functools.cached_property
    def _fitted(self) -> tuple[list[Fitted], LogisticRegression]:
        samples = self._samples(self.fit)
        fitted = list(_fit(Packer(self.store, self.max_history), samples))
        count = self.regression_samples
        rows = samples.start + np.arange(count) * len(samples) // count
        labels = self.store.column("samples/label")[rows]
        return fitted, LogisticRegression(list(_columns(fitted, rows, left_out=True)), labels)

    @property
    def regression_samples(self) -> int:
        """The number of training samples that the logistic regression is fitted on."""
        return min(len(self._samples(self.fit)), MOST_SAMPLES)

    def _samples(self, split: str) -> range:
        samples = self.store.split(split)
        if not samples:
            raise DinError(f"{self.store.path}: the split {split!r} has no samples")
        return samples


class Best(NamedTuple):
    """The best of the baselines.

    Attributes:
      name: its name.
      metrics: its metrics on test.
    """

    name: str
    metrics: Metrics


def best_baseline(store: Store, select: str, *, fit: str = "train", max_history: int = 0) -> Best:
    """The baseline, fitted on train, that is best on validation, and its metrics on test.

    Without a validation split it is the logistic regression, which reads all others. All metrics
    are cached in the store's folder.

    Args:
      store: the data set.
      select: the metric that chooses, of `din_jax.metrics.SELECTABLE`.
      fit: the split that the chosen one is fitted on to be measured on test.
      max_history: see `Baselines`.

    Raises:
      DinError: test has no samples, or the metric can't be computed on validation.
    """
    baselines = Baselines(store, max_history=max_history)
    name = LOGISTIC_REGRESSION
    if store.split("validation"):
        values = {
            name: metrics[select]
            for name, metrics in baselines.cached_metrics("validation").items()
            if np.isfinite(metrics.get(select, np.nan))
        }
        if not values:
            raise DinError(f"{store.path}: {select} can't be computed on validation")
        name = (min if lower_is_better(select) else max)(values, key=values.__getitem__)
    if fit != baselines.fit:
        baselines = Baselines(store, fit, max_history=max_history)
    return Best(name, baselines.cached_metrics("test")[name])


def _fit(packer: Packer, samples: range) -> Iterator[Fitted]:
    """Fits all baselines but the logistic regression on the samples."""
    store = packer.store
    labels = store.column("samples/label")
    users = np.unique(store.column("samples/user"), return_inverse=True)[1].astype(np.int64)
    yield ClickRates(Values("the user", int(users.max()) + 1, users), labels, samples)
    fields = {field.name: Values.of_field(store, field) for field in store.schema.fields}
    for field in store.schema.fields:
        if not (field.optional and field.group == "user"):
            popularity = field.group == "ad"
            yield ClickRates(fields[field.name], labels, samples, popularity=popularity)
    for sequence in store.schema.sequences:
        for behavior in sequence.fields:
            ad = fields[behavior.ad]
            yield InHistories(packer, sequence.name, behavior, ad, users, samples)
        first = sequence.fields[0]
        if not first.multi_hot and fields[first.ad].offsets is None:
            ad = fields[first.ad]
            yield CoOccurrence(packer, sequence.name, first.name, ad, users, samples)
    for number in store.schema.numbers:
        yield Number(store, number.name, samples)


def _columns(
    fitted: list[Fitted], samples: npt.NDArray[Any], *, left_out: bool = False
) -> Iterator[Column]:
    """All columns of samples, computed some samples at a time; see `Fitted`."""
    for one in fitted:
        parts = [
            list(one.columns(samples[i : i + _SAMPLES_AT_ONCE], left_out=left_out))
            for i in range(0, len(samples), _SAMPLES_AT_ONCE)
        ]
        for same in zip(*parts, strict=True):
            values = np.concatenate([column.values for column in same])
            yield Column(same[0].name, same[0].kind, values)
