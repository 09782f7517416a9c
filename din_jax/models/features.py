"""Lookups and embedded features of a batch, which the deep models share."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.config import table_dims
from din_jax.data.packing import Batch, Packed
from din_jax.data.schema import Field, Schema
from din_jax.errors import DinError
from din_jax.nn.activations import ActivationFactory, activation_factory
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec, lookup
from din_jax.nn.numbers import NumberVectors, number_inputs
from din_jax.nn.pooling import pool_packed, segment_mean, segment_pool

# The table with one scalar per id of the ad field `config.item_bias`. It is no identifier, and
# therefore not the name of a table of the schema.
ITEM_BIAS = "item-bias"


def bias_table(field: str) -> str:
    """The name of the table with one scalar per id of a field of `config.bias_fields`."""
    return f"{field}-field-bias"


def tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """The specifications of the tables that the model uses.

    Args:
      schema: the data set's schema.
      config: `config.model`.
    """
    names = {f.table for f in schema.inputs(config.extra_fields)} | {
        behavior.table for sequence in schema.sequences for behavior in sequence.fields
    }
    dims = table_dims(config, [table.name for table in schema.tables])
    specs = {
        name: TableSpec(
            schema.rows(name), dims[name], nn.initializers.normal(_stddev(config, dims[name]))
        )
        for name in sorted(names)
    }
    if config.item_bias:
        rows = schema.rows(schema.ad_field(config.item_bias).table)
        specs[ITEM_BIAS] = TableSpec(rows, 1, nn.initializers.zeros, decayed=False)
    for field in _bias_fields(schema, config):
        specs[bias_table(field.name)] = TableSpec(
            schema.rows(field.table), 1, nn.initializers.zeros, decayed=False
        )
    return specs


def _stddev(config: Any, dim: int) -> float:
    """The standard deviation of a table's initial values, from `config.model` and its width."""
    stddev: float = config.embedding_stddev
    return stddev / math.sqrt(dim) if config.embedding_init == "width" else stddev


def _bias_fields(schema: Schema, config: Any) -> list[Field]:
    """The fields that `config.bias_fields` names, each once.

    Raises:
      DinError: there is no such field, or `config.without` leaves its table out.
    """
    fields = {field.name: field for field in schema.fields}
    for name in config.bias_fields:
        if name not in fields:
            left = " that config.model.without leaves" if config.without else ""
            raise DinError(
                f"config.model.bias_fields names {name!r}; the data set's fields{left} are: "
                + ", ".join(fields)
            )
    return [fields[name] for name in dict.fromkeys(config.bias_fields)]


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """The lookups of a batch: {table: {name: `Lookup`}}."""
    by_table = input_lookups(batch, schema, config.extra_fields)
    if config.item_bias:
        name = schema.ad_field(config.item_bias).name
        bias = _lookup_of(batch.fields[name], batch.weight > 0, len(batch.label))
        by_table[ITEM_BIAS] = {ITEM_BIAS: bias}
    for field in _bias_fields(schema, config):
        ids = _lookup_of(batch.fields[field.name], batch.weight > 0, len(batch.label))
        by_table[bias_table(field.name)] = {field.name: ids}
    return by_table


def input_lookups(
    batch: Batch, schema: Schema, extra_fields: Iterable[str]
) -> dict[str, dict[str, Lookup]]:
    """The lookups of all inputs in the data set's tables: {table: {name: `Lookup`}}.

    The lookup of a field has the field's name, that of a behaviour field is "SEQUENCE.FIELD".
    """
    samples = len(batch.label)
    real = batch.weight > 0
    by_table: dict[str, dict[str, Lookup]] = {}
    for field in schema.inputs(extra_fields):
        ids = batch.fields[field.name]
        by_table.setdefault(field.table, {})[field.name] = _lookup_of(ids, real, samples)
    for sequence in schema.sequences:
        behaviors = batch.sequences[sequence.name]
        mask = behaviors.segment_ids < samples
        for behavior in sequence.fields:
            name = f"{sequence.name}.{behavior.name}"
            by_table.setdefault(behavior.table, {})[name] = _lookup_of(
                behaviors.fields[behavior.name], mask, mask.shape[0]
            )
    return by_table


def numeric_inputs(batch: Batch, schema: Schema) -> dict[str, jax.Array]:
    """The `number_inputs` of all numeric fields: {name: [B, 2], or [T, 2] of behaviours}.

    Those of a behaviour field are named "SEQUENCE.FIELD".
    """
    values: Any = batch.fields
    real = batch.weight > 0
    inputs = {n.name: number_inputs(values[n.name], real) for n in schema.numbers}
    for sequence in schema.sequences:
        behaviors = batch.sequences[sequence.name]
        values, mask = behaviors.fields, behaviors.segment_ids < len(batch.label)
        for number in sequence.numbers:
            name = f"{sequence.name}.{number.name}"
            inputs[name] = number_inputs(values[number.name], mask)
    return inputs


def is_behavior(name: str) -> bool:
    """Whether the lookup with this name is of a behaviour field."""
    return "." in name


def _lookup_of(ids: Any, mask: jax.Array, segments: int) -> Lookup:
    """The lookup of one-hot ids with this mask, or of multi-hot ids over `segments` segments."""
    if isinstance(ids, Packed):
        return Lookup(ids.values, ids.segment_ids < segments)
    return Lookup(ids, mask)


class Sequence(NamedTuple):
    """The vectors of one behaviour sequence, and of the ad that it is compared with.

    They are the fields' vectors, concatenated; those of numeric fields are the last.

    Attributes:
      behaviors: e_j, [T, E].
      ad: v_A, [B, E].
      segment_ids: int32[T], the sample of each behaviour; B for padding.
      mask: bool[T], False for padding.
    """

    behaviors: jax.Array
    ad: jax.Array
    segment_ids: jax.Array
    mask: jax.Array


class Features(NamedTuple):
    """The vectors of the feature groups of Table 1: [B, D] for each field, and the sequences.

    Numbers are beside them.

    Attributes:
      profile, ad, context: the vectors of the group's fields that are no numbers.
      sequences: {name: `Sequence`}.
      numbers: {name: [B, 2]}, the `number_inputs` of a sample's numeric fields.
      number_vectors: gives the vectors [B, D] of these.
    """

    profile: list[jax.Array]
    sequences: dict[str, Sequence]
    ad: list[jax.Array]
    context: list[jax.Array]
    numbers: dict[str, jax.Array]
    number_vectors: NumberVectors


@dataclasses.dataclass(frozen=True)
class Options:
    """The options in `config.model` that all deep models have.

    Attributes:
      schema: the data set's schema.
      hidden, activation: the MLP's hidden widths and activation.
      mean: whether multi-hot fields, and histories except DIN's, are pooled by mean, not sum.
      interest_product: whether interest ∘ ad of each sequence is also concatenated (not in the
        paper).
      item_bias: whether one scalar per id is added to the logit of a click (not in the paper).
      extra_fields: names of the optional fields that are inputs.
      bias_fields: names of the fields of which each id adds a scalar to the logit of a click (not
        in the paper).
      number_vectors: makes the module of the numeric fields' vectors.
    """

    schema: Schema
    hidden: tuple[int, ...]
    activation: ActivationFactory
    mean: bool
    interest_product: bool
    item_bias: bool
    extra_fields: tuple[str, ...]
    bias_fields: tuple[str, ...]
    number_vectors: Callable[[], NumberVectors]


def options(schema: Schema, config: Any, axis_name: str | None) -> Options:
    """Makes the options from a data set's schema and `config.model`."""
    return Options(
        schema=schema,
        hidden=tuple(config.hidden),
        activation=activation_factory(config.activation, config, axis_name),
        mean=config.pooling == "mean",
        interest_product=config.interest_product,
        item_bias=bool(config.item_bias),
        extra_fields=tuple(config.extra_fields),
        bias_fields=tuple(field.name for field in _bias_fields(schema, config)),
        number_vectors=functools.partial(
            NumberVectors,
            dim=config.embedding_dim,
            stddev=_stddev(config, config.embedding_dim),
            name="number_vectors",
        ),
    )


def embed(
    tables: Tables,
    lookups: Lookups,
    batch: Batch,
    schema: Schema,
    *,
    extra_fields: tuple[str, ...],
    mean: bool,
    number_vectors: NumberVectors,
) -> Features:
    """Looks up the vectors of a batch's features, and pools multi-hot fields by mean or sum."""
    samples = len(batch.label)

    def vectors(table: str, name: str, ids: Any, segments: int) -> jax.Array:
        by_id = lookup(tables[table], lookups[table][name])
        return pool_packed(by_id, ids, segments, mean=mean) if isinstance(ids, Packed) else by_id

    by_name: dict[str, jax.Array] = {}
    groups: dict[str, list[jax.Array]] = {"user": [], "ad": [], "context": []}
    for field in schema.inputs(extra_fields):
        vector = vectors(field.table, field.name, batch.fields[field.name], samples)
        by_name[field.name] = vector
        groups[field.group].append(vector)
    numbers = numeric_inputs(batch, schema)
    sequences = {}
    for sequence in schema.sequences:
        values, segment_ids, _ = batch.sequences[sequence.name]
        fields = [
            vectors(b.table, f"{sequence.name}.{b.name}", values[b.name], segment_ids.shape[0])
            for b in sequence.fields
        ]
        ads = [by_name[b.ad] for b in sequence.fields]
        for number in sequence.numbers:
            fields.append(number_vectors(number.ad, numbers[f"{sequence.name}.{number.name}"]))
            ads.append(number_vectors(number.ad, numbers[number.ad]))
        sequences[sequence.name] = Sequence(
            behaviors=jnp.concatenate(fields, axis=1),
            ad=jnp.concatenate(ads, axis=1),
            segment_ids=segment_ids,
            mask=segment_ids < samples,
        )
    return Features(
        groups["user"],
        sequences,
        groups["ad"],
        groups["context"],
        {number.name: numbers[number.name] for number in schema.numbers},
        number_vectors,
    )


def embed_and_pool(
    tables: Tables, lookups: Lookups, batch: Batch, options: Options
) -> tuple[Features, dict[str, jax.Array]]:
    """Embeds the features, and pools each sequence to [B, E] by sum or mean, as in base."""
    features = embed(
        tables,
        lookups,
        batch,
        options.schema,
        extra_fields=options.extra_fields,
        mean=options.mean,
        number_vectors=options.number_vectors(),
    )
    pool = segment_mean if options.mean else segment_pool
    return features, {
        name: pool(s.behaviors, s.segment_ids, len(batch.label))
        for name, s in features.sequences.items()
    }


def group_vectors(
    features: Features, interests: dict[str, jax.Array], schema: Schema
) -> list[jax.Array]:
    """One vector [B, D] per feature group, in the order of concatenation.

    Each field of a sequence (goods, shop, category) is a group, and each number. All tables must
    have one width: see `one_width`.
    """
    behaviors = [
        vector
        for s in schema.sequences
        for vector in jnp.split(interests[s.name], len(s.fields) + len(s.numbers), axis=1)
    ]
    numbers = [features.number_vectors(name, x) for name, x in features.numbers.items()]
    return [*features.profile, *behaviors, *features.ad, *features.context, *numbers]


def one_width(schema: Schema, config: Any) -> None:
    """Raises `DinError` unless all tables of the model, and numbers, have the same width.

    Args:
      schema: the data set's schema.
      config: `config.model`.
    """
    tables_of_ids = {table.name for table in schema.tables}
    dims = {n: spec.dim for n, spec in tables(schema, config).items() if n in tables_of_ids}
    if schema.numbers:
        dims["numeric fields"] = config.embedding_dim
    if len(set(dims.values())) > 1:
        widths = ", ".join(f"{name}={dim}" for name, dim in dims.items())
        raise DinError(
            f"config.model.name={config.name!r} multiplies the groups' vectors with each other, so "
            f"all tables need one width; found {widths}. Leave config.model.table_dims empty"
        )


def reads_ages(schema: Schema, config: Any) -> bool:
    """Whether `config.model` asks for the ages of behaviours; "auto": if the store has times."""
    age = config.attention.age
    return all(sequence.times for sequence in schema.sequences) if age == "auto" else bool(age)
