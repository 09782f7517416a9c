"""The metadata of a checkpoint, and checks whether a run can continue from it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from din_jax.config import default_config
from din_jax.data.schema import Schema
from din_jax.data.source import BatchSource
from din_jax.data.store import Store
from din_jax.errors import DinError

_LIBRARIES = ("din_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# Keys that may change when a run continues: they change neither the model nor steps. Of pretrained
# vectors the checksums are compared, and not where they are. The keys of processes. may change too.
_MAY_CHANGE = (
    "train.epochs",
    "train.patience",
    "train.checkpoint_every_s",
    "eval.batch_size",
    "eval.baselines",
    "data.store",
    "data.prepare",
    "data.verify",
    "devices",
    "placement",
    "model.attention.block",
    "model.pretrained",
)
# Keys of the model that may differ from those of the run whose weights a new run begins with: they
# say where weights begin, which rows are trained, or how what is computed is divided.
_NOT_OF_WEIGHTS = (
    "model.embedding_stddev",
    "model.embedding_init",
    "model.co_occurrence_stddev",
    "model.pretrained",
    "model.pretrained_trainable",
    "model.attention.bias_init",
    "model.attention.block",
    "model.dice.momentum",
    "model.dice.mean_init",
    "model.dice.variance_init",
    "model.dice.alpha_init",
    "model.prelu.alpha_init",
)
# Keys that checkpoints of older versions lack, with the value that reproduces these versions.
_ADDED_KEYS = {
    "data.verify": "once",
    "model.module": "",
    "model.embedding_init": "constant",
    "model.bias_fields": (),
    "model.co_occurrence_stddev": 0.0,
    "model.pretrained": "",
    "model.pretrained_trainable": True,
    "model.match_counts": False,
    "model.intensity": False,
    "model.attention.age": False,
    "model.attention.normalize": "none",
    "model.attention.bias_init": 0.0,
    "model.attention.position": False,
    "model.attention.match": False,
    "optimizer.table_rates": "",
    "optimizer.warmup_samples": 0,
    "regularizer.behavior_dropout": 0.0,
    "train.patience": 0,
    "train.ema_epochs": 0.0,
    "train.checkpoint_every_s": 0.0,
    "train.init_from": "",
    "eval.baselines": False,
}
# Keys that are paths. A checkpoint also stores them as absolute paths, so that it can be read from
# any working directory.
_PATH_KEYS = ("data.store", "model.module")


def describe(
    config: ConfigDict,
    schema: Schema,
    source: BatchSource,
    pretrained: Mapping[str, str] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The metadata that is saved with every state of a run, a JSON object.

    Args:
      config, schema, source: those of the run.
      pretrained: {table: checksum of the vectors that it began with}.
      origin: the checkpoint whose weights it began with.
    """
    flat = _flat(as_json(config))
    return {
        "config": as_json(config),
        "schema": schema.to_json(),
        "batches": source.fingerprint,
        "pretrained": dict(pretrained or {}),
        "origin": dict(origin) if origin else None,
        "paths": {
            key: str(Path(flat[key]).absolute())
            for key in _PATH_KEYS
            if flat[key] and Path(flat[key]).exists()
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a result depends on."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _LIBRARIES
    }


def completed(config: ConfigDict, workdir: str | Path) -> ConfigDict:
    """Adds to a checkpoint's config the keys that din_jax has introduced since it was written.

    Raises:
      DinError: the config lacks other keys.
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
    """Replaces a config's paths by the absolute ones that training used, where these still exist.

    A relative path would name another file in another working directory, without an error.

    Args:
      config: the checkpoint's config, modified in place.
      meta: the checkpoint's metadata.
    """
    for key, absolute in meta.get("paths", {}).items():
        if Path(absolute).exists():
            config.update_from_flattened_dict({key: absolute})


def check_same_run(
    meta: dict[str, Any],
    config: ConfigDict,
    store: Store,
    workdir: str | Path,
    pretrained: Mapping[str, str] | None = None,
) -> None:
    """Raises `DinError` if the run in `workdir` can't continue with this config or this store.

    Args:
      meta: its checkpoint's metadata.
      config, store, pretrained: those of the run that would continue it, see `describe`.
      workdir: its folder.
    """
    before, after = _configs(meta, config, workdir)
    changed = [
        f"config.{key}: {before.get(key)!r} then, {after.get(key)!r} now"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and key not in _MAY_CHANGE
        and not key.startswith("processes.")
    ]
    old, new = meta.get("pretrained", {}), pretrained or {}
    vectors = [
        f"config.model.pretrained: {table} began with {_vectors(old.get(table))}, now it has "
        + _vectors(new.get(table))
        for table in sorted(old.keys() | new.keys())
        if old.get(table) != new.get(table)
    ]
    if changed or vectors:
        other_model = vectors or any(line.startswith("config.model.") for line in changed)
        begin = "" if other_model else _begin_from(workdir)
        raise DinError(
            f"{workdir} holds a run with another config:\n  "
            + "\n  ".join([*changed, *vectors])
            + f"\nuse the same flags to continue it, or another --workdir to start a new run{begin}"
        )
    check_same_data(meta, store, workdir)


def _begin_from(workdir: str | Path) -> str:
    return (
        f"; with --config.train.init_from={workdir} the new run begins with the best weights of "
        "this one"
    )


def _vectors(checksum: str | None) -> str:
    return f"vectors of checksum {checksum}" if checksum else "none"


def check_same_model(
    meta: dict[str, Any], config: ConfigDict, store: Store, workdir: str | Path
) -> None:
    """Raises `DinError` if a new run can't begin with the weights of the run in `workdir`.

    Args:
      meta: the metadata of that run's checkpoint.
      config, store: those of the new run.
      workdir: that run's folder, `config.train.init_from`.
    """
    where = f"config.train.init_from={workdir}"
    before, after = _configs(meta, config, workdir)
    changed = [
        f"config.{key}: {before.get(key)!r} there, {after.get(key)!r} here"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and key.startswith("model.")
        and key not in _NOT_OF_WEIGHTS
    ]
    if changed:
        raise DinError(
            f"{where}: its weights are those of another model:\n  "
            + "\n  ".join(changed)
            + "\ngive the model's keys that it was trained with"
        )
    check_same_data(meta, store, where)


def _configs(
    meta: dict[str, Any], config: ConfigDict, workdir: str | Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys and values of a checkpoint's config and of another one."""
    before = completed(ConfigDict(meta["config"]), workdir)
    return _flat(as_json(before)), _flat(as_json(config))


def check_same_batches(meta: dict[str, Any], source: BatchSource, workdir: str | Path) -> None:
    """Raises `DinError` if the run's batches were length-balanced over another number of batches.

    Such a run can't continue: its order of samples differs.
    """
    saved = meta["batches"]
    # Checkpoints of version 0.1.0 call the key "dealt"; older ones have no such key.
    before = saved.get("balanced_batches", saved.get("dealt", 1))
    after = source.fingerprint["balanced_batches"]
    if before != after:
        raise DinError(
            f"{workdir}: the run was started by another version of din_jax, which balanced lengths "
            f"over {before} batches; this one balances over {after}, and would train on some "
            "samples twice: continue with that version, or use another --workdir to start a new run"
        )


def check_same_data(meta: dict[str, Any], store: Store, workdir: str | Path) -> None:
    """Raises `DinError` if a checkpoint was trained on another store: its ids differ in meaning."""
    before, schema = Schema.from_json(meta["schema"]), store.schema
    trained_on = meta["batches"].get("store")
    if trained_on == store.fingerprint or trained_on in store.like:
        return
    if before == schema:
        raise DinError(
            f"{workdir}: the checkpoint was trained on another store than {store.path} (the same "
            "schema, other content); give the store that it was trained on, or one that "
            "`prepare log --like` made with its ids"
        )
    differences = []
    for kind in ("tables", "fields", "sequences", "numbers"):
        old, new = _names_of(getattr(before, kind)), _names_of(getattr(schema, kind))
        only_old, only_new = ([n for n in old if n not in new], [n for n in new if n not in old])
        if only_old or only_new:
            differences.append(
                f"{kind}: {', '.join(only_old) or 'nothing'} in the checkpoint, "
                f"{', '.join(only_new) or 'nothing'} in the store"
            )
    raise DinError(
        f"{workdir}: the checkpoint is of another schema than the store:\n  "
        + "\n  ".join(differences or ["the same names, in another order or with other attributes"])
        + "\ngive the store that it was trained on"
    )


def as_json(config: ConfigDict) -> dict[str, Any]:
    """Converts a config to a JSON object (tuples become lists)."""
    converted: dict[str, Any] = json.loads(config.to_json())
    return converted


def as_texts(config: ConfigDict) -> dict[str, str]:
    """A config's keys and values as text, without those that may differ between processes."""
    local = ("processes.", "data.store", "data.prepare", "data.verify", "model.module")
    return {
        f"config.{key}": repr(value)
        for key, value in _flat(as_json(config)).items()
        if not key.startswith(local)
    }


def _names_of(parts: Any) -> list[str]:
    return [f"{p.name}[{p.rows}]" if hasattr(p, "rows") else p.name for p in parts]


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to {"outer.inner": value}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
