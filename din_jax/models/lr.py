"""Logistic regression (section 6.3's weak baseline; McMahan et al., KDD 2013): one weight per id.

Each input has separate weights, as it has a separate one-hot encoding in Table 1: a good has one
weight if it was visited and another if it is the ad. The weights of several ids, or of a history,
are summed (or averaged, with `pooling` "mean"), like embeddings in the other models. A number has a
weight that multiplies it, and one that is added where it is missing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.data.packing import Batch, Packed
from din_jax.data.schema import Schema
from din_jax.errors import DinError
from din_jax.models.features import input_lookups, numeric_inputs
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec, lookup
from din_jax.nn.pooling import pool_packed, segment_mean, segment_pool


def weight_table(name: str) -> str:
    """The name of the table with an input's weights.

    Args:
      name: the input's lookup, "FIELD" or "SEQUENCE.FIELD".
    """
    return name.replace(".", "-") + "-weight"


def tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """One table of scalars per input, initialized with zeros."""
    inputs = {field.name: field.table for field in schema.inputs(config.extra_fields)}
    for sequence in schema.sequences:
        inputs |= {f"{sequence.name}.{b.name}": b.table for b in sequence.fields}
    return {
        weight_table(name): TableSpec(schema.rows(table), 1, nn.initializers.zeros)
        for name, table in inputs.items()
    }


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """The lookups of all inputs, each in its own table."""
    by_table = input_lookups(batch, schema, config.extra_fields)
    return {
        weight_table(name): {name: input_lookup}
        for table_lookups in by_table.values()
        for name, input_lookup in table_lookups.items()
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
    """w · x, [B]: the sum of all inputs' weights, which are pooled within an input.

    Call it in a module, whose parameters the weights of numbers are.
    """
    samples = len(batch.label)
    pool = segment_mean if mean else segment_pool

    def weights(name: str, ids: Any, segments: int) -> jax.Array:
        by_id = lookup(tables[weight_table(name)], lookups[weight_table(name)][name])
        return pool_packed(by_id, ids, segments, mean=mean) if isinstance(ids, Packed) else by_id

    total = jnp.zeros((samples, 1))
    for field in schema.inputs(extra_fields):
        total += weights(field.name, batch.fields[field.name], samples)
    for sequence in schema.sequences:
        values, segment_ids, _ = batch.sequences[sequence.name]
        for b in sequence.fields:
            by_behavior = weights(f"{sequence.name}.{b.name}", values[b.name], segment_ids.shape[0])
            total += pool(by_behavior, segment_ids, samples)
    if schema.numbers:
        total += linear_in_numbers(batch, schema, mean=mean)
    return total[:, 0]


def linear_in_numbers(batch: Batch, schema: Schema, *, mean: bool) -> jax.Array:
    """Σ w_f x_f of the numeric fields, [B, 1], with another weight where a number is missing.

    The numbers of behaviours are pooled first. The weights begin at zero, and are parameters of the
    module that calls it.
    """
    pool = segment_mean if mean else segment_pool
    inputs = numeric_inputs(batch, schema)
    for sequence in schema.sequences:
        for number in sequence.numbers:
            name = f"{sequence.name}.{number.name}"
            segment_ids = batch.sequences[sequence.name].segment_ids
            inputs[name] = pool(inputs[name], segment_ids, len(batch.label))
    weights = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros, name="number_weights")
    return weights(jnp.concatenate(list(inputs.values()), axis=1))


class LR(nn.Module):
    """Logistic regression.

    Attributes:
      schema: the data set's schema.
      mean: whether the weights within an input are averaged, not summed.
      extra_fields: names of the optional fields that are inputs.
    """

    schema: Schema
    mean: bool = False
    extra_fields: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] of [0, w · x + b], so that p = sigmoid(w · x + b), and {}."""
        del train
        z = linear(
            tables, lookups, batch, self.schema, extra_fields=self.extra_fields, mean=self.mean
        )
        z += self.param("bias", nn.initializers.zeros, ())
        return jnp.stack([jnp.zeros_like(z), z], axis=1), {}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> LR:
    """Makes the module that `config.model` describes.

    Raises:
      DinError: a key is set that logistic regression does not support.
    """
    del axis_name  # no batch statistics
    for key in ("item_bias", "bias_fields", "interest_product"):
        if config[key]:
            raise DinError(
                f"config.model.{key}={config[key]!r}: config.model.name='lr' has a weight for "
                f"every id already and no product; leave it at {type(config[key])()!r}"
            )
    return LR(schema, config.pooling == "mean", tuple(config.extra_fields))
