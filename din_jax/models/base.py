"""Embedding&MLP, the paper's base model (section 4.2).

Each one-hot or multi-hot field becomes a vector, and each behaviour sequence becomes one vector by
pooling. All vectors are concatenated and fed to an MLP with a 2-unit output layer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.data.packing import Batch, Packed
from din_jax.data.schema import Schema
from din_jax.models.features import (
    ITEM_BIAS,
    Features,
    Options,
    bias_table,
    embed_and_pool,
    lookups,
    options,
    tables,
)
from din_jax.nn.embedding import Lookups, Tables, lookup
from din_jax.nn.mlp import MLP
from din_jax.nn.pooling import pool_packed

__all__ = ["BaseModel", "Head", "lookups", "module", "tables"]


class Head(nn.Module):
    """Concatenates the features and one interest vector per sequence, and applies the MLP.

    A number is two of its inputs, see `number_inputs`; they follow the context.
    """

    options: Options

    @nn.compact
    def __call__(
        self,
        features: Features,
        interests: dict[str, jax.Array],
        tables: Tables,
        lookups: Lookups,
        batch: Batch,
        *,
        train: bool,
        products: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the logits [B, 2] of "no click" and "click".

        `products` [B, P], if given, are additional inputs of the MLP.
        """
        vectors = [*features.profile, *interests.values(), *features.ad, *features.context]
        vectors += features.numbers.values()
        if self.options.interest_product:
            vectors += [interests[name] * s.ad for name, s in features.sequences.items()]
        x = jnp.concatenate(vectors, axis=1)
        mlp = MLP(self.options.hidden, 2, self.options.activation, name="mlp")
        logits = mlp(x, batch.weight, train=train, products=products)
        if self.options.item_bias:
            bias = lookup(tables[ITEM_BIAS], lookups[ITEM_BIAS][ITEM_BIAS])[:, 0]
            logits = logits.at[:, 1].add(bias)
        for field in self.options.bias_fields:
            bias = _bias(field, tables, lookups, batch)
            logits = logits.at[:, 1].add(bias)
        return logits


def _bias(field: str, tables: Tables, lookups: Lookups, batch: Batch) -> jax.Array:
    """[B] the sum of the scalars of a field's ids."""
    table = bias_table(field)
    scalars = lookup(tables[table], lookups[table][field])
    ids = batch.fields[field]
    if isinstance(ids, Packed):
        scalars = pool_packed(scalars, ids, len(batch.label), mean=False)
    return scalars[:, 0]


class BaseModel(nn.Module):
    """Embedding&MLP: the pooling of a history does not depend on the ad."""

    options: Options

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] and {"interest": {sequence: [B, E]}}."""
        features, interests = embed_and_pool(tables, lookups, batch, self.options)
        head = Head(self.options)
        logits = head(features, interests, tables, lookups, batch, train=train)
        return logits, {"interest": interests}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> BaseModel:
    """Makes the module that `config.model` describes."""
    return BaseModel(options(schema, config, axis_name))
