"""Builds models by name, with one interface: `Model`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from din_jax.data.packing import Batch
from din_jax.data.schema import Schema
from din_jax.errors import DinError
from din_jax.models import base, deepfm, din, lr, pnn, released_code, wide_deep
from din_jax.nn.embedding import Lookup, TableSpec


class Model(NamedTuple):
    """A model, as used by the train and score steps.

    `module.apply({"params": …, "batch_stats": …}, tables, lookups(batch), batch, train=…)` returns
    logits [B, 2] and a dict of intermediate values. Tables are a separate argument and not Flax
    parameters, because they are sharded and updated by rows. They are either the full tables, or
    the rows of one batch, with lookups whose ids index these rows; the module works with both.

    Attributes:
      module: the Flax module.
      tables: {name: `TableSpec`}.
      lookups: batch → {table: {name: `Lookup`}}.
    """

    module: nn.Module
    tables: dict[str, TableSpec]
    lookups: Callable[[Batch], dict[str, dict[str, Lookup]]]


_FILES = {
    "lr": lr,
    "base": base,
    "wide_deep": wide_deep,
    "pnn": pnn,
    "deepfm": deepfm,
    "din": din,
}


def build_model(schema: Schema, config: Any, axis_name: str | None = None) -> Model:
    """Builds the model that `config.model` describes, for a data set.

    Args:
      schema: the data set's schema.
      config: `config.model`.
      axis_name: the devices' mapped axis, or None.

    Raises:
      DinError: the config does not fit the schema.
    """
    schema = schema.without(config.without)
    if not schema.inputs(config.extra_fields) and not schema.sequences and not schema.numbers:
        raise DinError("config.model.without leaves no input")
    file = _file(config)
    return Model(
        module=file.module(schema, config, axis_name),
        tables=file.tables(schema, config),
        lookups=lambda batch: file.lookups(batch, schema, config),
    )


def model_tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """The specifications of the tables of the model that `config.model` describes."""
    specs: dict[str, TableSpec] = _file(config).tables(schema.without(config.without), config)
    return specs


def notes(batches: Iterable[Batch], schema: Schema, config: Any) -> Iterable[str]:
    """The lines that a model file wants printed before training, from its `notes`, if it has one.

    Args:
      batches: batches of training samples, in random order.
      schema: the data set's schema.
      config: `config.model`.
    """
    file = _file(config)
    if not hasattr(file, "notes"):
        return ()
    lines: Iterable[str] = file.notes(batches, schema.without(config.without), config)
    return lines


def _file(config: Any) -> Any:
    """The model file that a config names: a Python module with `module`, `tables`, `lookups`."""
    if config.preset == "released_code":
        return released_code
    if config.name in _FILES:
        return _FILES[config.name]
    return _imported(config.module, Path.cwd())


@functools.cache
def _imported(module: str, folder: Path) -> Any:
    """Imports a model file: a Python file, relative to `folder`, or an importable module."""
    key = f"config.model.module={module!r}"
    path = folder / module
    try:
        if path.suffix == ".py":
            name = f"din_jax_model_{path.stem}"
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            file = importlib.util.module_from_spec(spec)
            sys.modules[name] = file  # dataclasses, as Flax modules are, look their module up
            spec.loader.exec_module(file)
        else:
            file = importlib.import_module(module)
    except Exception as error:  # whatever the file raises
        raise DinError(
            f"{key}: it can't be imported ({type(error).__name__}: {error}); give a path FILE.py "
            "or the name of an installed module"
        ) from error
    missing = [name for name in ("tables", "lookups", "module") if not hasattr(file, name)]
    if missing:
        raise DinError(
            f"{key}: a model file defines tables, lookups and module (docs/library.md); it lacks "
            + ", ".join(missing)
        )
    return file
