"""Exports a trained run: `python -m din_jax.export`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import polars as pl
from ml_collections import ConfigDict

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Kind
from din_jax.data.packing import Packer
from din_jax.data.schema import Schema
from din_jax.data.store import Store
from din_jax.data.store_writer import check_free
from din_jax.data.titles import Titles
from din_jax.data.transform import Transform
from din_jax.export import artifact
from din_jax.export.building import scoring_by
from din_jax.export.card import model_card
from din_jax.export.encoding import Encoder
from din_jax.export.padding import pad
from din_jax.export.probing import probe_request
from din_jax.training.trained import load_run

PLATFORMS = ("cpu", "cuda", "tpu")
_SCANNED = 1 << 20  # samples whose lengths are in memory at a time


def export_run(
    workdir: str | Path,
    out: str | Path,
    *,
    store: str | Path = "",
    checkpoint: Kind | None = None,
    platforms: Sequence[str] = PLATFORMS,
    license: str = "",
) -> dict[str, Any]:
    """Writes an artifact that scores without the run and its store (`din_jax.export.artifact`).

    Args:
      workdir, store, checkpoint: see `din_jax.training.trained.load_run`.
      out: the new folder.
      platforms: those that the exported function is compiled for, wherever it is exported.
      license: of the data, for the model card.

    Returns:
      The manifest.

    Raises:
      DinError: `out` exists, or the run can't be loaded; see `load_run`.
    """
    check_free(out)
    run, state = load_run(workdir, store=store, devices=1, checkpoint=checkpoint)
    config = run.config
    transform = Transform.of_store(run.store)
    schema = read_schema(run.store.schema, config)
    ages = run.source.packer.ages
    longest = _longest(run.store, schema, config.data.max_history)
    weights = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "tables": state.tables,
        "frequent": run.regularizer.frequent,
    }
    weights = jax.tree.map(np.asarray, weights)
    function = scoring_by(config, run.store.schema)
    # Longer histories than twice the longest one are not worth a padded length of their own.
    most_recent = 2 * max((longest[s.name] for s in schema.sequences), default=0)
    if config.data.max_history:
        most_recent = min(config.data.max_history, most_recent)
    manifest: dict[str, Any] = {
        "schema": schema.to_json(),
        "max_history": most_recent,
        "ages": ages,
        "longest": longest,
        "step": int(state.step),
        "metrics": _metrics(Path(workdir)),
        "config": compatibility.as_json(config),
        "origin": _summary(run.store.origin),
        "versions": compatibility.versions(),
        "platforms": list(platforms),
    }
    encoder = Encoder(transform, schema, most_recent, ages=ages)
    request = probe_request(run.store, schema)
    users, ads = _encoded(encoder, request)
    exported = jax.export.export(jax.jit(function), platforms=platforms)(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), weights),
        *symbolic(users, ads),
    )
    logits, activation = jax.jit(function)(weights, users, ads)
    manifest["activation_weights"] = sorted(activation)
    number = encoder.ads(request["candidates"]).size[""]
    probe = {"request": request, "logits": np.asarray(logits)[0, :number].tolist()}
    artifact.write(
        out,
        manifest,
        weights=weights,
        transform=transform,
        function=bytes(exported.serialize()),
        probe=probe,
        card=model_card(Path(out).name, manifest, request, license),
        titles=_titles(run.store, schema),
    )
    return manifest


def read_schema(schema: Schema, config: ConfigDict) -> Schema:
    """The inputs that the model of a config reads."""
    schema = schema.without(config.model.without)
    read = {f.name for f in schema.inputs(config.model.extra_fields)} | {*config.model.bias_fields}
    return dataclasses.replace(schema, fields=tuple(f for f in schema.fields if f.name in read))


def _titles(store: Store, schema: Schema) -> dict[str, pl.Series]:
    """The titles of the tables that a model reads, where the store has them."""
    read = dict.fromkeys(field.table for field in schema.fields_of_ids())
    found = {table: Titles.of_store(store, table).titles for table in read}
    return {table: titles for table, titles in found.items() if titles is not None}


def _encoded(encoder: Encoder, request: dict[str, Any]) -> tuple[Any, Any]:
    """A request's arrays, of one user."""
    user = encoder.user(
        request["user"], request["behaviors"], request["context"], request.get("time")
    )
    ads = encoder.ads(request["candidates"])
    return pad([user], [ads], encoder.schema, user.size, ads.size, 1)


def symbolic(users: Any, ads: Any) -> tuple[Any, Any]:
    """The shapes of users and ads with a symbol for each axis that may have any length.

    Args:
      users, ads: arrays of any lengths.
    """
    scope = jax.export.SymbolicScope()

    def shape(path: tuple[Any, ...], leaf: Any, *, ad: bool) -> jax.ShapeDtypeStruct:
        keys = [str(getattr(k, "key", k)) for k in path]
        if ad:
            axes = ["users", "candidates", f"n_{keys[0]}"]
        elif keys[0] == "fields":
            axes = ["users", f"n_{keys[1]}"]
        else:  # sequences, NAME, "mask" | "age" | "fields", FIELD, "values" | "segment_ids"
            nested = len(keys) == 5
            axes = ["users", f"n_{keys[1]}_{keys[3]}" if nested else f"n_{keys[1]}"]
        symbols = jax.export.symbolic_shape(", ".join(axes[: leaf.ndim]), scope=scope)
        return jax.ShapeDtypeStruct(symbols, leaf.dtype)

    def shapes(tree: Any, *, ad: bool) -> Any:
        return jax.tree_util.tree_map_with_path(lambda p, leaf: shape(p, leaf, ad=ad), tree)

    return shapes(users, ad=False), shapes(ads, ad=True)


def _longest(store: Store, schema: Schema, max_history: int) -> dict[str, int]:
    """{packed axis of the inputs: the most entries that a sample has}."""
    packer = Packer(store, max_history)
    longest = np.zeros(len(packer.axes), np.int64)
    for lengths in _lengths(packer, len(store)):
        longest = np.maximum(longest, lengths.max(axis=0, initial=0))
    read = {f.name for f in schema.fields}
    for sequence in schema.sequences:
        read |= {sequence.name, *(f"{sequence.name}.{f.name}" for f in sequence.fields)}
    return {n: k for n, k in zip(packer.axes, longest.tolist(), strict=True) if n in read}


def _lengths(packer: Packer, samples: int) -> Iterator[npt.NDArray[Any]]:
    for begin in range(0, samples, _SCANNED):
        yield packer.lengths(np.arange(begin, min(begin + _SCANNED, samples)))


def _metrics(workdir: Path) -> dict[str, Any]:
    """The test metrics that training has written last; {} if it has not."""
    metrics: dict[str, Any] = {}
    try:
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if entry.get("split") == "test":
                metrics = {k: v for k, v in entry.items() if k != "split"}
    except (OSError, ValueError):
        return {}
    return metrics


def _summary(origin: dict[str, Any]) -> dict[str, Any]:
    """What the store's origin says in a few lines."""
    names = ("preparation", "samples", "label rate", "files", "seed")
    return {name: origin[name] for name in names if name in origin}
