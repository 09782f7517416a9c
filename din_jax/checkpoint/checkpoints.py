"""Saves and restores the best and the last state of a run, through Orbax, with checks.

Beside the state a checkpoint stores what is needed to verify it: the config, the schema, the
fingerprint of the training batches, the library versions, a checksum of every array, because
Orbax restores a damaged array without an error, and a checksum of all this.

Neither saving nor restoring makes a second copy of a large table: Orbax's compression is off
(embeddings hardly compress, and Orbax holds what it compresses in memory), and arrays are read in
chunks, each device reading only its own rows.

On disk a sharded table has its shape in memory, M blocks of ⌈K/M⌉ rows; a replicated table is
[K, D]. Both can be restored on any number of devices, and have the same checksum.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from din_jax.checkpoint import chunks
from din_jax.checkpoint.arrays import (
    PART_BYTES,
    checksums,
    first_not_finite,
    read_array,
    stored_checksum,
)
from din_jax.data.files import json_checksum, sync, sync_tree
from din_jax.distributed import processes
from din_jax.distributed.devices import Placement, is_sharded, one_device
from din_jax.errors import Damaged, DinError, Diverged
from din_jax.step.state import TrainState

Kind = Literal["best", "last"]
KINDS: tuple[Kind, ...] = ("last", "best")
_UNFINISHED = ".orbax-checkpoint-tmp"  # the suffix of what Orbax clears away at the next save
_KEPT: dict[Kind, int] = {
    "last": 2,
    "best": 1,
}  # of the last the one before it too, if it is damaged
_META_KEYS = {"config": dict, "schema": dict, "batches": dict, "checksums": dict, "best": object}
_META_CHECKSUM = "meta_checksum"  # the key of its own checksum
_CHECKSUM = "sum of (2i + 1) * bits modulo 2^64"  # name of the algorithm, see `checksums`
_MEND = "restore the folder from a copy, or train again"
# Saves the first device's copy of a replicated array. By default Orbax saves a part from each
# device, but the copies on GPUs may differ in the last bits: the checksum would not match.
_ONE_COPY = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the exceptions that it raises
chunks.divide_unevenly()


class Checkpoints:
    """The checkpoints of one run: the best in WORKDIR/checkpoints/best, the last two in …/last.

    A new checkpoint is complete on disk before an old one is deleted. With several processes all
    must call each method, with the same shared folder.

    Args:
      workdir: the run's folder, created on the first save.
      placement: the devices of the states, by default the first.
    """

    def __init__(self, workdir: str | Path, placement: Placement | None = None):
        self.folder = Path(workdir).absolute() / "checkpoints"
        self.placement = placement or one_device()

    def _manager(self, kind: Kind, *, create: bool) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder / kind,
            options=ocp.CheckpointManagerOptions(
                create=create,
                cleanup_tmp_directories=create,  # of saves that were killed
                enable_async_checkpointing=False,
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(
                    use_compression=False, type_handler_registry=_ONE_COPY
                ),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def steps(self, kind: Kind) -> list[int]:
        """The steps of the checkpoints, the latest first."""
        if not (self.folder / kind).is_dir():
            return []
        with self._manager(kind, create=False) as manager:
            return sorted(manager.all_steps(), reverse=True)

    def latest(self, kind: Kind) -> int | None:
        """The step of the latest checkpoint, or None if there is none."""
        return next(iter(self.steps(kind)), None)

    def save(self, kind: Kind, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves a state, without its scratch, and `meta`, a JSON object with `describe`'s keys.

        Raises:
          Diverged: an array has NaN or an infinite value; the saved states stay as they are.
          DinError: the disk is full, or refuses it; the saved states stay as they are.
        """
        bad = first_not_finite(state)
        if processes.in_any(bad is not None):
            raise Diverged(
                f"the state after step {int(state.step):,} is not saved: "
                f"{bad or 'an array of another process'} has NaN or an infinite value"
            )
        step = int(state.step)
        state = self.placement.of_all_processes(state.replace(scratch={}))
        with self._manager(kind, create=True) as manager:
            if manager.latest_step() == step:
                return
            meta = {**meta, "step": step, "checksum": _CHECKSUM, "checksums": checksums(state)}
            meta = json.loads(json.dumps(meta))  # as it will be read
            meta[_META_CHECKSUM] = json_checksum(meta, _META_CHECKSUM)
            save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PART_BYTES), state)
            try:
                manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeSave(state, save_args=save_args),
                        meta=ocp.args.JsonSave(meta),
                    ),
                    force=True,
                )
            except Exception as error:  # of several libraries
                if processes.one_of_several():  # perhaps of another process that has failed
                    raise
                raise DinError(
                    f"{self.folder / kind}: the checkpoint of step {step} can't be written "
                    f"({_short(error)}); make room on the disk, or let the folder be writable. The "
                    "earlier checkpoints are as they were"
                ) from error
            if processes.is_first():  # Orbax leaves it to the operating system when to write
                sync_tree(self.folder / kind / str(step))
                sync(self.folder / kind)
            for old in sorted(manager.all_steps())[: -_KEPT[kind]]:
                self._delete(kind, old)

    def meta(self, kind: Kind, step: int | None = None) -> dict[str, Any]:
        """Reads a checkpoint's metadata: `meta` as passed to `save`, step and checksums.

        Args:
          kind: "best" or "last".
          step: of the checkpoint, by default the latest.

        Raises:
          DinError: there is no such checkpoint.
          Damaged: it can't be read, or is not what was saved.
        """
        step = self._existing(kind, step)
        folder = self.folder / kind
        with self._manager(kind, create=False) as manager:
            try:
                meta = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[
                    "meta"
                ]
            except Exception as error:  # Orbax raises the exceptions of several libraries
                raise _unreadable(f"{folder}: the metadata of step {step}", error) from error
        if not isinstance(meta, dict) or any(
            name not in meta or not isinstance(meta[name], expected)
            for name, expected in _META_KEYS.items()
        ):
            raise Damaged(
                f"{folder}: the metadata of step {step} lacks keys that this din_jax writes, or "
                f"they have another type (expected {', '.join(_META_KEYS)}); it was not written by "
                "din_jax, or is damaged"
            )
        found = json_checksum(meta, _META_CHECKSUM)
        if meta.get(_META_CHECKSUM, found) != found:  # those of version 0.2.0 have none
            raise Damaged(
                f"{folder}: the metadata of step {step} is damaged (its checksum is {found}, and "
                f"it says {meta[_META_CHECKSUM]}); {_MEND}"
            )
        return meta

    def any_meta(self) -> dict[str, Any]:
        """The metadata of the latest checkpoint of which it is whole: all are of one run.

        Raises:
          DinError: there is none.
        """
        damaged = None
        for kind in KINDS:
            for step in self.steps(kind):
                try:
                    return self.meta(kind, step)
                except Damaged as error:
                    damaged = damaged or error
        if damaged:
            raise damaged
        return self.meta("last")  # raises

    def restore(
        self, kind: Kind, shapes: TrainState, step: int | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores a state and its metadata, with a scratch of zeros.

        Args:
          kind, step: see `meta`.
          shapes: the shapes and shardings to restore; see `din_jax.step.state.state_shapes`.

        Raises:
          DinError: there is no such checkpoint, or another version of din_jax saved it.
          Damaged: it can't be read, its shapes differ, or a checksum does.
        """
        step = self._existing(kind, step)
        meta = self.meta(kind, step)
        self._check_scheme(kind, meta)
        folder = self.folder / kind
        try:
            state = jax.tree_util.tree_map_with_path(
                functools.partial(read_array, folder / str(step) / "state", self.placement),
                shapes.replace(scratch={}),
            )
        except Exception as error:  # of several libraries
            raise _unreadable(f"{folder}: the checkpoint of step {step}", error) from error
        for name, checksum in checksums(state).items():
            if meta["checksums"].get(name) != checksum:
                raise _damaged_array(folder, step, name)
        scratch = {
            name: self.placement.zeros(shape.shape[0], shape.dtype, sharded=is_sharded(shape))
            for name, shape in shapes.scratch.items()
        }
        return state.replace(scratch=scratch), meta

    def verify(self, kind: Kind, step: int) -> None:
        """Reads a checkpoint, without knowing its model.

        Raises:
          DinError: see `restore`.
        """
        meta = self.meta(kind, step)
        self._check_scheme(kind, meta)
        folder = self.folder / kind
        for name, checksum in meta["checksums"].items():
            try:
                found = stored_checksum(folder / str(step) / "state", name)
            except Exception as error:  # of several libraries
                what = f"{folder}: the array {name} of step {step}"
                raise _unreadable(what, error) from error
            if found != checksum:
                raise _damaged_array(folder, step, name)

    def _delete(self, kind: Kind, step: int) -> None:
        """Deletes a checkpoint: it is whole or gone, whenever the process is killed."""
        if processes.is_first():
            doomed = self.folder / kind / f"{step}{_UNFINISHED}"
            (self.folder / kind / str(step)).rename(doomed)
            shutil.rmtree(doomed)

    def set_aside(self, kind: Kind, step: int) -> Path:
        """Moves a damaged checkpoint out of the way of those to come; returns where it is."""
        to = self.folder / "damaged" / f"{kind}-{step}-{time.time_ns()}"
        if processes.is_first():
            to.parent.mkdir(exist_ok=True)
            (self.folder / kind / str(step)).rename(to)
        processes.wait_for_all(f"set aside {kind} {step}")
        return to

    def _existing(self, kind: Kind, step: int | None) -> int:
        if step is None:
            step = self.latest(kind)
        if step is None:
            workdir = self.folder.parent
            problem = f"{workdir} has no {kind} checkpoint" if workdir.is_dir() else f"no {workdir}"
            raise DinError(
                f"{problem}; train first with `python train.py --config … --workdir {workdir}`"
            )
        return step

    def _check_scheme(self, kind: Kind, meta: dict[str, Any]) -> None:
        scheme = meta.get("checksum", _CHECKSUM)  # the oldest checkpoints do not name it
        if scheme != _CHECKSUM:
            raise DinError(
                f"{self.folder / kind}: the checkpoint was made by another version of din_jax, "
                f"with another checksum ({scheme}, here {_CHECKSUM})"
            )


def _unreadable(what: str, error: Exception) -> Damaged:
    return Damaged(f"{what} can't be read or does not fit ({_short(error)}); {_MEND}")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _damaged_array(folder: Path, step: int, name: str) -> Damaged:
    return Damaged(
        f"{folder}: the array {name} is damaged (in the checkpoint of step {step} its checksum "
        f"differs from the saved one); {_MEND}"
    )
