"""Saves and restores the best and the last state of a run, through Orbax, with checks.

Beside the state a checkpoint stores what is needed to verify it: the config, the schema, the
fingerprint of the training batches, the library versions, and a checksum of every array, because
Orbax restores a damaged array without an error.

Neither saving nor restoring makes a second copy of a large table: Orbax's compression is off
(embeddings hardly compress, and Orbax holds what it compresses in memory), and arrays are read in
chunks, each device reading only its own rows.

On disk a sharded table has its shape in memory, M blocks of ⌈K/M⌉ rows; a replicated table is
[K, D]. Both can be restored on any number of devices, and have the same checksum.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp

from din_jax.checkpoint import chunks
from din_jax.checkpoint.arrays import PART_BYTES, checksums, read_array
from din_jax.distributed.devices import Placement, is_sharded, one_device
from din_jax.errors import DinError
from din_jax.step.state import TrainState

Kind = Literal["best", "last"]
KINDS: tuple[Kind, ...] = ("last", "best")
_META_KEYS = {"config": dict, "schema": dict, "batches": dict, "checksums": dict, "best": object}
_CHECKSUM = "sum of (2i + 1) * bits modulo 2^64"  # name of the algorithm, see `checksums`
# Saves the first device's copy of a replicated array. By default Orbax saves a part from each
# device, but the copies on GPUs may differ in the last bits: the checksum would not match.
_ONE_COPY = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)

logging.getLogger("absl").setLevel(logging.WARNING)
chunks.divide_unevenly()


class Checkpoints:
    """The checkpoints of one run, one in WORKDIR/checkpoints/best and one in …/last.

    A new checkpoint is complete on disk before the old one is deleted. With several processes all
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
                max_to_keep=1, create=create, enable_async_checkpointing=False
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(
                    use_compression=False, type_handler_registry=_ONE_COPY
                ),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self, kind: Kind) -> int | None:
        """The step of the checkpoint, or None if there is none."""
        if not (self.folder / kind).is_dir():
            return None
        with self._manager(kind, create=False) as manager:
            step: int | None = manager.latest_step()
        return step

    def save(self, kind: Kind, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves a state, without its scratch, and `meta`, a JSON object with `describe`'s keys."""
        step = int(state.step)
        state = self.placement.of_all_processes(state.replace(scratch={}))
        with self._manager(kind, create=True) as manager:
            if manager.latest_step() == step:
                return
            meta = {**meta, "step": step, "checksum": _CHECKSUM, "checksums": checksums(state)}
            save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PART_BYTES), state)
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state, save_args=save_args),
                    meta=ocp.args.JsonSave(meta),
                ),
            )

    def meta(self, kind: Kind) -> dict[str, Any]:
        """Reads the checkpoint's metadata: `meta` as passed to `save`, step and checksums.

        Raises:
          DinError: there is no such checkpoint, or it can't be read.
        """
        return self._checked(kind, self._restored(kind, None)["meta"])

    def _checked(self, kind: Kind, meta: Any) -> dict[str, Any]:
        if not isinstance(meta, dict) or any(
            name not in meta or not isinstance(meta[name], expected)
            for name, expected in _META_KEYS.items()
        ):
            raise DinError(
                f"{self.folder / kind}: its metadata lacks keys that this din_jax writes, or they "
                f"have another type (expected {', '.join(_META_KEYS)}); it was not written by "
                "din_jax, or is damaged"
            )
        return meta

    def restore(self, kind: Kind, shapes: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores a state and its metadata, with a scratch of zeros.

        Args:
          kind: "best" or "last".
          shapes: the shapes and shardings to restore; see `din_jax.step.state.state_shapes`.

        Raises:
          DinError: there is no such checkpoint, it can't be read, its shapes differ, or the
            checksum of an array does.
        """
        restored = self._restored(kind, shapes.replace(scratch={}))
        state, meta = restored["state"], self._checked(kind, restored["meta"])
        scheme = meta.get("checksum", _CHECKSUM)  # the oldest checkpoints do not name it
        if scheme != _CHECKSUM:
            raise DinError(
                f"{self.folder / kind}: the checkpoint was made by another version of din_jax, "
                f"with another checksum ({scheme}, here {_CHECKSUM})"
            )
        saved = meta["checksums"]
        for name, checksum in checksums(state).items():
            if saved.get(name) != checksum:
                raise DinError(
                    f"{self.folder / kind}: the array {name} is damaged (its checksum differs "
                    "from the saved one); restore the folder from a copy or train again"
                )
        scratch = {
            name: self.placement.zeros(shape.shape[0], shape.dtype, sharded=is_sharded(shape))
            for name, shape in shapes.scratch.items()
        }
        return state.replace(scratch=scratch), meta

    def _restored(self, kind: Kind, shapes: TrainState | None) -> Any:
        step = self.latest(kind)
        if step is None:
            workdir = self.folder.parent
            problem = f"{workdir} has no {kind} checkpoint" if workdir.is_dir() else f"no {workdir}"
            raise DinError(
                f"{problem}; train first with `python train.py --config … --workdir {workdir}`"
            )
        with self._manager(kind, create=False) as manager:
            try:
                restored = manager.restore(
                    step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
                )
                if shapes is None:
                    return {"meta": restored["meta"]}
                folder = self.folder / kind / str(step) / "state"
                state = jax.tree_util.tree_map_with_path(
                    functools.partial(read_array, folder, self.placement), shapes
                )
                return {"state": state, "meta": restored["meta"]}
            except Exception as error:  # Orbax raises the exceptions of several libraries
                raise DinError(
                    f"{self.folder / kind}: the checkpoint of step {step} can't be read or does "
                    f"not fit ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                ) from error
