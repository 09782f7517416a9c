"""What is saved beside a state, and whether a run may continue from it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from din_jax.config import default_config
from din_jax.data.schema import Schema
from din_jax.data.source import BatchSource
from din_jax.data.store import Store
from din_jax.errors import DinError

_LIBRARIES = ("din_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


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


# Keys that checkpoints of older versions lack, with the value that these versions stand for.
_ADDED_KEYS = {"model.module": ""}
# Keys that name files. A checkpoint has their absolute paths too, to be read from anywhere.
_PATH_KEYS = ("data.store", "model.module")


def describe(config: ConfigDict, schema: Schema, source: BatchSource) -> dict[str, Any]:
    """What is saved beside every state of a run, as a JSON object."""
    flat = _flat(as_json(config))
    return {
        "config": as_json(config),
        "schema": schema.to_json(),
        "batches": source.fingerprint,
        "paths": {
            key: str(Path(flat[key]).absolute()) for key in _PATH_KEYS if Path(flat[key]).exists()
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def completed(config: ConfigDict, workdir: str | Path) -> ConfigDict:
    """A checkpoint's config, with the keys that were added to din_jax since it was written.

    Raises:
      DinError: it lacks other keys.
    """
    present = _flat(as_json(config)).keys()
    missing = sorted(_flat(as_json(default_config())).keys() - present - _ADDED_KEYS.keys())
    if missing:
        raise DinError(
            f"{workdir}: the checkpoint was made by another version of din_jax: its config lacks "
            + ", ".join(missing)
        )
    with config.unlocked():
        config.update_from_flattened_dict(
            {key: value for key, value in _ADDED_KEYS.items() if key not in present}
        )
    return config


def find_paths(config: ConfigDict, meta: dict[str, Any]) -> None:
    """Makes those paths of a config absolute that are not there, seen from the working directory.

    Args:
      config: of the checkpoint; changed in place.
      meta: what was saved beside its state.
    """
    flat = _flat(as_json(config))
    for key, absolute in meta.get("paths", {}).items():
        if not Path(flat[key]).exists() and Path(absolute).exists():
            config.update_from_flattened_dict({key: absolute})


def check_same_run(
    meta: dict[str, Any], config: ConfigDict, store: Store, workdir: str | Path
) -> None:
    """Raises `DinError` if a run in `workdir` can't go on with this config or this store."""
    before = _flat(as_json(completed(ConfigDict(meta["config"]), workdir)))
    after = _flat(as_json(config))
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
    """Raises `DinError` if a run's batches were length-balanced otherwise: it can't go on."""
    saved = meta["batches"]
    # "dealt" is the key's name in checkpoints of version 0.1.0; before that there was none.
    before = saved.get("balanced_batches", saved.get("dealt", 1))
    after = source.fingerprint["balanced_batches"]
    if before != after:
        raise DinError(
            f"{workdir}: the run was begun by another version of din_jax, which balanced lengths "
            f"over {before} batches; this one balances over {after}, and would train on some "
            "samples twice: go on with that version, or give another --workdir to begin anew"
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
    local = ("processes.", "data.store", "data.prepare", "model.module")
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
