"""Product-based Neural Network (Qu et al., ICDM 2016): base, whose MLP also sees products.

The first layer adds up l_z, of the groups' vectors, and l_p, of their products, each with a kernel
of its own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from din_jax.data.packing import Batch
from din_jax.data.schema import Schema
from din_jax.models.base import Head
from din_jax.models.features import (
    Options,
    embed_and_pool,
    group_vectors,
    lookups,
    one_width,
    options,
    tables,
)
from din_jax.nn.embedding import Lookups, Tables

__all__ = ["PNN", "inner_products", "lookups", "module", "outer_product", "tables"]


def inner_products(vectors: list[jax.Array]) -> jax.Array:
    """[B, F·(F − 1) / 2]: ⟨v_i, v_j⟩ of every two of F groups' vectors [B, D]."""
    stacked = jnp.stack(vectors, axis=1)
    first, second = np.triu_indices(len(vectors), k=1)
    return jnp.einsum("bfd,bgd->bfg", stacked, stacked)[:, first, second]


def outer_product(vectors: list[jax.Array]) -> jax.Array:
    """[B, D²]: v_Σ ⊗ v_Σ with v_Σ = Σ v_i, which is Σ_i Σ_j v_i ⊗ v_j, in one product."""
    total = sum(vectors[1:], vectors[0])
    return (total[:, :, None] * total[:, None, :]).reshape(len(total), -1)


class PNN(nn.Module):
    """PNN.

    Attributes:
      options: see `Options`.
      outer: the outer product in place of the inner ones.
    """

    options: Options
    outer: bool = False

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Logits [B, 2], and in the second place `interest` {sequence: [B, E]}."""
        features, interests = embed_and_pool(tables, lookups, batch, self.options)
        vectors = group_vectors(features, interests, self.options.schema)
        products = outer_product(vectors) if self.outer else inner_products(vectors)
        head = Head(self.options)
        logits = head(features, interests, tables, lookups, batch, train=train, products=products)
        return logits, {"interest": interests}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> PNN:
    """The module that `config.model` describes.

    Raises:
      DinError: the tables have not all one width.
    """
    one_width(schema, config)
    return PNN(options(schema, config, axis_name), outer=config.pnn.product == "outer")
