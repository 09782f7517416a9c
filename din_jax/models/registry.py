"""The models by name, behind one interface: `build`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    logits [B, 2] and a dict of what a reader may want to see. Tables live another life than the
    network's weights, so they are an argument of their own; the module does not know whether it
    sees whole tables or the rows of one batch with the lookups' ids renumbered.
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
    """What is to be said of a model on a data set before it is trained, a line each.

    Args:
      batches: of training samples in random order.
      schema: the data set's.
      config: `config.model`.
    """
    if _file(config) is not wide_deep:
        return ()
    return wide_deep.remarks(batches, schema.without(config.without), config)


def _file(config: Any) -> Any:
    if config.preset == "released_code":
        return released_code
    return _FILES[config.name]
