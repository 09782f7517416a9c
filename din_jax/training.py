"""The training loop: batches, steps, evaluation, checkpoints, logs."""

from __future__ import annotations

import bisect
import contextlib
import itertools
import json
import math
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import tensorboardX
import tqdm
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from din_jax import checkpoint, devices, evaluation, models, optim, processes
from din_jax.checkpoint import Checkpoints, Kind
from din_jax.config import check, default_config
from din_jax.counts import cached_counts
from din_jax.cpu import keep_freed_memory
from din_jax.devices import Placement
from din_jax.errors import DinError, Diverged, Interrupted
from din_jax.pipeline import Batch, BatchSource, Shards, batches
from din_jax.regularizers import Regularizer, most_frequent
from din_jax.step import (
    TrainState,
    TrainStep,
    TrainSteps,
    init_state,
    row_owners,
    score_steps,
    state_shapes,
    train_step,
    train_steps,
)
from din_jax.store import Store

_LOG_EVERY_S = 2.0  # between two lines of training metrics
_TRAINED_IN_A_CALL = 256  # samples of small batches: steps are taken several in a call
_SCORED_IN_A_CALL = 2048  # the same; more than in training, where a stop waits for the call
_REMARKED_AT_ONCE = 4096  # samples of a batch that is looked at before training
_LOWER_IS_BETTER = ("log_loss",)


class Run(NamedTuple):
    """What training and evaluation of one config have in common."""

    config: ConfigDict
    store: Store
    source: BatchSource
    model: models.Model
    optimizer: optax.GradientTransformationExtraArgs
    regularizer: Regularizer
    placement: Placement

    def init(self) -> TrainState:
        """The state before the first step."""
        return init_state(
            self.model,
            self.optimizer,
            self.source[0],
            self.config.seed,
            lazy=self.config.optimizer.lazy,
            placement=self.placement,
        )

    def like(self) -> TrainState:
        """The shapes and types of a state and how it lies, without its content."""
        return state_shapes(
            self.model,
            self.optimizer,
            self.source[0],
            lazy=self.config.optimizer.lazy,
            placement=self.placement,
        )

    def checkpoints(self, workdir: str | Path) -> Checkpoints:
        """The checkpoints of the run in `workdir`."""
        return Checkpoints(workdir, self.placement)

    def step(self) -> TrainStep:
        """The train step; see `din_jax.step.train_step`."""
        return train_step(self.model, self.optimizer, self.regularizer, self.placement)

    def steps(self) -> TrainSteps:
        """Train steps on as many batches as the source has alike, in one call."""
        return train_steps(
            self.model,
            self.optimizer,
            self.regularizer,
            self.placement,
            at_once=self.source.alike,
        )

    def evaluator(self, split: str) -> evaluation.Evaluator:
        """Scores a split of the run's store."""
        batch_size = self.placement.block(self.config.eval.batch_size) * self.placement.count
        at_once = 1
        if self.placement.axis is None:
            of_split = -(-len(self.store.split(split)) // batch_size)
            most = max(1, min(_batches_of(_SCORED_IN_A_CALL, batch_size), of_split))
            at_once = 1 << (most.bit_length() - 1)  # a power of two, to be shared out evenly there
        return evaluation.Evaluator(
            score_steps(self.model, self.regularizer, self.placement, at_once=at_once),
            self.store,
            split,
            batch_size=batch_size,
            max_history=self.config.data.max_history,
            shards=_shards(self.placement),
            at_once=at_once,
        )


def open_run(config: ConfigDict, *, trains: bool = True) -> Run:
    """Checks a config, joins the other processes, opens the store and builds the model.

    The process keeps freed memory from now on (`din_jax.cpu`).

    Args:
      config: see `din_jax.config`.
      trains: if not, the training batches need not be split evenly among the devices, and messages
        name eval.py's flag for these.

    Raises:
      DinError: the config can't be used, the store can't be opened, or a table does not fit the
        devices' memory.
    """
    check(config)
    keep_freed_memory()
    processes.connect(config.processes)
    path = Path(config.data.store)
    if config.data.prepare == config.data.store:
        if processes.is_first() and not path.exists():
            from din_jax.prepare import planted  # with Polars, which training does without

            origin = planted.prepare(path)
            print(f"made the embedded data set {path}: {origin['samples']:,} samples")
        processes.wait_for_all("embedded data set")  # all, whether they see it yet or not
    store = Store(path)
    tables = models.tables(store.schema, config.model)
    flag = "config.devices" if trains else "--devices"
    placement = devices.choose(config.devices, config.placement, tables, flag=flag)
    batch_size = config.train.batch_size
    source = BatchSource(
        store,
        config.data.fit,
        batch_size if trains else placement.block(batch_size) * placement.count,
        max_history=config.data.max_history,
        seed=config.seed,
        epochs=config.train.epochs,
        shards=_shards(placement),
        alike=_batches_of(_TRAINED_IN_A_CALL, batch_size),
    )
    model = models.build(store.schema, config.model, placement.axis)
    regularizer = _regularizer(config, store, model)
    optimizer = optim.build(
        config.optimizer,
        config.regularizer,
        batch_size,
        _decayed(model),
        placement.axis,
        placement.sharded,
    )
    run = Run(config, store, source, model, optimizer, regularizer, placement)
    _check_memory(run)
    return run


def _batches_of(samples: int, batch_size: int) -> int:
    """How many batches go into a call of so many samples."""
    return max(1, samples // batch_size)


def _shards(placement: Placement) -> Shards:
    return Shards(placement.count, placement.local)


def _check_memory(run: Run) -> None:
    """Raises DinError if the tables, with what is kept of their rows, don't fit a device."""
    like, placement = run.like(), run.placement
    owners = row_owners(like, run.optimizer)
    rows = {name: spec.rows for name, spec in run.model.tables.items()}
    row_bytes = dict.fromkeys(rows, 0)
    for leaf, name in zip(jax.tree.leaves(like), jax.tree.leaves(owners), strict=True):
        if name:
            row_bytes[name] += math.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    for name, n in run.regularizer.counts.items():
        row_bytes[name] += n.itemsize
    kept = sum(ids.nbytes for ids in run.regularizer.kept.values())  # whole on every device

    def block(name: str, count: int) -> int:
        return row_bytes[name] * -(-rows[name] // count)

    def fits(count: int) -> bool:
        """Whether `count` devices are enough for tables that are all sharded."""
        return sum(block(name, count) for name in rows) + kept <= memory

    memory, count = devices.memory_bytes(placement), placement.count
    on_each = {name: block(name, count if name in placement.sharded else 1) for name in rows}
    needed = sum(on_each.values()) + kept
    if needed <= memory:
        return
    numbers = range(1, max(rows.values()) + 1)
    enough = 1 + bisect.bisect_left(numbers, True, key=fits)
    less = "use config.optimizer.name='rowwise_adagrad' or 'sgd', which keep less"
    if fits(count):
        mend = "config.placement='sharded' fits"
    elif devices.simulated(placement):
        mend = f"this host has too little memory; take one with more, or {less}"
    elif enough in numbers:
        mend = f"use at least {enough} devices, with config.placement='sharded', or {less}"
    else:
        mend = less
    largest = max(on_each, key=lambda name: on_each[name])
    raise DinError(
        f"the tables with their optimizer state take {_gigabytes(needed)} on each device, which "
        f"has {_gigabytes(memory)}; the table {largest!r} of {rows[largest]:,} rows takes "
        f"{_gigabytes(on_each[largest])} of it: {mend}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"


def _decayed(model: models.Model) -> list[str]:
    """The embedding tables; not a bias or a weight per id that stands beside them."""
    return [name for name, spec in model.tables.items() if spec.decayed]


def _regularizer(config: ConfigDict, store: Store, model: models.Model) -> Regularizer:
    chosen = config.regularizer
    if chosen.name == "dropout":
        return Regularizer(
            dropout=chosen.dropout, behaviors_only=chosen.behaviors_only, seed=config.seed
        )
    if chosen.name not in ("mba", "filter"):
        return Regularizer()
    n = cached_counts(
        store,
        config.data.fit,
        max_history=config.data.max_history,
        extra_fields=config.model.extra_fields,
    )
    if chosen.name == "mba":
        without = [name for name in _decayed(model) if name not in n]
        if without:
            raise DinError(
                f"config.regularizer.name='mba': no counts n_j for {', '.join(without)}: the data "
                "set's own tables have them, but not a table of hashed ids, several of which "
                "share a row, or of one input's weights; use 'difacto', which needs none"
            )
        return Regularizer(counts={name: n[name].astype(np.float32) for name in _decayed(model)})
    beside = [name for name in model.tables if name not in n]
    if beside:
        raise DinError(
            f"config.regularizer.name='filter' with config.model.name={config.model.name!r}: the "
            f"ids that it takes out of the data set's tables would live on in {', '.join(beside)}; "
            "use another regularizer, or a model without such tables"
        )
    schema = store.schema.without(config.model.without)
    goods = dict.fromkeys(sequence.fields[0].table for sequence in schema.sequences)
    filtered = tuple(chosen.filter_tables) or tuple(goods)
    for name in filtered:
        if name not in model.tables or name not in n:
            raise DinError(
                f"config.regularizer.filter_tables names {name!r}; tables with counts are: "
                + ", ".join(name for name in model.tables if name in n)
            )
    return Regularizer(
        kept={name: most_frequent(n[name], chosen.keep) for name in filtered},
        unknown=chosen.rare == "unknown",
    )


def reopen(workdir: str | Path, store: str = "", *, on: str = "") -> Run:
    """The run that was trained in `workdir`, from its checkpoint.

    Args:
      workdir: the run's folder.
      store: where its store is now, if it has moved.
      on: how many devices to use, or "all"; by default as many as it was trained on.

    Raises:
      DinError: there is no checkpoint, the store is not the one that it was trained on, or there
        are not as many devices.
    """
    processes.connect(default_config().processes)
    meta = Checkpoints(workdir).meta("last")
    config = ConfigDict(meta["config"])
    processes.check_alike(
        {
            "--devices": on,
            **checkpoint.as_texts(config),
            "the run's folder": f"a last checkpoint of step {meta['step']}",
        }
    )
    checkpoint.check_complete(config, workdir)
    config.processes = default_config().processes
    if on:
        if on != "all" and not (on.isdecimal() and int(on)):
            raise DinError(f"--devices={on}: expected a whole number from 1 on, or 'all'")
        with config.ignore_type():
            config.devices = int(on) if on.isdecimal() else on
    config.data.store = store or config.data.store
    config.data.prepare = ""
    if not Path(config.data.store).exists():
        raise DinError(
            f"the run's store {config.data.store} is not there (seen from {Path.cwd()}); say where "
            "it is with --store"
        )
    checkpoint.check_same_data(meta, Store(config.data.store), workdir)
    return open_run(config, trains=False)


def final_kind(run: Run, workdir: str | Path) -> Kind:
    """The checkpoint that a run is judged by: the best on validation, if any was chosen."""
    if run.config.data.fit == "train" and Checkpoints(workdir).latest("best") is not None:
        return "best"
    return "last"


class Tested(NamedTuple):
    """A trained run's scores of the test split."""

    metrics: dict[str, float]
    users: np.ndarray  # [N]
    labels: np.ndarray  # [N]
    probabilities: np.ndarray  # [N]


def train(config: ConfigDict, workdir: str | Path, *, test: bool = True) -> Tested | None:
    """Trains, or goes on training, and evaluates the test split once at the end.

    Args:
      config: see `din_jax.config`.
      workdir: the run's folder. If it holds a run of the same config, that goes on.
      test: if not, the test split is left alone: for trials that are chosen among.

    Returns:
      The test split scored with the weights that were best on validation, or with
      `data.fit=train+validation` with the last ones. None without `test`.

    Raises:
      DinError: the config or the data can't be used, or `workdir` holds another run.
      Interrupted: a signal asked to stop; the state is saved.
    """
    with processes.together():
        return _train(open_run(config), Path(workdir), test=test)


def _train(run: Run, workdir: Path, *, test: bool) -> Tested | None:
    config = run.config
    checkpoints = run.checkpoints(workdir)
    meta = checkpoint.describe(config, run.store.schema, run.source)
    processes.check_alike(
        {**checkpoint.as_texts(config), "the store's content": run.store.fingerprint}
    )
    processes.check_shared(workdir, "--workdir")
    last = checkpoints.latest("last")
    processes.check_alike({"the run's folder": f"a last checkpoint of step {last}"})
    # Now, so that a store without such a split is noticed now.
    evaluator = run.evaluator("test") if test else None
    state, best = None, None
    for kind in ("last", "best"):  # a run that was killed early may have left a best alone
        if checkpoints.latest(kind) is not None:
            before = checkpoints.meta(kind)
            checkpoint.check_complete(ConfigDict(before["config"]), workdir)
            checkpoint.check_same_run(before, config, run.store, workdir)
            checkpoint.check_same_batches(before, run.source, workdir)
    if checkpoints.latest("last") is not None:
        state, saved = checkpoints.restore("last", run.like())
        best = saved["best"]
        taken, total = int(state.step), len(run.source)
        if taken > total:
            raise DinError(
                f"{workdir} holds a run of {taken:,} steps, and config.train.epochs="
                f"{config.train.epochs} asks for {total:,}; give another --workdir"
            )
        what = "is complete" if taken == total else "goes on"
        if processes.is_first():
            print(f"{workdir}: the run {what} at step {taken:,} of {total:,}")
    if state is None:
        state = run.init()
    trainer = _Trainer(run, checkpoints, meta, best)
    if processes.is_first() and int(state.step) < len(run.source):
        for remark in _remarks(run):
            print(remark)

    with Log(workdir, from_step=int(state.step)) as log, _stop_signal() as stop:
        trainer.fit(state, log, stop)
        if evaluator is None:
            return None
        del state  # the tables need not be in memory twice
        state, _ = checkpoints.restore(final_kind(run, workdir), run.like())
        probabilities = evaluator.probabilities(state)
        metrics = evaluator.metrics(probabilities)
        log.write(int(state.step), "test", metrics)
    if processes.is_first():
        print(evaluation.table(f"test metrics, weights of step {int(state.step):,}", metrics))
    return Tested(metrics, evaluator.users, evaluator.labels, probabilities)


def _remarks(run: Run) -> Iterable[str]:
    def shuffled() -> Iterator[Batch]:
        source = BatchSource(
            run.store,
            run.config.data.fit,
            _REMARKED_AT_ONCE,
            max_history=run.config.data.max_history,
            seed=run.config.seed,
            epochs=1,
        )
        yield from (source[i] for i in range(len(source)))

    return models.remarks(shuffled(), run.store.schema, run.config.model)


class _Trainer:
    """Takes a run's remaining steps; evaluates, saves and logs between them."""

    def __init__(
        self,
        run: Run,
        checkpoints: Checkpoints,
        meta: dict[str, Any],
        best: float | None,
    ):
        self.run, self.config, self.source = run, run.config, run.source
        self.checkpoints, self.meta, self.best = checkpoints, meta, best
        self.learning_rate = optim.decayed_learning_rate(
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
        self.meter = _Meter()

    def fit(self, state: TrainState, log: Log, stop: _Stop) -> None:
        """Takes the steps from `state` to the last; the states to keep are saved."""
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


def _check_selectable(validation: evaluation.Evaluator, metric: str) -> None:
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
    """The batches still to train on, in ranges that go into one call each.

    A range ends where batches of other shapes begin, and before an evaluation. It does not depend
    on where a run was stopped, so that one that goes on takes the very same steps.
    """
    while done < len(source):
        epoch, place = divmod(done, source.batches_per_epoch)
        evaluation = evaluate_after[bisect.bisect_right(evaluate_after, place)]
        end = min(source.next_group(done), epoch * source.batches_per_epoch + evaluation)
        yield range(done, end)
        done = end


def _better(value: float, best: float, metric: str) -> bool:
    return value < best if metric in _LOWER_IS_BETTER else value > best


class _Meter:
    """Loss, speed and share of time waiting for input since it was last read or started."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.all_losses: list[float] = []
        self._restart()

    def _restart(self) -> None:
        self.waited = 0.0
        self.samples = 0
        self.losses: list[float] = []
        self.begin = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time that its block takes as waiting for input."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time that its block takes: that of compiling a step."""
        begin = time.perf_counter()
        yield
        self.begin += time.perf_counter() - begin

    def add(self, losses: jax.Array, samples: int) -> None:
        self.losses += np.asarray(losses).tolist()
        self.samples += samples

    def loss_since_start(self) -> float:
        return float(np.mean(self.all_losses))

    def read(self) -> dict[str, float]:
        seconds = self.seconds
        figures = {
            "loss": float(np.mean(self.losses)),
            "samples_per_s": self.samples / seconds,
            "input_wait": self.waited / seconds,
        }
        self.all_losses += self.losses
        self._restart()
        return figures


class Log:
    """Metrics as JSON lines (WORKDIR/metrics.jsonl; not a number: null) and TensorBoard events.

    Lines of steps after `from_step` and of the test split are dropped: a run that goes on takes
    those steps, and scores that split, again. Of several processes the first one writes.
    """

    def __init__(self, workdir: Path, from_step: int):
        self._writes = processes.is_first()
        if not self._writes:
            return
        workdir.mkdir(parents=True, exist_ok=True)
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = workdir / "metrics.jsonl.partial"
            kept.write_text("".join(line for line in lines if self._stands(line, from_step)))
            kept.replace(self._path)
        self._file = self._path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=from_step + 1
        )

    @staticmethod
    def _stands(line: str, from_step: int) -> bool:
        try:
            metrics = json.loads(line)
            return metrics["step"] <= from_step and metrics["split"] != "test"
        except (ValueError, KeyError, TypeError):  # cut when the run was killed
            return False

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writes:
            return
        self._file.close()
        self._events.close()

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Adds a line and the events of one split's metrics."""
        if not self._writes:
            return
        known = {name: value if np.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "split": split, **known}) + "\n")
        self._file.flush()
        for name, value in known.items():
            if value is not None:
                self._events.add_scalar(f"{split}/{name}", value, step)


class _Stop:
    """Whether a signal asked to stop: in the same step for all processes."""

    signum = 0

    def wished(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self.signum != 0
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.signum = self.signum or signal.SIGTERM
        return True


@contextlib.contextmanager
def _stop_signal() -> Iterator[_Stop]:
    """Turns the first SIGINT or SIGTERM into a wish to stop; a second one ends at once.

    Of several processes one is enough: JAX takes the SIGTERM and tells the others.
    """
    stop = _Stop()
    before: dict[int, Any] = {}
    alone = jax.process_count() == 1

    def ask(signum: int, _: Any) -> None:
        stop.signum = signum
        for known, handler in before.items():
            signal.signal(known, handler)
        if not alone:
            signal.raise_signal(signal.SIGTERM)

    try:
        for wanted in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            before[wanted] = signal.signal(wanted, ask)
    except ValueError:  # not the main thread: whoever runs us handles signals
        pass
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
