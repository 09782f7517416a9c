"""Assembles the run that a config describes, from the store to the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from ml_collections import ConfigDict

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints, Kind
from din_jax.config import check
from din_jax.data.co_occurrence import co_occurrence_vectors
from din_jax.data.files import json_checksum
from din_jax.data.packing import Packer
from din_jax.data.pretrained import Pretrained, pretrained_files, read_pretrained
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import SPLITS, Store
from din_jax.distributed import processes
from din_jax.distributed.cpu import keep_freed_memory
from din_jax.distributed.devices import Placement, choose
from din_jax.errors import DinError
from din_jax.metrics import WEIGHTED
from din_jax.models.features import reads_ages
from din_jax.models.registry import Model, build_model, model_tables
from din_jax.optim.build import build_optimizer
from din_jax.optim.catch_up import CatchUp
from din_jax.optim.learning_rate import table_rates
from din_jax.optim.regularizer import Regularizer, build_regularizer, decayed_tables
from din_jax.step.pretrained import write_pretrained
from din_jax.step.score import score_steps
from din_jax.step.settle import settle
from din_jax.step.state import Average, StateToState, TrainState, init_state, state_shapes
from din_jax.step.train import TrainStep, TrainSteps, train_step, train_steps
from din_jax.training.evaluation import Evaluator
from din_jax.training.memory import check_memory

# Samples per call: with small batches one call takes several steps. In training it is lower, since
# a signal to stop waits for the call.
_TRAINED_PER_CALL = 256
_SCORED_PER_CALL = 2048


class Run(NamedTuple):
    """The objects that training and scoring with one config need, assembled by `open_run`.

    Attributes:
      config: see `din_jax.config`.
      store: the data set.
      source: the training batches, in order.
      model, optimizer, regularizer: the arguments of the steps.
      placement: the devices, and the sharding of the tables.
    """

    config: ConfigDict
    store: Store
    source: BatchSource
    model: Model
    optimizer: optax.GradientTransformationExtraArgs | CatchUp
    regularizer: Regularizer
    placement: Placement

    def init(self, pretrained: Mapping[str, Pretrained] | None = None) -> TrainState:
        """Makes the initial state, with the vectors or weights of another run that are asked for.

        Args:
          pretrained: what `pretrained` returned, if it has been called; otherwise it is.

        Raises:
          DinError: `config.train.init_from` has no checkpoint, or one of another model or store; or
            see `pretrained`.
        """
        pretrained = self.pretrained() if pretrained is None else pretrained
        weights = self._weights_of(self.config.train.init_from)
        vectors = {} if weights else self._co_occurrence()
        vectors |= {name: (given.rows, given.vectors) for name, given in pretrained.items()}
        state = init_state(
            self.model,
            self.optimizer,
            self.source[0],
            self.config.seed,
            lazy=bool(self.config.optimizer.lazy),
            averages=bool(self.config.train.ema_epochs),
            fixed=self._fixed_tables(),
            placement=self.placement,
        ).replace(**weights)
        return write_pretrained(state, vectors, self.placement)

    def pretrained(self) -> dict[str, Pretrained]:
        """Reads the vectors of `config.model.pretrained`, {table: vectors}.

        Raises:
          DinError: see `din_jax.data.pretrained.read_pretrained`.
        """
        dims = {name: spec.dim for name, spec in self.model.tables.items()}
        return read_pretrained(self.config.model.pretrained, self.store, dims)

    def _co_occurrence(self) -> dict[str, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        """The rows and vectors by co-occurrence that tables begin with, but for those of files."""
        stddev = self.config.model.co_occurrence_stddev
        if not stddev:
            return {}
        of_behaviors = {
            field.table
            for sequence in self.store.schema.sequences
            for field in sequence.fields
            if not field.multi_hot
        }
        tables = of_behaviors & self.model.tables.keys()
        tables -= pretrained_files(self.config.model.pretrained, self.model.tables).keys()
        packer = Packer(self.store, 0)  # histories as a whole, however many a sample has

        def compute() -> dict[str, npt.NDArray[Any]]:
            arrays: dict[str, npt.NDArray[Any]] = {}
            for name in sorted(tables):
                rows, vectors = co_occurrence_vectors(
                    packer, self.config.data.fit, name, self.model.tables[name].dim
                )
                if len(rows):
                    arrays |= {f"{name}/rows": rows, f"{name}/vectors": stddev * vectors}
            return arrays

        # All processes begin with equal bits: they may run on unequal processors.
        arrays = processes.of_first(compute)
        names = [name for name in sorted(tables) if f"{name}/rows" in arrays]
        if names and processes.is_first():
            print(f"vectors by co-occurrence in the training histories: {', '.join(names)}")
        return {name: (arrays[f"{name}/rows"], arrays[f"{name}/vectors"]) for name in names}

    def _fixed_tables(self) -> list[str]:
        """The tables with rows that keep their pretrained vectors."""
        if self.config.model.pretrained_trainable:
            return []
        return [*pretrained_files(self.config.model.pretrained, self.model.tables)]

    def origin(self) -> dict[str, Any] | None:
        """The checkpoint whose weights a new run begins with (`config.train.init_from`), if any."""
        if not self.config.train.init_from:
            return None
        kind, meta = self._best_of(self.config.train.init_from)
        return {
            "workdir": str(Path(self.config.train.init_from).absolute()),
            "checkpoint": kind,
            "step": meta["step"],
            "checksum": json_checksum(meta["checksums"]),
        }

    def _best_of(self, workdir: str) -> tuple[Kind, dict[str, Any]]:
        """The best checkpoint of a run and its metadata; the last after training on validation."""
        checkpoints = self.checkpoints(workdir)
        kind: Kind = "last" if checkpoints.latest("best") is None else "best"
        return kind, checkpoints.meta(kind)

    def _weights_of(self, workdir: str) -> dict[str, Any]:
        """The best weights of the run in `workdir`, by attributes of a state; none if it is ""."""
        if not workdir:
            return {}
        kind, meta = self._best_of(workdir)
        compatibility.check_same_model(meta, self.config, self.store, workdir)
        config = compatibility.completed(ConfigDict(meta["config"]), workdir)
        # That run, on these devices: another optimizer has another state, and settles its own rows.
        other = self._replace(
            config=config, optimizer=_optimizer(config, self.model, self.placement)
        )
        state = other.restore(workdir, kind)
        if processes.is_first():
            print(f"begins with the {kind} weights of {workdir}, of its step {int(state.step):,}")
        return {name: getattr(state, name) for name in ("params", "batch_stats", "tables")}

    def state_shapes(self) -> TrainState:
        """The shapes, dtypes and shardings of a state, without making one."""
        return state_shapes(
            self.model,
            self.optimizer,
            self.source[0],
            lazy=bool(self.config.optimizer.lazy),
            averages=bool(self.config.train.ema_epochs),
            fixed=self._fixed_tables(),
            placement=self.placement,
        )

    def checkpoints(self, workdir: str | Path) -> Checkpoints:
        """The run's checkpoints in `workdir`."""
        return Checkpoints(workdir, self.placement)

    def restore(self, workdir: str | Path, kind: Kind) -> TrainState:
        """Restores a saved state to score with: its weights are those that are scored."""
        state, _ = self.checkpoints(workdir).restore(kind, self.state_shapes())
        return self.settle()(state).scored()

    def step(self) -> TrainStep:
        """Makes the train step on one batch; see `din_jax.step.train.train_step`."""
        return train_step(self.model, self.optimizer, self.regularizer, self.placement)

    def steps(self) -> TrainSteps:
        """Makes the train steps on up to `source.steps_per_call` batches per call."""
        return train_steps(
            self.model,
            self.optimizer,
            self.regularizer,
            self.placement,
            steps_per_call=self.source.steps_per_call,
        )

    def settle(self) -> StateToState:
        """Makes a function state → state in which no row is behind; donates the state.

        See `din_jax.step.settle.settle`.
        """
        return settle(self.optimizer, self.placement)

    def evaluator(
        self, split: str, store: Store | None = None, *, after: Evaluator | None = None
    ) -> Evaluator:
        """Makes the evaluator of a split of the store.

        Args:
          split: "train", "validation" or "test".
          store: another store with the run's inputs.
          after: an evaluator whose compiled programs this one uses where it can.

        Raises:
          DinError: the store has no such split.
        """
        store = store or self.store
        batch_size = self.placement.block(self.config.eval.batch_size) * self.placement.count
        steps_per_call = 1
        if after is not None:
            steps_per_call = after.source.steps_per_call
        elif self.placement.axis is None:
            batches = -(-len(store.split(split)) // batch_size)
            maximum = max(1, min(_SCORED_PER_CALL // batch_size, batches))
            steps_per_call = 1 << (maximum.bit_length() - 1)  # a power of two: see `score_steps`
        score = after.score if after is not None else None
        return Evaluator(
            score
            or score_steps(
                self.model, self.regularizer, self.placement, steps_per_call=steps_per_call
            ),
            store,
            split,
            batch_size=batch_size,
            max_history=self.config.data.max_history,
            ages=_ages(store, self.config),
            shards=_shards(self.placement),
            steps_per_call=steps_per_call,
            buckets=after.source.buckets if after is not None else None,
        )

    def probabilities(self, state: TrainState, split: str = "test") -> npt.NDArray[np.float64]:
        """Computes the click probabilities of a split, float64 [N], in the store's order.

        Raises:
          DinError: the store has no such split.
          Diverged: a probability is NaN or infinite.
        """
        averages = isinstance(state.average, Average) and int(state.average.count) > 0
        if isinstance(self.optimizer, CatchUp) and not averages:
            # Settles a copy: the caller's state is not donated.
            state = self.settle()(jax.tree.map(jnp.copy, state))
        return self.evaluator(split).probabilities(state.scored())


def open_run(config: ConfigDict, *, trains: bool = True) -> Run:
    """Assembles a run.

    Checks the config, connects to the other processes, opens the store, and builds the model, the
    optimizer and the regulariser. From then on the process keeps freed memory
    (`din_jax.distributed.cpu`).

    Args:
      config: see `din_jax.config`.
      trains: whether the run trains. For scoring only, the training batch size need not be a
        multiple of the number of devices, and error messages about devices name eval.py's flag.

    Raises:
      DinError: the config can't be used, the store can't be opened, or the tables don't fit in the
        devices' memory.
    """
    check(config)
    keep_freed_memory()
    processes.connect(config.processes)
    store = _open_store(config)
    _check_weighted(config.train.select, store)
    placement = choose(
        config.devices,
        config.placement,
        model_tables(store.schema, config.model),
        flag="config.devices" if trains else "--devices",
    )
    batch_size = config.train.batch_size
    fit = config.data.fit
    if not trains and not store.split(fit):  # a store to score: any split has the shapes
        fit = next((name for name in SPLITS if store.split(name)), fit)
    source = BatchSource(
        store,
        fit,
        batch_size if trains else placement.block(batch_size) * placement.count,
        max_history=config.data.max_history,
        ages=_ages(store, config),
        seed=config.seed,
        epochs=config.train.epochs,
        shards=_shards(placement),
        steps_per_call=max(1, _TRAINED_PER_CALL // batch_size),
    )
    model = build_model(store.schema, config.model, placement.axis)
    regularizer = build_regularizer(config, store, model)
    optimizer = _optimizer(config, model, placement)
    run = Run(config, store, source, model, optimizer, regularizer, placement)
    check_memory(run.state_shapes(), model, optimizer, regularizer, placement)
    return run


def _optimizer(
    config: ConfigDict, model: Model, placement: Placement
) -> optax.GradientTransformationExtraArgs | CatchUp:
    return build_optimizer(
        config.optimizer,
        config.regularizer,
        config.train.batch_size,
        decayed_tables(model),
        placement.axis,
        placement.sharded,
        table_rates(config.optimizer.table_rates, model.tables),
    )


def _open_store(config: ConfigDict) -> Store:
    """Opens the store of a config, after preparing the embedded data set if the config asks."""
    path = Path(config.data.store)
    if config.data.prepare == config.data.store:
        if processes.is_first() and not path.exists():
            from din_jax.prepare import planted  # imports Polars, which training does not need

            origin = planted.prepare(path)
            print(f"made the embedded data set {path}: {origin['samples']:,} samples")
        processes.wait_for_all("embedded data set")  # also if this process sees it already
    return Store(path, verify=config.data.verify)


def _check_weighted(select: str, store: Store) -> None:
    """Raises DinError if `train.select` needs weights that the store does not have."""
    if select.startswith(WEIGHTED) and not store.schema.weighted:
        raise DinError(
            f"config.train.select={select!r}: {store.path} has no sample weights (samples/weight, "
            f"docs/store.md); use {select.removeprefix(WEIGHTED)!r}, or prepare it with weights"
        )


def _ages(store: Store, config: ConfigDict) -> bool:
    """Whether batches carry the ages of behaviours, for DIN's activation unit or your own model."""
    uses_them = config.model.name == "din" or bool(config.model.module)
    return uses_them and reads_ages(store.schema, config.model)


def _shards(placement: Placement) -> Shards:
    return Shards(placement.count, placement.local)
