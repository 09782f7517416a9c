"""The run that a config describes: assembled here, from the store to the steps."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import optax
from ml_collections import ConfigDict

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints, Kind
from din_jax.config import check, default_config
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.distributed import devices, processes
from din_jax.distributed.cpu import keep_freed_memory
from din_jax.distributed.devices import Placement
from din_jax.errors import DinError
from din_jax.models.registry import Model, build_model, model_tables
from din_jax.optim.build import build_optimizer
from din_jax.optim.regularizer import Regularizer, build_regularizer, decayed_tables
from din_jax.step.score import score_steps
from din_jax.step.state import TrainState, init_state, state_shapes
from din_jax.step.train import TrainStep, TrainSteps, train_step, train_steps
from din_jax.train.evaluation import Evaluator
from din_jax.train.memory import check_memory

_TRAINED_IN_A_CALL = 256  # samples of small batches: steps are taken several in a call
_SCORED_IN_A_CALL = 2048  # the same; more than in training, where a stop waits for the call


class Run(NamedTuple):
    """What training and evaluation of one config have in common."""

    config: ConfigDict
    store: Store
    source: BatchSource
    model: Model
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

    def evaluator(self, split: str) -> Evaluator:
        """Scores a split of the run's store."""
        batch_size = self.placement.block(self.config.eval.batch_size) * self.placement.count
        at_once = 1
        if self.placement.axis is None:
            of_split = -(-len(self.store.split(split)) // batch_size)
            most = max(1, min(_batches_of(_SCORED_IN_A_CALL, batch_size), of_split))
            at_once = 1 << (most.bit_length() - 1)  # a power of two, to be shared out evenly there
        return Evaluator(
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
    tables = model_tables(store.schema, config.model)
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
    model = build_model(store.schema, config.model, placement.axis)
    regularizer = build_regularizer(config, store, model)
    optimizer = build_optimizer(
        config.optimizer,
        config.regularizer,
        batch_size,
        decayed_tables(model),
        placement.axis,
        placement.sharded,
    )
    run = Run(config, store, source, model, optimizer, regularizer, placement)
    check_memory(run.like(), model, optimizer, regularizer, placement)
    return run


def _batches_of(samples: int, batch_size: int) -> int:
    """How many batches go into a call of so many samples."""
    return max(1, samples // batch_size)


def _shards(placement: Placement) -> Shards:
    return Shards(placement.count, placement.local)


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
            **compatibility.as_texts(config),
            "the run's folder": f"a last checkpoint of step {meta['step']}",
        }
    )
    compatibility.check_complete(config, workdir)
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
    compatibility.check_same_data(meta, Store(config.data.store), workdir)
    return open_run(config, trains=False)


def final_kind(run: Run, workdir: str | Path) -> Kind:
    """The checkpoint that a run is judged by: the best on validation, if any was chosen."""
    if run.config.data.fit == "train" and Checkpoints(workdir).latest("best") is not None:
        return "best"
    return "last"
