"""The training loop: steps, evaluations and checkpoints."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Kind
from din_jax.data.loader import batches
from din_jax.data.packing import Batch
from din_jax.data.pretrained import Pretrained
from din_jax.data.source import BatchSource
from din_jax.distributed import processes
from din_jax.errors import Interrupted
from din_jax.metrics import lower_is_better
from din_jax.models.registry import notes
from din_jax.optim.catch_up import CAPACITY
from din_jax.optim.learning_rate import decayed_learning_rate
from din_jax.step.average import average
from din_jax.step.state import StateToState, TrainState
from din_jax.step.train import TrainSteps
from din_jax.training.baseline import print_best_baseline
from din_jax.training.divergence import diverged
from din_jax.training.evaluation import Evaluator, Scores, metrics_table
from din_jax.training.label_checks import check_labels, check_selectable
from din_jax.training.lock import locked
from din_jax.training.log import Log, Meter
from din_jax.training.restoring import Best, restored
from din_jax.training.run import Run, open_run
from din_jax.training.stopping import Stop, stop_signal
from din_jax.training.trained import final_kind

_LOG_EVERY_S = 2.0  # seconds between two log lines of training metrics
_SETTLE_EVERY = CAPACITY // 2  # steps; see `din_jax.optim.catch_up.CatchUp`
_AGREE_EVERY = 64  # steps after which several processes ask whether it is time to save
_AVERAGES_PER_EPOCH = 8  # how often the weights are averaged in; more if there are more evaluations
_SHOWN = ("user_weighted_auc", "auc", "log_loss")  # beside `train.select`, at each evaluation
_NOTES_BATCH_SIZE = 4096  # batch size of the samples that `notes` inspects before training
OnEvaluation = Callable[[float, Mapping[str, float]], None]


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    test: bool = True,
    on_evaluation: OnEvaluation | None = None,
) -> Scores | None:
    """Trains a run, or continues it, and scores the test split once at the end.

    Args:
      config: see `din_jax.config`.
      workdir: the run's folder. If it has a run with this config, the run is continued.
      test: whether to score the test split; False for trials that are selected on validation.
      on_evaluation: called with the epochs so far and the metrics on validation, after each
        evaluation, when the state has been saved. An exception that it raises ends the training.

    Returns:
      The scores of the test split, with the best weights on validation, or with the last weights if
      `data.fit` is "train+validation". None if `test` is False.

    Raises:
      DinError: the config or the data can't be used, `workdir` has another run, or another process
        trains there.
      Diverged: the loss or a weight is not finite; the checkpoints are as they were before.
      Interrupted: a signal asked to stop; the state has been saved.
    """
    with processes.together():
        run = open_run(config)
        pretrained = run.pretrained()
        checksums = {table: vectors.checksum() for table, vectors in pretrained.items()}
        _check_processes(run, Path(workdir), checksums)
        check_labels(run)
        evaluator = run.evaluator("test") if test else None  # before training: it checks the split
        with locked(Path(workdir)):
            return _train(run, Path(workdir), pretrained, checksums, evaluator, on_evaluation)


def _train(
    run: Run,
    workdir: Path,
    pretrained: dict[str, Pretrained],
    checksums: Mapping[str, str],
    evaluator: Evaluator | None,
    on_evaluation: OnEvaluation | None,
) -> Scores | None:
    state, best, origin = restored(run, workdir, run.checkpoints(workdir), checksums)
    coverage: dict[str, float] = {}
    if state is None:
        state, origin = run.init(pretrained), run.origin()
        coverage = _coverage(pretrained)
    pretrained.clear()  # frees the vectors
    meta = compatibility.describe(run.config, run.store.schema, run.source, checksums, origin)
    trainer = Trainer(run, workdir, best, on_evaluation, meta)
    if processes.is_first() and not trainer.is_complete(int(state.step)):
        if run.config.data.fit != "train" and run.config.train.patience:
            print(_no_validation(run.config.train.epochs))
        for note in notes(_shuffled_batches(run), run.store.schema, run.config.model):
            print(note)
    with Log(workdir, from_step=int(state.step)) as log, stop_signal() as stop:
        if coverage:
            log.write(0, "pretrained", coverage)
        trainer.fit(state, log, stop)
        if evaluator is None:
            return None
        del state  # frees the tables before they are restored
        scores = evaluator.scores(run.restore(workdir, final_kind(run, workdir)))
        log.write(scores.step, "test", scores.metrics)
    if processes.is_first():
        print(metrics_table(f"test metrics, weights of step {scores.step:,}", scores.metrics))
    if run.config.eval.baselines:
        print_best_baseline(run, scores.metrics)
    return scores


def _check_processes(run: Run, workdir: Path, pretrained: Mapping[str, str]) -> None:
    """Raises DinError unless all processes have the same config, data and last checkpoint."""
    processes.check_equal(
        {
            **compatibility.as_texts(run.config),
            "the store's content": run.store.fingerprint,
            "the pretrained vectors": str(pretrained),
        }
    )
    processes.check_shared(workdir, "--workdir")
    last = run.checkpoints(workdir).latest("last")
    processes.check_equal({"the run's folder": f"a last checkpoint of step {last}"})


def _coverage(pretrained: Mapping[str, Pretrained]) -> dict[str, float]:
    """The shares of each table that have pretrained vectors, to log; prints them."""
    shares = {}
    for table, vectors in pretrained.items():
        if processes.is_first():
            print(vectors.summary(table))
        shares[f"{table}_ids"] = vectors.of_rows
        shares[f"{table}_occurrences"] = vectors.of_occurrences
    return shares


def _no_validation(epochs: int) -> str:
    return (
        "config.data.fit='train+validation' leaves no validation to stop on: config.train.patience "
        f"is ignored, and the weights after config.train.epochs={epochs} are scored. Set it to the "
        "epochs that were best on validation in a run with config.data.fit='train'"
    )


def _shuffled_batches(run: Run) -> Iterator[Batch]:
    """Large batches of the training samples, in random order."""
    source = BatchSource(
        run.store,
        run.config.data.fit,
        _NOTES_BATCH_SIZE,
        max_history=run.config.data.max_history,
        ages=run.source.packer.ages,
        seed=run.config.seed,
        epochs=1,
    )
    yield from (source[i] for i in range(len(source)))


class Trainer:
    """Takes the remaining steps of a run, and evaluates, saves and logs between them."""

    def __init__(
        self,
        run: Run,
        workdir: Path,
        best: Best,
        on_evaluation: OnEvaluation | None,
        meta: dict[str, Any],
    ):
        self.run, self.config, self.source = run, run.config, run.source
        self.workdir, self.checkpoints = workdir, run.checkpoints(workdir)
        self.best, self.on_evaluation, self.meta = best, on_evaluation, meta
        self.learning_rate = decayed_learning_rate(
            self.config.optimizer, self.config.train.batch_size
        )
        self.evaluator = run.evaluator("validation") if self.config.data.fit == "train" else None
        if self.evaluator is not None:
            check_selectable(self.evaluator, self.config.train.select)
        self.curves = (
            {split: run.evaluator(split) for split in ("train", "test")}
            if self.config.eval.curves
            else {}
        )
        self.meter = Meter()
        self.saved_at = time.monotonic()

    def is_complete(self, done: int) -> bool:
        """Whether no step is left after `done` steps."""
        return done == len(self.source) or self.best.ends(self.config.train.patience)

    def fit(
        self, state: TrainState, log: Log, stop: Stop, take_steps: TrainSteps | None = None
    ) -> None:
        """Takes the steps after `state`'s, and saves the best and the last state.

        Args:
          state: is donated.
          log, stop: of the run.
          take_steps: by default `Run.steps`.
        """
        if self.is_complete(int(state.step)):
            return
        take_steps, settle_all = take_steps or self.run.steps(), self.run.settle()
        batches_per_epoch = self.source.batches_per_epoch
        evaluate_after = _places(batches_per_epoch, self.config.train.evaluations_per_epoch)
        average_after, average_in = self._averages(batches_per_epoch)
        done, total = int(state.step), len(self.source)
        iterator = batches(self.source, start=done)
        in_flight, samples, compiled = None, 0, set[Any]()
        # None: disabled if the output is not a terminal.
        disable = None if processes.is_first() else True
        with tqdm.tqdm(
            total=total, initial=done, unit="step", disable=disable, dynamic_ncols=True
        ) as bar:
            self.meter.start()
            ends = sorted({*evaluate_after, *average_after})
            for call in _calls(self.source, done, ends):
                with self.meter.waiting():
                    call_batches = list(itertools.islice(iterator, len(call)))
                if in_flight is not None:
                    # One call is in flight: reading the next batches overlaps with it. Waits for
                    # all devices, because JAX on CPU aborts otherwise.
                    self._add(*in_flight, samples, state)
                samples = sum(map(self.source.real_samples, call))
                shapes = tuple(leaf.shape for leaf in jax.tree.leaves(call_batches[0]))
                with contextlib.nullcontext() if shapes in compiled else self.meter.paused():
                    state, losses = take_steps(state, call_batches)
                in_flight = call, losses
                compiled.add(shapes)
                done = call.stop
                bar.update(len(call))
                position = (done - 1) % batches_per_epoch + 1
                evaluates, averages = position in evaluate_after, position in average_after
                stops = stop.wished(done)
                saves = evaluates or stops or self._is_due(call)
                if saves:
                    self._add(*in_flight, samples, state)
                    in_flight = None
                if evaluates or (self.meter.losses and self.meter.seconds > _LOG_EVERY_S):
                    metrics = self._log_training(done, log, bar)
                if evaluates or averages or done // _SETTLE_EVERY > call.start // _SETTLE_EVERY:
                    state = settle_all(state)
                if averages:
                    state = average_in(state)
                if evaluates:
                    validation = self._evaluate(state, done, metrics, log, bar)
                if saves:
                    with self.meter.paused():
                        self._save("last", state)
                if evaluates or stops:
                    self.meter.start()
                if stops and not self.is_complete(done):
                    raise Interrupted(
                        f"stopped and saved at step {done:,}; run the same command again to "
                        "continue",
                        stop.signum,
                    )
                if evaluates and validation is not None and self.on_evaluation is not None:
                    self.on_evaluation(done / batches_per_epoch, validation)
                if self.is_complete(done):
                    break

    def _add(self, call: range, losses: jax.Array, samples: int, state: TrainState) -> None:
        """Reads the losses of a call, and checks that they are finite."""
        values = np.asarray(jax.block_until_ready(losses))
        if not np.isfinite(values).all():
            i = int(np.argmin(np.isfinite(values)))
            raise diverged(self.run, self.workdir, call.start + i, float(values[i]), state)
        self.meter.add(values, samples)

    def _is_due(self, call: range) -> bool:
        """Whether the last state was saved long ago; all processes agree."""
        every = self.config.train.checkpoint_every_s
        if not every or (
            processes.one_of_several() and call.stop // _AGREE_EVERY == call.start // _AGREE_EVERY
        ):
            return False
        return processes.in_any(time.monotonic() - self.saved_at > every)

    def _averages(self, batches_per_epoch: int) -> tuple[list[int], StateToState]:
        """After which batches of an epoch the weights are averaged in, and the function."""
        if not self.config.train.ema_epochs:
            return [], lambda state: state
        evaluations = self.config.train.evaluations_per_epoch
        places = _places(batches_per_epoch, -(-_AVERAGES_PER_EPOCH // evaluations) * evaluations)
        half_life = self.config.train.ema_epochs * len(places)
        return places, average(half_life, self.run.placement)

    def _log_training(self, done: int, log: Log, bar: tqdm.tqdm) -> dict[str, float]:
        metrics = self.meter.read()
        metrics["learning_rate"] = float(self.learning_rate(done - 1))
        metrics["epoch"] = done / self.source.batches_per_epoch
        log.write(done, "train", metrics)
        bar.set_postfix_str(
            f"loss {metrics['loss']:.4f}, {metrics['samples_per_s']:,.0f} samples/s, "
            f"input wait {metrics['input_wait']:.1%}"
        )
        return metrics

    def _evaluate(
        self,
        state: TrainState,
        done: int,
        train_metrics: dict[str, float],
        log: Log,
        bar: tqdm.tqdm,
    ) -> dict[str, float] | None:
        """Evaluates, and saves the best state; returns the metrics on validation, if it has any."""
        validation = None
        line = (
            f"step {done:,} of {len(self.source):,} (epoch {train_metrics['epoch']:.2f})  "
            f"train loss {self.meter.loss_since_start():.4f}  "
            f"{train_metrics['samples_per_s']:,.0f} samples/s  "
            f"input wait {train_metrics['input_wait']:.1%}"
        )
        scored = state.scored()
        if self.evaluator is not None:
            validation = self.evaluator.metrics(self.evaluator.probabilities(scored))
            log.write(done, "validation", validation)
            select = self.config.train.select
            line += "  validation " + "  ".join(
                f"{name} {validation[name]:.4f}" for name in dict.fromkeys((*_SHOWN, select))
            )
            old = self.best.value
            if old is None or _better(validation[select], old, select):
                self.best = Best(validation[select])
                self._save("best", state)
            else:
                self.best = self.best._replace(since=self.best.since + 1)
            if self.best.ends(self.config.train.patience) and done < len(self.source):
                line += f"  the last of {self.best.since} without a better {select}: stops here"
        for split, evaluator in self.curves.items():
            log.write(done, f"{split}_curve", evaluator.metrics(evaluator.probabilities(scored)))
        if processes.is_first():
            bar.write(line)
        return validation

    def _save(self, kind: Kind, state: TrainState) -> None:
        best = {"best": self.best.value, "evaluations_since_best": self.best.since}
        self.checkpoints.save(kind, state, self.meta | best)
        self.saved_at = time.monotonic()


def _places(batches_per_epoch: int, per_epoch: int) -> list[int]:
    """Divides an epoch into equal parts: their ends in batches, ascending; the last is all."""
    return sorted({-(-batches_per_epoch * (i + 1) // per_epoch) for i in range(per_epoch)})


def _calls(source: BatchSource, done: int, end_after: list[int]) -> Iterator[range]:
    """Yields the indices of the remaining batches, one range per call.

    A range ends where the batches' shapes change, and after the batches `end_after` of an epoch:
    evaluations and averages are at the same steps on any devices. The ends do not depend on where a
    run was stopped, so that a continued run takes exactly the same steps.
    """
    while done < len(source):
        epoch, position = divmod(done, source.batches_per_epoch)
        place = end_after[bisect.bisect_right(end_after, position)]
        end = min(source.next_group(done), epoch * source.batches_per_epoch + place)
        yield range(done, end)
        done = end


def _better(value: float, best: float, metric: str) -> bool:
    return value < best if lower_is_better(metric) else value > best
