"""The best and the last state of a run, on disk through Orbax, with checks.

A checkpoint carries what it needs to be trusted: the config, the schema, the fingerprint of the
batches it was trained on, the versions of the libraries, and a checksum of every array, since a
damaged array is restored without a word otherwise.

Neither saving nor restoring holds a second copy of a large table: Orbax is told not to compress
(embeddings hardly shrink, and what it compresses it holds in memory), and large arrays are read a
part at a time.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import zlib
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from ml_collections import ConfigDict

from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.pipeline import BatchSource
from din_jax.schema import Schema
from din_jax.step import TrainState
from din_jax.store import Store

Kind = Literal["best", "last"]
_LIBRARIES = ("din_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_META_KEYS = {"config": dict, "schema": dict, "batches": dict, "checksums": dict, "best": object}
_PART_BYTES = 1 << 22  # of a large array, written and read together
# Keys that may differ when a run goes on: they change neither the model nor the steps taken.
_MAY_CHANGE = ("train.epochs", "eval.batch_size", "data.store", "data.prepare")

logging.getLogger("absl").setLevel(logging.WARNING)


class Checkpoints:
    """The checkpoints of one run, WORKDIR/checkpoints/best and …/last; one of each is kept.

    A new one is whole on disk before the one it replaces goes.

    Args:
      workdir: the run's folder; made on the first save.
    """

    def __init__(self, workdir: str | Path):
        self.folder = Path(workdir).absolute() / "checkpoints"

    def _manager(self, kind: Kind, *, create: bool) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder / kind,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=1, create=create, enable_async_checkpointing=False
            ),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self, kind: Kind) -> int | None:
        """The step of the checkpoint, or None if there is none."""
        if not (self.folder / kind).is_dir():
            return None
        with self._manager(kind, create=False) as manager:
            return manager.latest_step()

    def save(self, kind: Kind, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves a state with `meta` (any JSON object) beside it; its scratch is left out."""
        step = int(state.step)
        state = state.replace(scratch={})
        with self._manager(kind, create=True) as manager:
            if manager.latest_step() == step:
                return
            meta = {**meta, "step": step, "checksums": _checksums(state)}
            parts = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_PART_BYTES), state)
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state, save_args=parts), meta=ocp.args.JsonSave(meta)
                ),
            )

    def meta(self, kind: Kind) -> dict[str, Any]:
        """What was saved beside the state.

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
                f"{self.folder / kind}: its description lacks keys that this din_jax writes; "
                "it was made by something else, or is damaged"
            )
        return meta

    def restore(self, kind: Kind, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and what was saved beside it.

        Args:
          kind: which.
          like: a state, or `jax.ShapeDtypeStruct`s of one: the shapes and types to expect.

        Raises:
          DinError: there is no such checkpoint, it can't be read, its shapes differ, or an array
            is not what was saved.
        """
        restored = self._restored(kind, like.replace(scratch={}))
        state, meta = restored["state"], self._checked(kind, restored["meta"])
        saved = meta["checksums"]
        for name, checksum in _checksums(state).items():
            if saved.get(name) != checksum:
                raise DinError(
                    f"{self.folder / kind}: the array {name} is damaged (its checksum differs "
                    "from the saved one); restore the folder from a copy or train again"
                )
        scratch = jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), like.scratch)
        return state.replace(scratch=scratch), meta

    def _restored(self, kind: Kind, like: TrainState | None) -> Any:
        step = self.latest(kind)
        if step is None:
            workdir = self.folder.parent
            found = f"{workdir} has no {kind} checkpoint" if workdir.is_dir() else f"no {workdir}"
            raise DinError(
                f"{found}; train first with `python train.py --config … --workdir {workdir}`"
            )
        items = {"meta": ocp.args.JsonRestore()}
        if like is not None:
            place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            small = jax.tree.map(lambda leaf: ocp.PLACEHOLDER if _is_large(leaf) else leaf, like)
            items["state"] = ocp.args.PyTreeRestore(
                small,
                restore_args=jax.tree.map(
                    lambda leaf: (
                        ocp.RestoreArgs()
                        if leaf is ocp.PLACEHOLDER
                        else ocp.ArrayRestoreArgs(sharding=place, dtype=leaf.dtype)
                    ),
                    small,
                ),
            )
        with self._manager(kind, create=False) as manager:
            try:
                restored = manager.restore(step, args=ocp.args.Composite(**items))
                if like is None:
                    return restored
                folder = self.folder / kind / str(step) / "state"
                state = jax.tree_util.tree_map_with_path(
                    lambda path, wanted, leaf: (
                        _read_large(folder, path, wanted)
                        if _is_large(wanted)
                        else _as_wanted(leaf, path, wanted)
                    ),
                    like,
                    restored["state"],
                )
                return {"state": state, "meta": restored["meta"]}
            except Exception as error:  # Orbax lets those of several libraries through
                raise DinError(
                    f"{self.folder / kind}: the checkpoint of step {step} can't be read or does "
                    f"not fit ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                ) from error


def _is_large(leaf: Any) -> bool:
    return leaf.ndim > 0 and leaf.size * leaf.dtype.itemsize > _PART_BYTES


def _read_large(folder: Path, path: tuple[Any, ...], like: Any) -> jax.Array:
    """An array that Orbax wrote, read into its place a part at a time."""
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    stored = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": folder.as_uri(), "path": f"{name}/"},
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        },
        open=True,
        read=True,
    ).result()
    _as_wanted(stored, path, like)
    write = jax.jit(
        lambda values, part, begin: jax.lax.dynamic_update_slice_in_dim(values, part, begin, 0),
        donate_argnums=0,
    )
    values = jnp.zeros(like.shape, like.dtype)
    rows = max(1, _PART_BYTES * len(values) // values.nbytes)
    for begin in range(0, len(values), rows):
        part = stored[begin : min(begin + rows, len(values))].read().result()
        values = jax.block_until_ready(write(values, part, begin))
    return values


def _as_wanted(found: Any, path: tuple[Any, ...], like: Any) -> Any:
    if tuple(found.shape) != tuple(like.shape):
        raise ValueError(
            f"{jax.tree_util.keystr(path)} has the shape {tuple(found.shape)}, expected "
            f"{tuple(like.shape)}"
        )
    return found


def describe(config: ConfigDict, schema: Schema, source: BatchSource) -> dict[str, Any]:
    """What is saved beside every state of a run."""
    return {
        "config": as_json(config),
        "schema": schema.to_json(),
        "batches": source.fingerprint,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def check_complete(config: ConfigDict, workdir: str | Path) -> None:
    """Raises `DinError` if a checkpoint's config lacks keys that this din_jax has."""
    missing = sorted(_flat(as_json(default_config())).keys() - _flat(as_json(config)).keys())
    if missing:
        raise DinError(
            f"{workdir}: the checkpoint was made by another version of din_jax: its config lacks "
            + ", ".join(missing)
        )


def check_same_run(
    meta: dict[str, Any], config: ConfigDict, store: Store, workdir: str | Path
) -> None:
    """Raises `DinError` if a run in `workdir` can't go on with this config or this store."""
    before, after = _flat(meta["config"]), _flat(as_json(config))
    changed = [
        f"config.{key}: {before.get(key)!r} then, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _MAY_CHANGE
    ]
    if changed:
        raise DinError(
            f"{workdir} holds a run with another config:\n  "
            + "\n  ".join(changed)
            + "\ngive the same flags to go on, or another --workdir to begin anew"
        )
    check_same_data(meta, store, workdir)


def check_same_data(meta: dict[str, Any], store: Store, workdir: str | Path) -> None:
    """Raises `DinError` if a checkpoint was trained on another store: its ids mean other things."""
    before, schema = Schema.from_json(meta["schema"]), store.schema
    if meta["batches"].get("store") == store.fingerprint:
        return
    if before == schema:
        raise DinError(
            f"{workdir}: the checkpoint was trained on another store than {store.path} (the same "
            "schema, other content); give the store that it was trained on"
        )
    parts = []
    for kind in ("tables", "fields", "sequences"):
        a, b = _names_of(getattr(before, kind)), _names_of(getattr(schema, kind))
        ours, theirs = ([n for n in a if n not in b], [n for n in b if n not in a])
        if ours or theirs:
            parts.append(
                f"{kind}: {', '.join(ours) or 'nothing'} in the checkpoint, "
                f"{', '.join(theirs) or 'nothing'} in the store"
            )
    raise DinError(
        f"{workdir}: the checkpoint is of another schema than the store:\n  "
        + "\n  ".join(parts or ["the same names, in another order or with other attributes"])
        + "\ngive the store that it was trained on"
    )


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A config as a JSON object (tuples become lists)."""
    return json.loads(config.to_json())


def _names_of(parts: Any) -> list[str]:
    return [f"{p.name}[{p.rows}]" if hasattr(p, "rows") else p.name for p in parts]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _checksums(state: TrainState) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        # Of a view: no copy of a table is made.
        jax.tree_util.keystr(
            path
        ): f"{zlib.crc32(np.asarray(leaf).reshape(-1).view(np.uint8).data):08x}"
        for path, leaf in leaves
    }
