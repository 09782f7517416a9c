"""The best and the last state of a run, on disk through Orbax, with checks.

A checkpoint carries what it needs to be trusted: the config, the schema, the fingerprint of the
batches it was trained on, the versions of the libraries, and a checksum of every array, since a
damaged array is restored without a word otherwise.

Neither saving nor restoring holds a second copy of a large table: Orbax is told not to compress
(embeddings hardly shrink, and what it compresses it holds in memory), and arrays are read a part at
a time, each device's rows for itself.

On disk a sharded table is as it is in memory, M blocks of ⌈K/M⌉ rows; a replicated one is [K, D].
Either is restored on any number of devices, and a checksum does not depend on it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from ml_collections import ConfigDict

from din_jax.config import default_config
from din_jax.devices import Placement, is_sharded, one_device
from din_jax.errors import DinError
from din_jax.pipeline import BatchSource
from din_jax.processes import summed_over_processes
from din_jax.schema import Schema
from din_jax.step import TrainState
from din_jax.store import Store

Kind = Literal["best", "last"]
_LIBRARIES = ("din_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_META_KEYS = {"config": dict, "schema": dict, "batches": dict, "checksums": dict, "best": object}
_CHECKSUM = "sum of (2i + 1) * bits modulo 2^64"  # see `_checksums`; another sum, another name
_PART_BYTES = 1 << 22  # of a large array, written and read together
# Keys that may differ when a run goes on: they change neither the model nor the steps taken.
_MAY_CHANGE = (
    "train.epochs",
    "eval.batch_size",
    "data.store",
    "data.prepare",
    "devices",
    "placement",
    "model.attention.block",
    "processes.",
)

# Of what devices have alike that of the first is saved. Orbax would take a part from each, and of a
# replicated table a GPU's copies may differ in the last bits: no copy, and not what is summed up.
_ONE_COPY = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False))
)

logging.getLogger("absl").setLevel(logging.WARNING)


class Checkpoints:
    """The checkpoints of one run, WORKDIR/checkpoints/best and …/last; one of each is kept.

    A new one is whole on disk before the one it replaces goes.

    Several processes save and restore together, in a folder that all of them see.

    Args:
      workdir: the run's folder; made on the first save.
      placement: the devices of the states, by default the first alone.
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
            return manager.latest_step()

    def save(self, kind: Kind, state: TrainState, meta: dict[str, Any]) -> None:
        """Saves a state with `meta` (any JSON object) beside it; its scratch is left out."""
        step = int(state.step)
        state = self.placement.of_all_processes(state.replace(scratch={}))
        with self._manager(kind, create=True) as manager:
            if manager.latest_step() == step:
                return
            meta = {**meta, "step": step, "checksum": _CHECKSUM, "checksums": _checksums(state)}
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
          like: what to expect and where to lay it; see `din_jax.step.state_shapes`.

        Raises:
          DinError: there is no such checkpoint, it can't be read, its shapes differ, or an array
            is not what was saved.
        """
        restored = self._restored(kind, like.replace(scratch={}))
        state, meta = restored["state"], self._checked(kind, restored["meta"])
        scheme = meta.get("checksum", _CHECKSUM)  # not named in those made before it was
        if scheme != _CHECKSUM:
            raise DinError(
                f"{self.folder / kind}: the checkpoint was made by another version of din_jax, "
                f"with another checksum ({scheme}, here {_CHECKSUM})"
            )
        saved = meta["checksums"]
        for name, checksum in _checksums(state).items():
            if saved.get(name) != checksum:
                raise DinError(
                    f"{self.folder / kind}: the array {name} is damaged (its checksum differs "
                    "from the saved one); restore the folder from a copy or train again"
                )
        scratch = {
            name: self.placement.zeros(of.shape[0], of.dtype, sharded=is_sharded(of))
            for name, of in like.scratch.items()
        }
        return state.replace(scratch=scratch), meta

    def _restored(self, kind: Kind, like: TrainState | None) -> Any:
        step = self.latest(kind)
        if step is None:
            workdir = self.folder.parent
            found = f"{workdir} has no {kind} checkpoint" if workdir.is_dir() else f"no {workdir}"
            raise DinError(
                f"{found}; train first with `python train.py --config … --workdir {workdir}`"
            )
        with self._manager(kind, create=False) as manager:
            try:
                restored = manager.restore(
                    step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
                )
                if like is None:
                    return {"meta": restored["meta"]}
                folder = self.folder / kind / str(step) / "state"
                state = jax.tree_util.tree_map_with_path(
                    functools.partial(_read, folder, self.placement), like
                )
                return {"state": state, "meta": restored["meta"]}
            except Exception as error:  # Orbax lets those of several libraries through
                raise DinError(
                    f"{self.folder / kind}: the checkpoint of step {step} can't be read or does "
                    f"not fit ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
                ) from error


def _read(folder: Path, placement: Placement, path: tuple[Any, ...], like: Any) -> jax.Array:
    """An array that Orbax wrote, read into its place on this process' devices."""
    stored = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {
                "driver": "ocdbt",
                "base": folder.as_uri(),
                "path": jax.tree_util.keystr(path, simple=True, separator=".") + "/",
            },
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        },
        open=True,
        read=True,
    ).result()
    blocks = len(stored.shape) - len(like.shape)  # 1: it was sharded, and has a device axis
    expected = tuple(like.shape)
    if blocks:
        expected = (stored.shape[0], -(-expected[0] // stored.shape[0]), *expected[1:])
    if tuple(stored.shape) != expected:
        raise ValueError(
            f"{jax.tree_util.keystr(path)} has the shape {tuple(stored.shape)}, expected {expected}"
        )

    def rows(begin: int, end: int) -> np.ndarray:
        if not blocks:
            return stored[begin:end].read().result()
        size = stored.shape[1]
        parts = [
            stored[m, max(begin - m * size, 0) : min(end - m * size, size)].read().result()
            for m in range(begin // size, -(-end // size))
        ]
        return np.concatenate(parts)

    if not like.shape:
        return placement.put(stored.read().result())
    if is_sharded(like):
        size = placement.block(like.shape[0])
        return placement.assemble(
            (placement.count, size, *like.shape[1:]),
            lambda m: _filled(
                rows, m * size, size, like, placement.devices[m], with_device_axis=True
            ),
            sharded=True,
        )
    device = placement.devices[placement.local[0]]
    first = _filled(rows, 0, like.shape[0], like, device)
    if placement.axis is None:
        return first
    return placement.assemble(like.shape, lambda _: first, sharded=False)


def _filled(
    read: Callable[[int, int], np.ndarray],
    begin: int,
    count: int,
    like: Any,
    device: Any,
    *,
    with_device_axis: bool = False,
) -> jax.Array:
    """`count` rows from `begin` on, on a device, read a part at a time; zeros past the last row."""
    end = min(begin + count, like.shape[0])
    row_bytes = math.prod(like.shape[1:]) * like.dtype.itemsize
    some = max(1, _PART_BYTES // max(row_bytes, 1))
    lead = (1,) * with_device_axis
    if count == end - begin <= some:
        part = read(begin, end)
        return jax.device_put(part.reshape(lead + part.shape), device)
    values = jnp.zeros((*lead, count, *like.shape[1:]), like.dtype, device=device)
    for at in range(begin, end, some):
        part = read(at, min(at + some, end))
        part = part.reshape(lead + part.shape)
        values = jax.block_until_ready(_write(values, part, at - begin, len(lead)))
    return values


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def _write(values: jax.Array, part: jax.Array, at: jax.Array, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(values, part, at, axis)


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
        if before.get(key) != after.get(key) and not key.startswith(_MAY_CHANGE)
    ]
    if changed:
        raise DinError(
            f"{workdir} holds a run with another config:\n  "
            + "\n  ".join(changed)
            + "\ngive the same flags to go on, or another --workdir to begin anew"
        )
    check_same_data(meta, store, workdir)


def check_same_batches(meta: dict[str, Any], source: BatchSource, workdir: str | Path) -> None:
    """Raises `DinError` if a run's batches were dealt their samples otherwise: it can't go on."""
    before, after = (batches.get("dealt", 1) for batches in (meta["batches"], source.fingerprint))
    if before != after:
        raise DinError(
            f"{workdir}: the run was begun by another version of din_jax, which dealt samples "
            f"among {before} batches; this one deals them among {after}, and would train on some "
            "twice: go on with that version, or give another --workdir to begin anew"
        )


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


def as_texts(config: ConfigDict) -> dict[str, str]:
    """A config's keys and values, without those that say where something is."""
    local = ("processes.", "data.store", "data.prepare")
    return {
        f"config.{key}": repr(value)
        for key, value in _flat(as_json(config)).items()
        if not key.startswith(local)
    }


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
    """Of each array, the same however it lies: Σ (2i + 1)·b_i modulo 2⁶⁴.

    b_i are the bits of its i-th element, [K, …] in C order. Zeros, the padding of a sharded table,
    add nothing, and no single bit can change without changing the sum.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    sums = np.array([_checksum(leaf) for _, leaf in leaves], np.uint64)
    apart = np.array([is_sharded(leaf) for _, leaf in leaves])
    if apart.any():
        sums[apart] = summed_over_processes(sums[apart])
    return {name: f"{total:016x}" for name, total in zip(names, sums.tolist(), strict=True)}


def _checksum(leaf: jax.Array) -> int:
    """The part of a checksum that lies on this process' devices."""
    shards = leaf.addressable_shards
    if not is_sharded(leaf):
        return _weighted_bits(np.asarray(shards[0].data), 0)
    size = math.prod(leaf.shape[1:])
    parts = (_weighted_bits(np.asarray(s.data), s.index[0].start * size) for s in shards)
    return sum(parts) % 2**64


def _weighted_bits(values: np.ndarray, begin: int) -> int:
    bits = values.reshape(-1).view(f"u{values.dtype.itemsize}")  # a view: no copy of a table
    total = 0
    for at in range(0, len(bits), 1 << 20):
        part = bits[at : at + (1 << 20)].astype(np.uint64)
        weights = np.arange(begin + at, begin + at + len(part), dtype=np.uint64) * 2 + 1
        total += int(np.dot(part, weights))
    return total % 2**64
