"""Scores a split and computes its metrics."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from din_jax.data.buckets import Buckets
from din_jax.data.loader import batches
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import UNLABELLED, Store
from din_jax.errors import Diverged
from din_jax.metrics import WEIGHTED, all_metrics
from din_jax.step.score import ScoreSteps
from din_jax.step.state import TrainState

# The metrics that are printed as integers.
_COUNTS = ("samples", "samples_without_label", "users", "users_skipped", f"{WEIGHTED}users_skipped")


class Scores(NamedTuple):
    """The scores of a split's N samples, in the store's order, and their metrics.

    Attributes:
      step: the training step of the weights.
      metrics: see `din_jax.metrics.all_metrics`.
      users: [N] user indices.
      labels: [N], 0 or 1.
      probabilities: float64 [N] click probabilities.
      weights: float32 [N] the samples' weights; None if the store has none.
    """

    step: int
    metrics: dict[str, float]
    users: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float32] | None = None


class Evaluator:
    """Scores one split of a store: all its samples, also those of weight 0.

    Args:
      score: the score step.
      store, split: the samples to score.
      batch_size: samples per batch; results do not depend on it.
      max_history, ages: see `Packer`.
      shards: how batches are split among devices.
      steps_per_call: the maximum number of batches in a call of `score`.
      buckets: see `BatchSource`.
    """

    def __init__(
        self,
        score: ScoreSteps,
        store: Store,
        split: str,
        *,
        batch_size: int,
        max_history: int,
        ages: bool = False,
        shards: Shards = Shards(),  # noqa: B008
        steps_per_call: int = 1,
        buckets: Buckets | None = None,
    ):
        self.score = score
        self.source = BatchSource(
            store,
            split,
            batch_size,
            max_history=max_history,
            ages=ages,
            weighted=False,
            shuffle=False,
            shards=shards,
            steps_per_call=steps_per_call,
            buckets=buckets,
        )
        samples = self.source.samples
        self.users = store.column("samples/user")[samples.start : samples.stop]
        self.labels = store.column("samples/label")[samples.start : samples.stop]
        self.weights = (
            store.column("samples/weight")[samples.start : samples.stop]
            if store.schema.weighted
            else None
        )

    def probabilities(self, state: TrainState) -> npt.NDArray[np.float64]:
        """Computes the click probabilities of the split, float64 [N], in the store's order.

        Raises:
          Diverged: a probability is NaN or infinite.
        """
        logits = np.empty(len(self.labels))
        iterator, done = batches(self.source), 0
        in_flight: tuple[range, jax.Array] | None = None
        while call := list(itertools.islice(iterator, self.source.steps_per_call)):
            if in_flight is not None:  # reading these batches overlapped with its computation
                self._store(logits, *in_flight)
            in_flight = range(done, done + len(call)), self.score(state, call)
            done += len(call)
        assert in_flight is not None  # no split is empty
        self._store(logits, *in_flight)
        if not np.isfinite(logits).all():
            raise Diverged(
                f"the weights of step {int(state.step):,} give scores that are not numbers: "
                "training has diverged; lower config.optimizer.learning_rate or set "
                "config.optimizer.clip_norm"
            )
        probabilities: npt.NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits))  # the sigmoid
        return probabilities

    def _store(self, logits: npt.NDArray[Any], indices: range, z: jax.Array) -> None:
        """Waits for the logits z of the batches `indices`; stores them in their samples' order."""
        samples = np.concatenate([self.source.samples_of(i) for i in indices])
        values = np.asarray(jax.block_until_ready(z))[: len(samples)]
        logits[samples - self.source.samples.start] = values

    def metrics(self, probabilities: npt.NDArray[Any]) -> dict[str, float]:
        """Computes all metrics of the split's labelled samples from its probabilities, by name.

        If samples have no label, `samples_without_label` counts them; if none has, the others are
        NaN.
        """
        labelled = self.labels != UNLABELLED
        if labelled.all():
            return all_metrics(self.users, self.labels, probabilities, self.weights)
        missing = float((~labelled).sum())
        if labelled.any():
            weights = None if self.weights is None else self.weights[labelled]
            metrics = all_metrics(
                self.users[labelled], self.labels[labelled], probabilities[labelled], weights
            )
        else:
            weights = None if self.weights is None else np.ones(2)
            names = all_metrics(np.zeros(2, np.int64), np.arange(2), np.full(2, 0.5), weights)
            metrics = dict.fromkeys(names, float("nan"))
            metrics |= {name: 0.0 for name in names if name in _COUNTS}
        return metrics | {"samples_without_label": missing}

    def scores(self, state: TrainState) -> Scores:
        """Computes the probabilities and metrics of the split with a state's weights."""
        probabilities = self.probabilities(state)
        metrics = self.metrics(probabilities)
        return Scores(
            int(state.step), metrics, self.users, self.labels, probabilities, self.weights
        )


def metrics_table(title: str, metrics: dict[str, float]) -> str:
    """Formats metrics as lines of text, one name and value per line."""
    lines = [title]
    for name, value in metrics.items():
        text = f"{int(value):>12,}" if name in _COUNTS else f"{value:>12.6f}"
        lines.append(f"  {name:<28}{text}")
    return "\n".join(lines)
