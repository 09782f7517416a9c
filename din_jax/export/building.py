"""The scoring function of a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from din_jax.data.schema import Schema
from din_jax.export.scoring import scoring
from din_jax.models.registry import build_model


def scoring_by(config: ConfigDict, schema: Schema) -> Callable[..., Any]:
    """The scoring function of the model that a run's config describes, for a data set."""
    model_config = config.model.copy_and_resolve_references()
    model_config.attention.block = 0  # of training: it saves the backward pass's memory
    unknown = config.regularizer.name == "filter" and config.regularizer.rare == "unknown"
    return scoring(build_model(schema, model_config), unknown=unknown)
