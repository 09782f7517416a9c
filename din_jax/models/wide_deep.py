"""Wide & Deep (Cheng et al., DLRS 2016): base, and a linear part on crosses of visited and shown.

A cross is a pair of ids: a visited good and the ad's good, a visited category and the ad's, and so
on for every behaviour field and the ad field that it is compared with. Each pair has one weight;
the logit of a click is base's plus the weights of a sample's pairs. With `pooling` "mean" these are
averaged over the visited ids: their sum grows with the history, and diverges at large learning
rates. Where a table of all pairs would be larger than `config.model.wide.buckets`, pairs are
hashed, and some share a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from din_jax.data.packing import Batch, Packed
from din_jax.data.schema import Schema
from din_jax.models import features
from din_jax.models.base import Head
from din_jax.models.features import Options, embed_and_pool, options
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec, lookup
from din_jax.nn.pooling import segment_mean, segment_pool

_COUNTED_PAIRS = 2_000_000  # of the training samples, for the report of collisions


class Cross(NamedTuple):
    """A behaviour field and the ad field that it is compared with."""

    sequence: str
    field: str
    ad: str
    rows: int  # K of the data set's table, in which both fields have their ids
    buckets: int

    @property
    def table(self) -> str:
        """The table of the pairs' weights."""
        return f"{self.sequence}-{self.field}-cross"

    @property
    def lookup(self) -> str:
        """The name of the lookup in that table."""
        return f"{self.sequence}.{self.field}-cross"

    @property
    def exact(self) -> bool:
        """Whether every pair has a bucket of its own."""
        return (self.rows - 1) ** 2 <= self.buckets

    def bucket(self, visited: jax.Array, shown: jax.Array) -> jax.Array:
        """Rows of the table, from 1 on, of pairs of ids; 0 if either is unknown."""
        visited, shown = jnp.asarray(visited, jnp.uint32), jnp.asarray(shown, jnp.uint32)
        if self.exact:
            bucket = (visited - 1) * (self.rows - 1) + (shown - 1)
        else:
            bucket = _mixed(_mixed(visited) + shown) % self.buckets
        return jnp.where((visited == 0) | (shown == 0), 0, 1 + bucket).astype(jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """The 32-bit finalizer of MurmurHash3 (Appleby): every bit of x moves every other."""
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
    """The tables of base, and one of scalars a cross, zero at first."""
    specs = features.tables(schema, config)
    for cross in crosses(schema, config):
        rows = (cross.rows - 1) ** 2 if cross.exact else cross.buckets
        specs[cross.table] = TableSpec(1 + rows, 1, nn.initializers.zeros)
    return specs


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """What base looks up, and the buckets of the crosses."""
    found = features.lookups(batch, schema, config)
    for cross in crosses(schema, config):
        visited, shown, mask = _pairs(batch, cross, config.wide.ad_values)
        found[cross.table] = {
            cross.lookup: Lookup(cross.bucket(visited, shown).reshape(-1), mask.reshape(-1))
        }
    return found


def _pairs(batch: Batch, cross: Cross, ad_values: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Ids visited and shown of every pair, and which are real: [V, R] each.

    V are the values of the behaviour field, R those of the ad's: 1 if it holds one, else its first
    `ad_values`.
    """
    samples = len(batch.label)
    visited = batch.sequences[cross.sequence].fields[cross.field]
    owner = _samples_of(batch, cross)
    ids = visited.values if isinstance(visited, Packed) else visited
    real = owner < samples
    ad = batch.fields[cross.ad]
    if not isinstance(ad, Packed):
        shown = jnp.asarray(ad).at[owner].get(mode="clip")
        return ids[:, None], shown[:, None], real[:, None]
    first = jnp.searchsorted(ad.segment_ids, owner)
    at = first[:, None] + jnp.arange(ad_values)[None]
    of_ad = jnp.asarray(ad.segment_ids).at[at].get(mode="fill", fill_value=-1)
    shown = jnp.asarray(ad.values).at[at].get(mode="clip")
    mask = (of_ad == owner[:, None]) & real[:, None]
    return jnp.broadcast_to(ids[:, None], at.shape), shown, mask


def _samples_of(batch: Batch, cross: Cross) -> jax.Array:
    """[V] the sample of each value of the behaviour field; B for padding."""
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
        """Logits [B, 2], and in the second place `interest` {sequence: [B, E]}."""
        features, interests = embed_and_pool(tables, lookups, batch, self.options)
        head = Head(self.options)
        logits = head(features, interests, tables, lookups, batch, train=train)
        pool = segment_mean if self.options.mean else segment_pool
        for cross in self.crosses:
            owner = _samples_of(batch, cross)
            weights = lookup(tables[cross.table], lookups[cross.table][cross.lookup])
            of_value = weights.reshape(len(owner), -1).sum(axis=1, keepdims=True)
            logits = logits.at[:, 1].add(pool(of_value, owner, len(batch.label))[:, 0])
        return logits, {"interest": interests}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> WideDeep:
    """The module that `config.model` describes."""
    return WideDeep(options(schema, config, axis_name), crosses=tuple(crosses(schema, config)))


def notes(batches: Iterable[Batch], schema: Schema, config: Any) -> Iterator[str]:
    """One line a cross: how many of its pairs share their weight with another.

    Args:
      batches: of training samples, in random order: about the first so many pairs are counted.
      schema: the data set's.
      config: `config.model`.
    """
    parts = []
    for cross in crosses(schema, config):
        if cross.exact:
            yield f"{cross.table}: every pair of ids has a weight of its own"
        else:
            parts.append(cross)

    @jax.jit
    def pairs_of(batch: Batch) -> list[Any]:
        found = [_pairs(batch, cross, config.wide.ad_values) for cross in parts]
        return [(v, s, c.bucket(v, s), m) for c, (v, s, m) in zip(parts, found, strict=True)]

    collected: list[list[np.ndarray]] = [[] for _ in parts]
    counted = [0] * len(parts)
    for batch in batches:
        for i, (visited, shown, bucket, mask) in enumerate(
            map(np.asarray, p) for p in pairs_of(batch)
        ):
            known = mask & (bucket > 0)
            key = visited[known].astype(np.uint64) << np.uint64(32) | shown[known].astype(np.uint64)
            collected[i].append(np.stack([key, bucket[known].astype(np.uint64)]))
            counted[i] += int(known.sum())
        if min(counted, default=_COUNTED_PAIRS) >= _COUNTED_PAIRS:
            break
    for cross, keys, number in zip(parts, collected, counted, strict=True):
        if number:
            key, bucket = np.concatenate(keys, axis=1)
            _, first = np.unique(key, return_index=True)
            held = np.bincount(bucket[first].astype(np.int64))
            shared = int(held[held > 1].sum())
            yield (
                f"{cross.table}: of {len(first):,} distinct pairs among {number:,} of training, "
                f"{100 * shared / len(first):.1f} % share one of {cross.buckets:,} buckets "
                "(config.model.wide.buckets)"
            )
