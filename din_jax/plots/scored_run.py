"""A trained run and what it computes for a split: computed once, drawn many times."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from din_jax.checkpoint.checkpoints import Kind
from din_jax.data.packing import Packer
from din_jax.data.schema import Field
from din_jax.data.store import UNLABELLED, Store
from din_jax.data.titles import Titles
from din_jax.errors import DinError
from din_jax.plots.recombined import recombined
from din_jax.step.outputs import Outputs, OutputsStep, outputs_step
from din_jax.step.state import TrainState
from din_jax.training.evaluation import Evaluator, Scores
from din_jax.training.run import Run
from din_jax.training.trained import load_run

Array = npt.NDArray[Any]
_BATCH = 256
# Figures of single behaviours, and of scores that are computed again and again, are of at most so
# many samples of a split, chosen at random.
AT_MOST = 20_000


class Weights(NamedTuple):
    """The weights of one behaviour sequence, sample after sample.

    Attributes:
      weights: float32 [T], those that Eq. 3 sums with: normalized if the model normalizes them.
      raw: float32 [T], the activation unit's outputs; `weights` if it gives no others.
      events: int64 [T], the behaviours' positions in the store's events.
      offsets: int64 [N + 1], of each sample's behaviours.
    """

    weights: Array
    raw: Array
    events: Array
    offsets: Array

    def of(self, index: int) -> slice:
        """The behaviours of the sample at a position of N."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def sums(self, values: Array) -> npt.NDArray[np.float64]:
        """float64 [N] the sum of values [T] over each sample's behaviours."""
        total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]


class ScoredRun:
    """A trained run and its scores of one split.

    Args:
      run, state: see `din_jax.training.trained.load_run`.
      split: "train", "validation" or "test".
      workdir: the run's folder.

    Raises:
      DinError: there is no such split, or it has no samples with a label.
    """

    def __init__(self, run: Run, state: TrainState, split: str = "test", *, workdir: Path):
        self.run, self.state, self.split, self.workdir = run, state, split, Path(workdir)
        self.store, self.schema = run.store, run.store.schema
        found = run.store.split(split)
        samples = np.arange(found.start, found.stop)
        labels = self.store.column("samples/label")[samples]
        if not (labels != UNLABELLED).any():
            raise DinError(
                f"{self.store.path}: the split {split!r} has no samples with a label; name another "
                "with --split"
            )
        self._labelled = labels != UNLABELLED
        self.samples = samples[self._labelled]
        self._evaluator: Evaluator | None = None

    @staticmethod
    def load(
        workdir: str | Path,
        split: str = "test",
        *,
        store: str | Path = "",
        checkpoint: Kind | None = None,
    ) -> ScoredRun:
        """Loads a run on one device; see `din_jax.training.trained.load_run`."""
        run, state = load_run(workdir, store=store, devices=1, checkpoint=checkpoint)
        return ScoredRun(run, state, split, workdir=Path(workdir))

    @functools.cached_property
    def scores(self) -> Scores:
        """The scores of the split's labelled samples, and their metrics."""
        self._evaluator = self.run.evaluator(self.split)
        scores = self._evaluator.scores(self.state)
        kept = self._labelled
        return scores._replace(
            users=scores.users[kept],
            labels=scores.labels[kept],
            probabilities=scores.probabilities[kept],
            weights=None if scores.weights is None else scores.weights[kept],
        )

    def probabilities(self, store: Store) -> npt.NDArray[np.float64]:
        """The click probabilities of another store's split "test", such as a `recombined` one."""
        self._evaluator = self.run.evaluator("test", store, after=self._evaluator)
        return self._evaluator.probabilities(self.state)

    def probabilities_of(
        self, samples: Array, features: Mapping[str, Array] | None = None
    ) -> npt.NDArray[np.float64]:
        """Those of samples with features of other samples; see `recombined`."""
        return self.probabilities(recombined(self.store, samples, features))

    def history(self, sequence: str, samples: Array) -> tuple[Array, Array]:
        """The samples' behaviours that the model reads: events [start, end) of a sequence."""
        return self._packer(self.store).history(sequence, samples)

    def ads_of(self, samples: Array) -> dict[str, Array]:
        """The argument `features` of `recombined` that takes whole ads from these samples."""
        ads = [f.name for f in self.schema.fields if f.group == "ad"]
        ads += [n.name for n in self.schema.numbers if n.group == "ad"]
        return dict.fromkeys(ads, samples)

    @functools.cached_property
    def chosen(self) -> Array:
        """Positions in `samples`, ascending: all, or `AT_MOST` at random."""
        if len(self.samples) <= AT_MOST:
            return np.arange(len(self.samples))
        rng = np.random.default_rng(0)
        return np.sort(rng.choice(len(self.samples), AT_MOST, replace=False))

    @functools.cached_property
    def weights(self) -> dict[str, Weights]:
        """{behaviour sequence: the activation weights of the samples at `chosen`}.

        Raises:
          DinError: the model has no activation unit.
        """
        return self.weights_of(self.samples[self.chosen])

    def weights_of(
        self, samples: Array, features: Mapping[str, Array] | None = None
    ) -> dict[str, Weights]:
        """{behaviour sequence: the activation weights of these samples}, as `probabilities_of`.

        Raises:
          DinError: the model has no activation unit.
        """
        store = recombined(self.store, samples, features)
        parts: dict[str, list[tuple[Array, Array]]] = {}
        for outputs, batch in self.outputs(store):
            if not outputs.aux.get("activation_weights"):
                raise DinError(
                    f"{self.workdir}: the model {self.run.config.model.name!r} has no activation "
                    "weights: only DIN has an activation unit (Eq. 3)"
                )
            for name, weights in outputs.aux["activation_weights"].items():
                real = batch.sequences[name].segment_ids < len(batch.label)
                raw = outputs.unit_outputs.get(f"activation_unit_{name}", weights)
                parts.setdefault(name, []).append((weights[real], raw[real]))
        found = {}
        for name in (s.name for s in self.schema.sequences if s.name in parts):
            start, end = self._packer(store).history(name, np.arange(len(samples)))
            offsets = np.concatenate([[0], np.cumsum(end - start)])
            events = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], end - start)
            weights, raw = (np.concatenate(part) for part in zip(*parts[name], strict=True))
            found[name] = Weights(weights, raw, events, offsets)
        return found

    def outputs(self, store: Store, *, activations: bool = False) -> Iterator[tuple[Outputs, Any]]:
        """Yields what the model computes for the samples of a store in memory, and each batch.

        The last batch is padded. See `din_jax.step.outputs.outputs_step`.
        """
        packer, count = self._packer(store), len(store)
        size = min(_BATCH, count)
        groups = [np.arange(i, min(i + size, count)) for i in range(0, count, size)]
        longest = np.max([packer.lengths(group).sum(axis=0) for group in groups], axis=0)
        # Powers of two: few shapes, each of which is compiled.
        lengths = [1 << max(3, int(n - 1).bit_length()) for n in longest.tolist()]
        capacity = dict(zip(packer.axes, lengths, strict=True))
        step = self._outputs_with_inputs if activations else self._outputs
        for group in groups:
            (batch,) = packer.pack([group], size, [capacity])
            yield jax.tree.map(np.asarray, step(self.state, batch)), batch

    @functools.cached_property
    def _outputs(self) -> OutputsStep:
        return outputs_step(self.run.model, self.run.regularizer)

    @functools.cached_property
    def _outputs_with_inputs(self) -> OutputsStep:
        return outputs_step(self.run.model, self.run.regularizer, activations=True)

    def _packer(self, store: Store) -> Packer:
        packer = self.run.source.packer
        return Packer(store, packer.max_history, ages=packer.ages, weighted=False)

    # What the figures call things.

    def goods(self) -> Field:
        """The ad field of the goods: the one that the first history's first field is compared with.

        Raises:
          DinError: the data set has no ad field with one id.
        """
        ads = {f.name: f for f in self.schema.fields if f.group == "ad" and not f.multi_hot}
        for sequence in self.schema.sequences:
            for behavior in sequence.fields:
                if behavior.ad in ads:
                    return ads[behavior.ad]
        if not ads:
            raise DinError(f"{self.store.path}: no ad field with one id, which this figure needs")
        return next(iter(ads.values()))

    def category(self, name: str = "") -> Field:
        """The ad field that groups the goods: the one named, or the one that looks most like it.

        Raises:
          DinError: there is no such ad field.
        """
        goods = self.goods()
        others = [f for f in self.schema.fields if f.group == "ad" and f.name != goods.name]
        if name:
            others = [f for f in others if f.name == name]
        if not others:
            raise DinError(
                f"{self.store.path}: no ad field {name!r} by which goods could be grouped; the ad "
                f"fields are: {', '.join(f.name for f in self.schema.fields if f.group == 'ad')}"
            )
        named = [f for f in others if "cat" in f.name.lower()]
        # Otherwise one id before several, and few different ones before many.
        others.sort(key=lambda f: (f.multi_hot, self.schema.rows(f.table)))
        return (named or others)[0]

    def first_ids(self, column: str, entries: Array) -> Array:
        """The id of each sample or behaviour in a column; of several the first, 0 of none."""
        ids = self.store.column(column)
        try:
            offsets = self.store.column(f"{column}.offsets").astype(np.int64)
        except KeyError:
            return ids[entries]
        start, end = offsets[entries], offsets[entries + 1]
        return np.where(end > start, np.append(ids, 0)[start], 0)

    def titles(self, table: str) -> Titles:
        """The display names of a table's ids, read once."""
        if table not in self._titles:
            self._titles[table] = Titles.of_store(self.store, table)
        return self._titles[table]

    @functools.cached_property
    def _titles(self) -> dict[str, Titles]:
        return {}

    @property
    def described(self) -> str:
        """A few words that name the samples: "36,000 samples of test"."""
        return f"{len(self.samples):,} samples of {self.split}"
