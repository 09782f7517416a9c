"""Product-based Neural Network (Qu et al., ICDM 2016): base with products as additional inputs.

The MLP's first layer is the sum of l_z, of the groups' vectors, and l_p, of their products, with
separate kernels.
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
    """[B, F·(F − 1) / 2]: ⟨v_i, v_j⟩ of all pairs of F groups' vectors [B, D]."""
    stacked = jnp.stack(vectors, axis=1)
    first, second = np.triu_indices(len(vectors), k=1)
    return jnp.einsum("bfd,bgd->bfg", stacked, stacked)[:, first, second]


def outer_product(vectors: list[jax.Array]) -> jax.Array:
    """[B, D²]: v_Σ ⊗ v_Σ with v_Σ = Σ v_i, which equals Σ_i Σ_j v_i ⊗ v_j."""
    total = sum(vectors[1:], vectors[0])
    return (total[:, :, None] * total[:, None, :]).reshape(len(total), -1)


class PNN(nn.Module):
    """PNN.

    Attributes:
      options: see `Options`.
      outer: whether to use the outer product instead of the inner products.
    """

    options: Options
    outer: bool = False

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] and {"interest": {sequence: [B, E]}}."""
        features, interests = embed_and_pool(tables, lookups, batch, self.options)
        vectors = group_vectors(features, interests, self.options.schema)
        products = outer_product(vectors) if self.outer else inner_products(vectors)
        head = Head(self.options)
        logits = head(features, interests, tables, lookups, batch, train=train, products=products)
        return logits, {"interest": interests}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> PNN:
    """Makes the module that `config.model` describes.

    Raises:
      DinError: the tables' widths differ.
    """
    one_width(schema, config)
    return PNN(options(schema, config, axis_name), outer=config.pnn.product == "outer")
