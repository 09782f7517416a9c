"""From a batch to the vectors of its features: the parts that the deep models share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.config import table_dims
from din_jax.data.packing import Batch, Packed
from din_jax.data.schema import Schema
from din_jax.errors import DinError
from din_jax.nn.activations import ActivationFactory, activation_factory
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec, lookup
from din_jax.nn.pooling import segment_mean, segment_pool

# Table of one scalar an id of the ad field `config.item_bias`; no schema's table has such a name.
ITEM_BIAS = "item-bias"


def tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """The tables that the model reads: {name: (K, D, initializer)}.

    Args:
      schema: the data set's.
      config: `config.model`.
    """
    initializer = nn.initializers.normal(config.embedding_stddev)
    used = {f.table for f in schema.inputs(config.extra_fields)} | {
        behavior.table for sequence in schema.sequences for behavior in sequence.fields
    }
    dims = table_dims(config, [table.name for table in schema.tables])
    specs = {name: TableSpec(schema.rows(name), dims[name], initializer) for name in sorted(used)}
    if config.item_bias:
        rows = schema.rows(schema.ad_field(config.item_bias).table)
        specs[ITEM_BIAS] = TableSpec(rows, 1, nn.initializers.zeros, decayed=False)
    return specs


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """What the model looks up for a batch: {table: {name: (ids, mask)}}."""
    found = input_lookups(batch, schema, config.extra_fields)
    if config.item_bias:
        name = schema.ad_field(config.item_bias).name
        bias = _lookup_of(batch.fields[name], batch.weight > 0, len(batch.label))
        found[ITEM_BIAS] = {ITEM_BIAS: bias}
    return found


def input_lookups(
    batch: Batch, schema: Schema, extra_fields: Iterable[str]
) -> dict[str, dict[str, Lookup]]:
    """The ids of every input, by the data set's tables.

    A field's lookup has the field's name, a behaviour field's is "SEQUENCE.FIELD".
    """
    samples = len(batch.label)
    real = batch.weight > 0
    found: dict[str, dict[str, Lookup]] = {}
    for field in schema.inputs(extra_fields):
        ids = batch.fields[field.name]
        found.setdefault(field.table, {})[field.name] = _lookup_of(ids, real, samples)
    for sequence in schema.sequences:
        behaviors = batch.sequences[sequence.name]
        mask = behaviors.segment_ids < samples
        for behavior in sequence.fields:
            name = f"{sequence.name}.{behavior.name}"
            found.setdefault(behavior.table, {})[name] = _lookup_of(
                behaviors.fields[behavior.name], mask, len(mask)
            )
    return found


def is_behavior(name: str) -> bool:
    """Whether a lookup of this name is of a behaviour field."""
    return "." in name


def _lookup_of(ids: Any, mask: jax.Array, segments: int) -> Lookup:
    if isinstance(ids, Packed):
        return Lookup(ids.values, ids.segment_ids < segments)
    return Lookup(ids, mask)


class Sequence(NamedTuple):
    """The vectors of one behaviour sequence, and of the ad that it is compared with."""

    behaviors: jax.Array  # e_j, [T, E]
    ad: jax.Array  # v_A, [B, E]
    segment_ids: jax.Array  # [T]
    mask: jax.Array  # [T]


class Features(NamedTuple):
    """Vectors of the groups of Table 1."""

    profile: list[jax.Array]  # [B, D] each
    sequences: dict[str, Sequence]
    ad: list[jax.Array]
    context: list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Options:
    """What `config.model` tells all deep models.

    Attributes:
      schema: the data set's.
      hidden, activation: of the MLP.
      mean: pool multi-hot fields, and the history but DIN's, by mean instead of sum.
      interest_product: also concatenate interest ∘ ad, for each sequence (not in the paper).
      item_bias: add one scalar an id to the logit of a click (not in the paper).
      extra_fields: optional fields taken as inputs.
    """

    schema: Schema
    hidden: tuple[int, ...]
    activation: ActivationFactory
    mean: bool
    interest_product: bool
    item_bias: bool
    extra_fields: tuple[str, ...]


def options(schema: Schema, config: Any, axis_name: str | None) -> Options:
    """The options of a data set and `config.model`."""
    return Options(
        schema=schema,
        hidden=tuple(config.hidden),
        activation=activation_factory(config.activation, config, axis_name),
        mean=config.pooling == "mean",
        interest_product=config.interest_product,
        item_bias=bool(config.item_bias),
        extra_fields=tuple(config.extra_fields),
    )


def embed(
    tables: Tables,
    lookups: Lookups,
    batch: Batch,
    schema: Schema,
    *,
    extra_fields: tuple[str, ...],
    mean: bool,
) -> Features:
    """Looks up and pools every feature of a batch; multi-hot ones by `mean` or sum."""
    samples = len(batch.label)
    pool = segment_mean if mean else segment_pool

    def vectors(table: str, name: str, ids: Any, segments: int) -> jax.Array:
        found = lookup(tables[table], lookups[table][name])
        return pool(found, ids.segment_ids, segments) if isinstance(ids, Packed) else found

    by_name: dict[str, jax.Array] = {}
    groups: dict[str, list[jax.Array]] = {"user": [], "ad": [], "context": []}
    for field in schema.inputs(extra_fields):
        vector = vectors(field.table, field.name, batch.fields[field.name], samples)
        by_name[field.name] = vector
        groups[field.group].append(vector)
    sequences = {}
    for sequence in schema.sequences:
        values, segment_ids = batch.sequences[sequence.name]
        fields = [
            vectors(b.table, f"{sequence.name}.{b.name}", values[b.name], len(segment_ids))
            for b in sequence.fields
        ]
        sequences[sequence.name] = Sequence(
            behaviors=jnp.concatenate(fields, axis=1),
            ad=jnp.concatenate([by_name[b.ad] for b in sequence.fields], axis=1),
            segment_ids=segment_ids,
            mask=segment_ids < samples,
        )
    return Features(groups["user"], sequences, groups["ad"], groups["context"])


def embed_and_pool(
    tables: Tables, lookups: Lookups, batch: Batch, options: Options
) -> tuple[Features, dict[str, jax.Array]]:
    """The features, and a vector [B, E] a sequence: its behaviours' sum or mean for any ad."""
    features = embed(
        tables,
        lookups,
        batch,
        options.schema,
        extra_fields=options.extra_fields,
        mean=options.mean,
    )
    pool = segment_mean if options.mean else segment_pool
    return features, {
        name: pool(s.behaviors, s.segment_ids, len(batch.label))
        for name, s in features.sequences.items()
    }


def group_vectors(
    features: Features, interests: dict[str, jax.Array], schema: Schema
) -> list[jax.Array]:
    """One vector [B, D] a group of Table 1, in the order of concatenation.

    A sequence of several aligned fields (goods, shop, category) is as many groups. All tables have
    one width: see `one_width`.
    """
    visited = [
        part
        for sequence in schema.sequences
        for part in jnp.split(interests[sequence.name], len(sequence.fields), axis=1)
    ]
    return [*features.profile, *visited, *features.ad, *features.context]


def one_width(schema: Schema, config: Any) -> None:
    """Raises `DinError` unless all tables that the model reads have one width.

    Args:
      schema: the data set's.
      config: `config.model`.
    """
    dims = {name: spec.dim for name, spec in tables(schema, config).items() if name != ITEM_BIAS}
    if len(set(dims.values())) > 1:
        found = ", ".join(f"{name}={dim}" for name, dim in dims.items())
        raise DinError(
            f"config.model.name={config.name!r} multiplies the groups' vectors with each other, so "
            f"all tables need one width; found {found}. Leave config.model.table_dims empty"
        )
