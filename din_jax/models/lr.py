"""Logistic regression (section 6.3's weak baseline; McMahan et al., KDD 2013): one weight an id.

Each input has weights of its own, as it has a one-hot code of its own in Table 1: that a good was
visited says another thing than that it is the ad. The weights of a list are summed, as its
embeddings are elsewhere (or averaged, with `pooling` "mean").
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.data.packing import Batch, Packed
from din_jax.data.schema import Schema
from din_jax.errors import DinError
from din_jax.models.features import input_lookups
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec, lookup
from din_jax.nn.pooling import segment_mean, segment_pool


def weight_table(name: str) -> str:
    """The table of an input's weights; `name` is its lookup's, "FIELD" or "SEQUENCE.FIELD"."""
    return name.replace(".", "-") + "-weight"


def tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """One table of scalars an input, zero at first."""
    inputs = {field.name: field.table for field in schema.inputs(config.extra_fields)}
    for sequence in schema.sequences:
        inputs |= {f"{sequence.name}.{b.name}": b.table for b in sequence.fields}
    return {
        weight_table(name): TableSpec(schema.rows(table), 1, nn.initializers.zeros)
        for name, table in inputs.items()
    }


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """The ids of every input, each in its own table."""
    of_inputs = input_lookups(batch, schema, config.extra_fields)
    return {
        weight_table(name): {name: at}
        for of_table in of_inputs.values()
        for name, at in of_table.items()
    }


def linear(
    tables: Tables,
    lookups: Lookups,
    batch: Batch,
    schema: Schema,
    *,
    extra_fields: tuple[str, ...],
    mean: bool,
) -> jax.Array:
    """w · x, [B]: the sum of all inputs' weights; those of a list by `mean` or sum."""
    samples = len(batch.label)
    pool = segment_mean if mean else segment_pool

    def weights(name: str, ids: Any, segments: int) -> jax.Array:
        found = lookup(tables[weight_table(name)], lookups[weight_table(name)][name])
        return pool(found, ids.segment_ids, segments) if isinstance(ids, Packed) else found

    total = jnp.zeros((samples, 1))
    for field in schema.inputs(extra_fields):
        total += weights(field.name, batch.fields[field.name], samples)
    for sequence in schema.sequences:
        values, segment_ids = batch.sequences[sequence.name]
        for b in sequence.fields:
            visited = weights(f"{sequence.name}.{b.name}", values[b.name], len(segment_ids))
            total += pool(visited, segment_ids, samples)
    return total[:, 0]


class LR(nn.Module):
    """Logistic regression.

    Attributes:
      schema: the data set's.
      mean: average the weights of a list instead of summing them.
      extra_fields: optional fields taken as inputs.
    """

    schema: Schema
    mean: bool = False
    extra_fields: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Logits [B, 2], of which the first is 0: p = sigmoid(w · x + b)."""
        del train
        z = linear(
            tables, lookups, batch, self.schema, extra_fields=self.extra_fields, mean=self.mean
        )
        z += self.param("bias", nn.initializers.zeros, ())
        return jnp.stack([jnp.zeros_like(z), z], axis=1), {}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> LR:
    """The module that `config.model` describes.

    Raises:
      DinError: a key asks for what logistic regression doesn't have.
    """
    del axis_name  # nothing here has statistics over the batch
    for key in ("item_bias", "interest_product"):
        if config[key]:
            raise DinError(
                f"config.model.{key}={config[key]!r}: config.model.name='lr' has a weight for "
                f"every id already and no product; leave it at {type(config[key])()!r}"
            )
    return LR(schema, config.pooling == "mean", tuple(config.extra_fields))
