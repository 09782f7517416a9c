"""DeepFM (Guo et al., IJCAI 2017): base and a factorisation machine with shared embeddings.

The logit of a click is the sum of base's and the machine's, w · x + Σ_{i<j} ⟨v_i, v_j⟩ (DeepFM's
Eq. 2), where v_i is the vector of a group: several ids are pooled first. A number x has the vector
x · v.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.data.packing import Batch
from din_jax.data.schema import Schema
from din_jax.models import features, lr
from din_jax.models.base import Head
from din_jax.models.features import Options, embed_and_pool, group_vectors, one_width, options
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec


def tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """The tables of base, and tables of the weights w, which are not decayed."""
    weights = lr.tables(schema, config)
    return features.tables(schema, config) | {
        name: spec._replace(decayed=False) for name, spec in weights.items()
    }


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """The lookups of base, and of the weights w."""
    return features.lookups(batch, schema, config) | lr.lookups(batch, schema, config)


def pairwise(vectors: list[jax.Array]) -> jax.Array:
    """Σ_{i<j} ⟨v_i, v_j⟩, [B], of F groups' vectors [B, D], at a cost linear in F.

    It is (‖Σ v_i‖² − Σ ‖v_i‖²) / 2 (Rendle 2010, Lemma 3.1).
    """
    total = sum(vectors[1:], vectors[0])
    squares = sum(jnp.square(v) for v in vectors)
    return (jnp.square(total) - squares).sum(axis=1) / 2


class DeepFM(nn.Module):
    """DeepFM."""

    options: Options

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] and {"interest": {sequence: [B, E]}}."""
        features, interests = embed_and_pool(tables, lookups, batch, self.options)
        head = Head(self.options)
        logits = head(features, interests, tables, lookups, batch, train=train)
        o = self.options
        machine = pairwise(group_vectors(features, interests, o.schema)) + lr.linear(
            tables, lookups, batch, o.schema, extra_fields=o.extra_fields, mean=o.mean
        )
        return logits.at[:, 1].add(machine), {"interest": interests}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> DeepFM:
    """Makes the module that `config.model` describes.

    Raises:
      DinError: the tables' widths differ.
    """
    one_width(schema, config)
    return DeepFM(options(schema, config, axis_name))
