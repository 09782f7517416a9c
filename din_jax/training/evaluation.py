"""Scoring a split, and its metrics."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import numpy as np

from din_jax.data.loader import batches
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.errors import Diverged
from din_jax.metrics import all_metrics
from din_jax.step.score import ScoreSteps
from din_jax.step.state import TrainState

# Whole numbers among the metrics: printed as such.
_COUNTS = ("samples", "users", "users_skipped")


class Scores(NamedTuple):
    """The scores of a split's N samples, in the store's order, and their metrics."""

    step: int  # of the weights
    metrics: dict[str, float]  # see `din_jax.metrics.all_metrics`
    users: np.ndarray  # [N]
    labels: np.ndarray  # [N], 0 or 1
    probabilities: np.ndarray  # float64 [N]


class Evaluator:
    """Scores one split of a store, as often as asked.

    Args:
      score: the score step.
      store, split: what to score.
      batch_size: samples of a batch; it changes no result.
      max_history: see `Packer`.
      shards: how batches are split among devices.
      steps_per_call: the most batches that `score` is given.
    """

    def __init__(
        self,
        score: ScoreSteps,
        store: Store,
        split: str,
        *,
        batch_size: int,
        max_history: int,
        shards: Shards = Shards(),  # noqa: B008
        steps_per_call: int = 1,
    ):
        self.score = score
        self.source = BatchSource(
            store,
            split,
            batch_size,
            max_history=max_history,
            shuffle=False,
            shards=shards,
            steps_per_call=steps_per_call,
        )
        samples = self.source.samples
        self.users = store.column("samples/user")[samples.start : samples.stop]
        self.labels = store.column("samples/label")[samples.start : samples.stop]

    def probabilities(self, state: TrainState) -> np.ndarray:
        """Click probabilities, float64 [samples of the split].

        Raises:
          Diverged: one is not a number.
        """
        logits = np.empty(len(self.labels))
        read, done = batches(self.source), 0
        in_flight: tuple[range, jax.Array] | None = None
        while of_call := list(itertools.islice(read, self.source.steps_per_call)):
            if in_flight is not None:  # these batches were read while it was computed
                self._store(logits, *in_flight)
            in_flight = range(done, done + len(of_call)), self.score(state, of_call)
            done += len(of_call)
        assert in_flight is not None  # no split is empty
        self._store(logits, *in_flight)
        if not np.isfinite(logits).all():
            raise Diverged(
                f"the weights of step {int(state.step):,} give scores that are not numbers: "
                "training has diverged; lower config.optimizer.learning_rate or set "
                "config.optimizer.clip_norm"
            )
        return np.exp(-np.logaddexp(0, -logits))  # the sigmoid, without overflow

    def _store(self, logits: np.ndarray, indices: range, z: jax.Array) -> None:
        """Waits for the logits z of some batches and stores them at their samples' positions."""
        samples = np.concatenate([self.source.samples_of(i) for i in indices])
        values = np.asarray(jax.block_until_ready(z))[: len(samples)]
        logits[samples - self.source.samples.start] = values

    def metrics(self, probabilities: np.ndarray) -> dict[str, float]:
        """All metrics of the split's probabilities, by name."""
        return all_metrics(self.users, self.labels, probabilities)

    def scores(self, state: TrainState) -> Scores:
        """Probabilities and metrics of the split with the weights of a state."""
        probabilities = self.probabilities(state)
        metrics = self.metrics(probabilities)
        return Scores(int(state.step), metrics, self.users, self.labels, probabilities)


def metrics_table(title: str, metrics: dict[str, float]) -> str:
    """The metrics as lines of text, a name and a value each."""
    lines = [title]
    for name, value in metrics.items():
        shown = f"{int(value):>12,}" if name in _COUNTS else f"{value:>12.6f}"
        lines.append(f"  {name:<28}{shown}")
    return "\n".join(lines)
