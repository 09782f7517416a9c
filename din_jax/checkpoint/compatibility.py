"""What is saved beside a state, and whether a run may go on with it."""

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
