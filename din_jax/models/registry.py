"""The models by name, behind one interface: `build`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
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
    """A model as the train and score steps take it.

    `module.apply({"params": …, "batch_stats": …}, tables, lookups(batch), batch, train=…)` returns
    logits [B, 2] and a dict of intermediate values. Tables are an argument beside the network's
    weights, since they are sharded and updated row by row; the module does not know whether it is
    given whole tables or the rows of one batch with the lookups' ids renumbered.

    Attributes:
      module: the Flax module.
      tables: {name: `TableSpec`} of the tables that it looks up in.
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
    """The model that `config.model` describes, for a data set.

    Args:
      schema: the data set's.
      config: `config.model`.
      axis_name: mapped axis of the devices, or None.

    Raises:
      DinError: the config does not fit the schema.
    """
    schema = schema.without(config.without)
    if not schema.inputs(config.extra_fields) and not schema.sequences:
        raise DinError("config.model.without leaves no input")
    file = _file(config)
    return Model(
        module=file.module(schema, config, axis_name),
        tables=file.tables(schema, config),
        lookups=lambda batch: file.lookups(batch, schema, config),
    )


def model_tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """The tables of the model that `config.model` describes."""
    return _file(config).tables(schema.without(config.without), config)


def notes(batches: Iterable[Batch], schema: Schema, config: Any) -> Iterable[str]:
    """What a model file has to say of a data set before training, a line each.

    Args:
      batches: of training samples in random order.
      schema: the data set's.
      config: `config.model`.
    """
    file = _file(config)
    if not hasattr(file, "notes"):
        return ()
    return file.notes(batches, schema.without(config.without), config)


def _file(config: Any) -> Any:
    """The model file that a config names: a module with `module`, `tables` and `lookups`."""
    if config.preset == "released_code":
        return released_code
    if config.name in _FILES:
        return _FILES[config.name]
    return _imported(config.module)


@functools.cache
def _imported(module: str) -> Any:
    """The model file `module`: a path of a Python file, or the name of an importable module."""
    key = f"config.model.module={module!r}"
    path = Path(module)
    try:
        if path.suffix == ".py":
            spec = importlib.util.spec_from_file_location(f"din_jax_model_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            file = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(file)
        else:
            file = importlib.import_module(module)
    except (ImportError, OSError, SyntaxError) as error:
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
