"""Scoring a split, and its metrics."""

from __future__ import annotations

import itertools

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


class Evaluator:
    """Scores one split of a store, as often as asked, in the store's order.

    Args:
      score: the score step, for so many batches at once.
      store, split: what to score.
      batch_size: samples scored together; it changes no result.
      max_history: see `Packer`.
      shards: how batches are split among devices.
      at_once: the most batches that `score` takes.
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
        at_once: int = 1,
    ):
        self.score = score
        self.source = BatchSource(
            store,
            split,
            batch_size,
            max_history=max_history,
            shuffle=False,
            shards=shards,
            alike=at_once,
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
        waiting: tuple[range, jax.Array] | None = None
        while several := list(itertools.islice(read, self.source.alike)):
            if waiting is not None:  # one call in flight: these were read while it was computed
                self._place(logits, *waiting)
            waiting = range(done, done + len(several)), self.score(state, several)
            done += len(several)
        assert waiting is not None  # no split is empty
        self._place(logits, *waiting)
        if not np.isfinite(logits).all():
            raise Diverged(
                f"the weights of step {int(state.step):,} give scores that are no numbers: "
                "training has diverged; lower config.optimizer.learning_rate or set "
                "config.optimizer.clip_norm"
            )
        return np.exp(-np.logaddexp(0, -logits))  # the sigmoid, without overflow

    def _place(self, logits: np.ndarray, of: range, found: jax.Array) -> None:
        """Waits for the logits of the batches `of` and puts them where their samples are."""
        samples = np.concatenate([self.source.samples_of(i) for i in of])
        values = np.asarray(jax.block_until_ready(found))[: len(samples)]
        logits[samples - self.source.samples.start] = values

    def metrics(self, probabilities: np.ndarray) -> dict[str, float]:
        """All metrics of the split's probabilities, by name."""
        return all_metrics(self.users, self.labels, probabilities)


def metrics_table(title: str, metrics: dict[str, float]) -> str:
    """The metrics as lines of text, a name and a value each."""
    lines = [title]
    for name, value in metrics.items():
        shown = f"{int(value):>12,}" if name in _COUNTS else f"{value:>12.6f}"
        lines.append(f"  {name:<28}{shown}")
    return "\n".join(lines)
