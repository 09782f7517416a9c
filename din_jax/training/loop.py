"""The training loop: steps, evaluations, checkpoints."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import KINDS, Checkpoints, Kind
from din_jax.data.loader import batches
from din_jax.data.packing import Batch
from din_jax.data.source import BatchSource
from din_jax.distributed import processes
from din_jax.errors import DinError, Diverged, Interrupted
from din_jax.models.registry import notes
from din_jax.optim.learning_rate import decayed_learning_rate
from din_jax.step.state import TrainState
from din_jax.training.evaluation import Evaluator, Scores, metrics_table
from din_jax.training.log import Log, Meter
from din_jax.training.run import Run, open_run
from din_jax.training.stopping import Stop, stop_signal
from din_jax.training.trained import final_kind

_LOG_EVERY_S = 2.0  # between two lines of training metrics
_NOTES_BATCH_SIZE = 4096  # of samples that are looked at before training
_LOWER_IS_BETTER = ("log_loss",)


def train(config: ConfigDict, workdir: str | Path, *, test: bool = True) -> Scores | None:
    """Trains a run, or continues it, and scores the test split once at the end.

    Args:
      config: see `din_jax.config`.
      workdir: the run's folder. A run of the same config in it is continued.
      test: if False, the test split is left alone: for trials that are selected on validation.

    Returns:
      The scores of the test split with the weights that were best on validation, or with the last
      ones if `data.fit` is "train+validation". None without `test`.

    Raises:
      DinError: the config or the data can't be used, or `workdir` holds another run.
      Interrupted: a signal asked to stop; the state is saved.
    """
    with processes.together():
        return _train(open_run(config), Path(workdir), test=test)


def _train(run: Run, workdir: Path, *, test: bool) -> Scores | None:
    checkpoints = run.checkpoints(workdir)
    _check_processes(run, workdir, checkpoints)
    evaluator = run.evaluator("test") if test else None  # now, for an error about the split
    state, best = _restored(run, workdir, checkpoints)
    if state is None:
        state = run.init()
    trainer = _Trainer(run, checkpoints, best)
    if processes.is_first() and int(state.step) < len(run.source):
        for note in notes(_shuffled(run), run.store.schema, run.config.model):
            print(note)
    with Log(workdir, from_step=int(state.step)) as log, stop_signal() as stop:
        trainer.fit(state, log, stop)
        if evaluator is None:
            return None
        del state  # the tables need not be in memory twice
        state, _ = checkpoints.restore(final_kind(run, workdir), run.state_shapes())
        scores = evaluator.scores(state)
        log.write(scores.step, "test", scores.metrics)
    if processes.is_first():
        print(metrics_table(f"test metrics, weights of step {scores.step:,}", scores.metrics))
    return scores


def _check_processes(run: Run, workdir: Path, checkpoints: Checkpoints) -> None:
    """Raises DinError unless all processes have the same config, data, and run to continue."""
    processes.check_equal(
        {**compatibility.as_texts(run.config), "the store's content": run.store.fingerprint}
    )
    processes.check_shared(workdir, "--workdir")
    last = checkpoints.latest("last")
    processes.check_equal({"the run's folder": f"a last checkpoint of step {last}"})


def _restored(
    run: Run, workdir: Path, checkpoints: Checkpoints
) -> tuple[TrainState | None, float | None]:
    """The last state in `workdir` and the best validation metric so far; None if there is none."""
    for kind in KINDS:  # a run that was killed early may have left only a best one
        if checkpoints.latest(kind) is not None:
            saved = checkpoints.meta(kind)
            compatibility.check_same_run(saved, run.config, run.store, workdir)
            compatibility.check_same_batches(saved, run.source, workdir)
    if checkpoints.latest("last") is None:
        return None, None
    state, saved = checkpoints.restore("last", run.state_shapes())
    done, total = int(state.step), len(run.source)
    if done > total:
        raise DinError(
            f"{workdir} holds a run of {done:,} steps, and config.train.epochs="
            f"{run.config.train.epochs} asks for {total:,}; give another --workdir"
        )
    if processes.is_first():
        what = "is complete" if done == total else "goes on"
        print(f"{workdir}: the run {what} at step {done:,} of {total:,}")
    return state, saved["best"]


def _shuffled(run: Run) -> Iterator[Batch]:
    """Training samples in random order, in large batches."""
    source = BatchSource(
        run.store,
        run.config.data.fit,
        _NOTES_BATCH_SIZE,
        max_history=run.config.data.max_history,
        seed=run.config.seed,
        epochs=1,
    )
    yield from (source[i] for i in range(len(source)))


class _Trainer:
    """Takes a run's remaining steps; evaluates, saves and logs between them."""

    def __init__(self, run: Run, checkpoints: Checkpoints, best: float | None):
        self.run, self.config, self.source = run, run.config, run.source
        self.checkpoints, self.best = checkpoints, best
        self.meta = compatibility.describe(run.config, run.store.schema, run.source)
        self.learning_rate = decayed_learning_rate(
            self.config.optimizer, self.config.train.batch_size
        )
        self.evaluator = run.evaluator("validation") if self.config.data.fit == "train" else None
        if self.evaluator is not None:
            _check_selectable(self.evaluator, self.config.train.select)
        self.curves = (
            {split: run.evaluator(split) for split in ("train", "test")}
            if self.config.eval.curves
            else {}
        )
        self.meter = Meter()

    def fit(self, state: TrainState, log: Log, stop: Stop) -> None:
        """Takes the steps from `state` to the last, and saves the best and the last state."""
        take = self.run.steps()
        an_epoch = self.source.batches_per_epoch
        evaluate_after = _evaluation_places(an_epoch, self.config.train.evaluations_per_epoch)
        done, total = int(state.step), len(self.source)
        iterator = batches(self.source, start=done)
        losses, samples, compiled = None, 0, set[Any]()
        # None: shown on a terminal only.
        hidden = None if processes.is_first() else True
        with tqdm.tqdm(
            total=total, initial=done, unit="step", disable=hidden, dynamic_ncols=True
        ) as bar:
            self.meter.start()
            for call in _calls(self.source, done, evaluate_after):
                with self.meter.waiting():
                    read = list(itertools.islice(iterator, len(call)))
                if losses is not None:
                    # One call in flight: reading the next batches overlaps with it. Of several
                    # devices all are waited for: JAX on CPU aborts otherwise.
                    self.meter.add(jax.block_until_ready(losses), samples)
                samples = sum(map(self.source.real_samples, call))
                shapes = tuple(leaf.shape for leaf in jax.tree.leaves(read[0]))
                with contextlib.nullcontext() if shapes in compiled else self.meter.paused():
                    state, losses = take(state, read)
                compiled.add(shapes)
                done = call.stop
                bar.update(len(call))
                ends = (done - 1) % an_epoch + 1 in evaluate_after
                stops = stop.wished(done)
                if ends or stops:
                    self.meter.add(jax.block_until_ready(losses), samples)
                    losses = None
                if ends or (self.meter.losses and self.meter.seconds > _LOG_EVERY_S):
                    figures = self._log_training(done, log, bar)
                if ends:
                    self._evaluate(state, done, figures, log, bar)
                if ends or stops:
                    self._save("last", state)
                    self.meter.start()
                if stops and done < total:
                    raise Interrupted(
                        f"stopped and saved at step {done:,}; run the same command again to go on",
                        stop.signum,
                    )

    def _log_training(self, done: int, log: Log, bar: tqdm.tqdm) -> dict[str, float]:
        figures = self.meter.read()
        figures["learning_rate"] = float(self.learning_rate(done - 1))
        figures["epoch"] = done / self.source.batches_per_epoch
        log.write(done, "train", figures)
        bar.set_postfix_str(
            f"loss {figures['loss']:.4f}, {figures['samples_per_s']:,.0f} samples/s, "
            f"input wait {figures['input_wait']:.1%}"
        )
        if not np.isfinite(figures["loss"]):
            raise Diverged(
                f"the loss is {figures['loss']} by step {done:,}: training has diverged; "
                "lower config.optimizer.learning_rate or set config.optimizer.clip_norm"
            )
        return figures

    def _evaluate(
        self, state: TrainState, done: int, figures: dict[str, float], log: Log, bar: tqdm.tqdm
    ) -> None:
        line = (
            f"step {done:,} of {len(self.source):,} (epoch {figures['epoch']:.2f})  "
            f"train loss {self.meter.loss_since_start():.4f}  "
            f"{figures['samples_per_s']:,.0f} samples/s  input wait {figures['input_wait']:.1%}"
        )
        if self.evaluator is not None:
            metrics = self.evaluator.metrics(self.evaluator.probabilities(state))
            log.write(done, "validation", metrics)
            line += "  validation " + "  ".join(
                f"{name} {metrics[name]:.4f}" for name in ("user_weighted_auc", "auc", "log_loss")
            )
            value = metrics[self.config.train.select]
            if self.best is None or _better(value, self.best, self.config.train.select):
                self.best = value
                self._save("best", state)
        for split, evaluator in self.curves.items():
            log.write(done, f"{split}_curve", evaluator.metrics(evaluator.probabilities(state)))
        if processes.is_first():
            bar.write(line)

    def _save(self, kind: Kind, state: TrainState) -> None:
        self.checkpoints.save(kind, state, self.meta | {"best": self.best})


def _check_selectable(validation: Evaluator, metric: str) -> None:
    trial = validation.metrics(np.full(len(validation.labels), 0.5))
    if not np.isfinite(trial[metric]):
        usable = [name for name in ("auc", "log_loss") if np.isfinite(trial[name])]
        raise DinError(
            f"config.train.select={metric!r} can't be computed on the validation split: no user of "
            f"it has both a click and none; use {' or '.join(map(repr, usable))}"
        )


def _evaluation_places(batches_per_epoch: int, per_epoch: int) -> list[int]:
    """After how many batches of an epoch validation is scored, ascending; after all for one."""
    return sorted({-(-batches_per_epoch * (i + 1) // per_epoch) for i in range(per_epoch)})


def _calls(source: BatchSource, done: int, evaluate_after: list[int]) -> Iterator[range]:
    """The batches still to train on, in ranges of one call each.

    A range ends where batches of other shapes begin, and before an evaluation. It does not depend
    on where a run was stopped, so that a continued run takes exactly the same steps.
    """
    while done < len(source):
        epoch, position = divmod(done, source.batches_per_epoch)
        evaluation = evaluate_after[bisect.bisect_right(evaluate_after, position)]
        end = min(source.next_group(done), epoch * source.batches_per_epoch + evaluation)
        yield range(done, end)
        done = end


def _better(value: float, best: float, metric: str) -> bool:
    return value < best if metric in _LOWER_IS_BETTER else value > best
