"""Wide & Deep (Cheng et al., DLRS 2016): base and a linear model on crossed features.

A cross is a behaviour field and the ad field that it is compared with: its values are pairs of ids,
such as a visited good and the ad's good, or a visited category and the ad's category. Each pair has
one weight. The logit of a click is base's logit plus the weights of a sample's pairs. With
`pooling` "mean" the weights are averaged over the visited ids: their sum grows with the history,
and diverges at large learning rates. If a table of all pairs would have more rows than
`config.model.wide.buckets`, pairs are hashed to buckets, and some share a weight. The linear model
also takes the numeric fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import linen as nn

from din_jax.data.packing import Batch, Packed
from din_jax.data.schema import Schema
from din_jax.models import features, lr
from din_jax.models.base import Head
from din_jax.models.features import Options, embed_and_pool, options
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec, lookup
from din_jax.nn.pooling import segment_mean, segment_pool

_COUNTED_PAIRS = 2_000_000  # pairs of training samples among which `notes` counts collisions


class Cross(NamedTuple):
    """The cross of a behaviour field and the ad field that it is compared with.

    Attributes:
      sequence, field: the behaviour field.
      ad: the ad field.
      rows: K of the data set's table with the ids of both fields.
      buckets: the number of hash buckets.
    """

    sequence: str
    field: str
    ad: str
    rows: int
    buckets: int

    @property
    def table(self) -> str:
        """The name of the table of the pairs' weights."""
        return f"{self.sequence}-{self.field}-cross"

    @property
    def lookup(self) -> str:
        """The name of the lookup in that table."""
        return f"{self.sequence}.{self.field}-cross"

    @property
    def exact(self) -> bool:
        """Whether every pair has its own row: pairs are not hashed."""
        return (self.rows - 1) ** 2 <= self.buckets

    def bucket(self, visited: jax.Array, shown: jax.Array) -> jax.Array:
        """The rows of pairs of ids in the table, from 1; 0 if either id is unknown."""
        visited, shown = jnp.asarray(visited, jnp.uint32), jnp.asarray(shown, jnp.uint32)
        if self.exact:
            bucket = (visited - 1) * (self.rows - 1) + (shown - 1)
        else:
            bucket = _mixed(_mixed(visited) + shown) % self.buckets
        return jnp.where((visited == 0) | (shown == 0), 0, 1 + bucket).astype(jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """The 32-bit finalizer of MurmurHash3 (Appleby): every bit of x affects every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def crosses(schema: Schema, config: Any) -> list[Cross]:
    """The crosses of a data set."""
    return [
        Cross(sequence.name, b.name, b.ad, schema.rows(b.table), config.wide.buckets)
        for sequence in schema.sequences
        for b in sequence.fields
    ]


def tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """The tables of base, and one table of scalars per cross, initialized with zeros."""
    specs = features.tables(schema, config)
    for cross in crosses(schema, config):
        rows = (cross.rows - 1) ** 2 if cross.exact else cross.buckets
        specs[cross.table] = TableSpec(1 + rows, 1, nn.initializers.zeros)
    return specs


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """The lookups of base, and the buckets of the crosses."""
    by_table = features.lookups(batch, schema, config)
    for cross in crosses(schema, config):
        visited, shown, mask = _pairs(batch, cross, config.wide.ad_values)
        by_table[cross.table] = {
            cross.lookup: Lookup(cross.bucket(visited, shown).reshape(-1), mask.reshape(-1))
        }
    return by_table


def _pairs(batch: Batch, cross: Cross, ad_values: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The visited and shown ids of all pairs of a cross, and their mask: [V, R] each.

    V is the number of ids of the behaviour field in the batch. R is 1 if the ad field is one-hot,
    and otherwise `ad_values`, of which pairs with the first R ids are made.
    """
    samples = len(batch.label)
    visited = batch.sequences[cross.sequence].fields[cross.field]
    sample = _samples_of(batch, cross)
    ids = visited.values if isinstance(visited, Packed) else visited
    real = sample < samples
    ad = batch.fields[cross.ad]
    if not isinstance(ad, Packed):
        shown = jnp.asarray(ad).at[sample].get(mode="clip")
        return ids[:, None], shown[:, None], real[:, None]
    first = jnp.searchsorted(ad.segment_ids, sample)
    positions = first[:, None] + jnp.arange(ad_values)[None]
    ad_sample = jnp.asarray(ad.segment_ids).at[positions].get(mode="fill", fill_value=-1)
    shown = jnp.asarray(ad.values).at[positions].get(mode="clip")
    mask = (ad_sample == sample[:, None]) & real[:, None]
    return jnp.broadcast_to(ids[:, None], positions.shape), shown, mask


def _samples_of(batch: Batch, cross: Cross) -> jax.Array:
    """[V] the sample of each id of the behaviour field; B for padding."""
    behaviors = batch.sequences[cross.sequence]
    visited = behaviors.fields[cross.field]
    segment_ids = jnp.asarray(behaviors.segment_ids)
    if not isinstance(visited, Packed):
        return segment_ids
    return segment_ids.at[visited.segment_ids].get(mode="fill", fill_value=len(batch.label))


class WideDeep(nn.Module):
    """Wide & Deep.

    Attributes:
      options: see `Options`.
      crosses: see `crosses`.
    """

    options: Options
    crosses: tuple[Cross, ...]

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] and {"interest": {sequence: [B, E]}}."""
        features, interests = embed_and_pool(tables, lookups, batch, self.options)
        head = Head(self.options)
        logits = head(features, interests, tables, lookups, batch, train=train)
        o = self.options
        if o.schema.numbers:
            numbers = lr.linear_in_numbers(batch, o.schema, mean=o.mean)[:, 0]
            logits = logits.at[:, 1].add(numbers)
        pool = segment_mean if o.mean else segment_pool
        for cross in self.crosses:
            sample = _samples_of(batch, cross)
            weights = lookup(tables[cross.table], lookups[cross.table][cross.lookup])
            by_behavior = weights.reshape(sample.shape[0], -1).sum(axis=1, keepdims=True)
            logits = logits.at[:, 1].add(pool(by_behavior, sample, len(batch.label))[:, 0])
        return logits, {"interest": interests}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> WideDeep:
    """Makes the module that `config.model` describes."""
    return WideDeep(options(schema, config, axis_name), crosses=tuple(crosses(schema, config)))


def notes(batches: Iterable[Batch], schema: Schema, config: Any) -> Iterator[str]:
    """Yields one line per cross: the fraction of its pairs that share a weight with another pair.

    Args:
      batches: batches of training samples, in random order. Reads about as many as have
        `_COUNTED_PAIRS` pairs.
      schema: the data set's schema.
      config: `config.model`.
    """
    hashed = []
    for cross in crosses(schema, config):
        if cross.exact:
            yield f"{cross.table}: every pair of ids has a weight of its own"
        else:
            hashed.append(cross)

    @jax.jit
    def pairs_of(batch: Batch) -> list[Any]:
        pairs = [_pairs(batch, cross, config.wide.ad_values) for cross in hashed]
        return [(v, s, c.bucket(v, s), m) for c, (v, s, m) in zip(hashed, pairs, strict=True)]

    keys_and_buckets: list[list[npt.NDArray[Any]]] = [[] for _ in hashed]
    counts = [0] * len(hashed)
    for batch in batches:
        for i, (visited, shown, bucket, mask) in enumerate(
            map(np.asarray, pairs) for pairs in pairs_of(batch)
        ):
            real = mask & (bucket > 0)
            key = visited[real].astype(np.uint64) << np.uint64(32) | shown[real].astype(np.uint64)
            keys_and_buckets[i].append(np.stack([key, bucket[real].astype(np.uint64)]))
            counts[i] += int(real.sum())
        if min(counts, default=_COUNTED_PAIRS) >= _COUNTED_PAIRS:
            break
    for cross, arrays, number in zip(hashed, keys_and_buckets, counts, strict=True):
        if number:
            key, bucket = np.concatenate(arrays, axis=1)
            _, first = np.unique(key, return_index=True)
            pairs_per_bucket = np.bincount(bucket[first].astype(np.int64))
            shared = int(pairs_per_bucket[pairs_per_bucket > 1].sum())
            yield (
                f"{cross.table}: of {len(first):,} distinct pairs among {number:,} of training, "
                f"{100 * shared / len(first):.1f} % share one of {cross.buckets:,} buckets "
                "(config.model.wide.buckets)"
            )
