"""Random samples as the oracles take them, and as packed batches with garbage in the padding."""

from typing import NamedTuple

import numpy as np
import oracles

from din_jax.data.packing import Batch, Behaviors, Packed
from din_jax.data.schema import (
    BehaviorField,
    Field,
    NumericBehaviorField,
    NumericField,
    Schema,
    Sequence,
    Table,
)

SCHEMA = Schema(
    tables=(
        Table("goods", 11),
        Table("shop", 6),
        Table("tag", 7),
        Table("age", 4),
        Table("hour", 5),
        Table("user", 9),
    ),
    fields=(
        Field("hour", "hour", "context"),
        Field("goods", "goods", "ad"),
        Field("age", "age", "user"),
        Field("tags", "tag", "ad", multi_hot=True, weighted=True),
        Field("user_id", "user", "user", optional=True),
        Field("shop", "shop", "ad"),
        Field("likes", "tag", "user", multi_hot=True),
    ),
    sequences=(
        Sequence(
            "clicks",
            (
                BehaviorField("tags", "tag", "tags", multi_hot=True, weighted=True),
                BehaviorField("goods", "goods", "goods"),
            ),
        ),
        Sequence("visits", (BehaviorField("shop", "shop", "shop"),)),
    ),
)
RELEASED_SCHEMA = Schema(
    tables=(Table("item", 11), Table("category", 5), Table("user", 4)),
    fields=(
        Field("category", "category", "ad"),
        Field("item", "item", "ad"),
        Field("user_id", "user", "user", optional=True),
    ),
    sequences=(
        Sequence(
            "history",
            (
                BehaviorField("item", "item", "item"),
                BehaviorField("category", "category", "category"),
            ),
        ),
    ),
)

NUMERIC_SCHEMA = Schema(
    tables=(Table("goods", 11), Table("shop", 6)),
    fields=(Field("goods", "goods", "ad"), Field("shop", "shop", "ad")),
    sequences=(
        Sequence(
            "clicks",
            (BehaviorField("goods", "goods", "goods"),),
            numbers=(NumericBehaviorField("paid", "price"), NumericBehaviorField("rank", "rank")),
        ),
        Sequence(
            "visits",
            (BehaviorField("shop", "shop", "shop"),),
            numbers=(NumericBehaviorField("price", "price"),),
        ),
    ),
    numbers=(
        NumericField("wait", "context"),
        NumericField("rank", "ad"),
        NumericField("years", "user"),
        NumericField("price", "ad"),
    ),
)


class Sizes(NamedTuple):
    """Capacities of a packed batch: samples, and entries of the packed axes."""

    samples: int = 8
    clicks: int = 24
    visits: int = 24
    nested: int = 48  # ids of a behaviour's multi-hot field
    multi_hot: int = 24  # ids of a sample's

    def of(self, sequence):
        return self.visits if sequence == "visits" else self.clicks


SIZES = Sizes()
LARGER = Sizes(samples=11, clicks=40, visits=64, nested=56, multi_hot=32)
REAL = 6  # samples; the rest of a batch is padding


def draw_samples(rng, schema, empty=False):
    """Random samples, as the oracles take them; one history of each sequence, or all, are empty."""
    age_rng, weight_rng = rng.spawn(2)

    def ids(field):
        rows = schema.rows(field.table)
        if field.multi_hot:
            several = rng.integers(0, rows, rng.integers(0, 4)).tolist()
            weights = weight_rng.uniform(-1, 1, len(several))
            return oracles.WeightedIds(several, weights) if field.weighted else several
        return int(rng.integers(0, rows))

    def number():
        return None if rng.random() < 0.3 else float(np.float32(rng.normal()))

    samples = []
    without = rng.permutation(REAL)
    for i in range(REAL):
        sequences = {}
        for place, sequence in enumerate(schema.sequences):
            n = 0 if empty or i == without[place] else rng.integers(1, 5)
            sequences[sequence.name] = [
                {f.name: ids(f) for f in sequence.fields}
                | {n.name: number() for n in sequence.numbers}
                | {"age": int(age_rng.integers(32))}
                for _ in range(n)
            ]
        samples.append(
            {
                "label": float(rng.integers(0, 2)),
                "fields": {f.name: ids(f) for f in schema.fields}
                | {n.name: number() for n in schema.numbers},
                "sequences": sequences,
            }
        )
    return samples


def garbage(rng, n):
    """Ids that no table has, and ids that all have: padding may hold either."""
    wild = rng.integers(-(2**31), 2**31, n)
    return np.where(rng.random(n) < 0.5, wild, rng.integers(0, 4, n)).astype(np.int32)


def padded(rng, values, capacity):
    assert len(values) <= capacity
    return np.concatenate([np.int32(values), garbage(rng, capacity - len(values))])


def padded_numbers(rng, values, capacity):
    wild = rng.choice([np.nan, np.inf, -np.inf, 3e38, 1.0], capacity - len(values))
    return np.float32([np.nan if x is None else x for x in values] + wild.tolist())


def segment_ids_of(segments, capacity, beyond):
    """Which segment each entry is of; padding has the segment id `beyond`."""
    owners = [at for at, segment in enumerate(segments) for _ in segment]
    return np.array(owners + [beyond] * (capacity - len(owners)), np.int32)


def packed(rng, segments, capacity, beyond, weighted):
    values = [i for segment in segments for i in segment]
    weights = None
    if weighted:
        known = [w for segment in segments for w in segment.weights]
        weights = padded_numbers(rng.spawn(1)[0], known, capacity)
    segment_ids = segment_ids_of(segments, capacity, beyond)
    return Packed(padded(rng, values, capacity), segment_ids, weights)


def make_batch(samples, schema, rng, sizes=SIZES):
    """The samples as a packed batch, whose padding is drawn from `rng`."""
    b = sizes.samples
    fields = {}
    for field in schema.fields:
        values = [s["fields"][field.name] for s in samples]
        if field.multi_hot:
            fields[field.name] = packed(rng, values, sizes.multi_hot, b, field.weighted)
        else:
            fields[field.name] = padded(rng, values, b)
    for number in schema.numbers:
        values = [s["fields"][number.name] for s in samples]
        fields[number.name] = padded_numbers(rng, values, b)
    sequences = {}
    for sequence in schema.sequences:
        t = sizes.of(sequence.name)
        histories = [s["sequences"][sequence.name] for s in samples]
        behaviors = [behavior for history in histories for behavior in history]
        values = {}
        for field in sequence.fields:
            column = [behavior[field.name] for behavior in behaviors]
            if field.multi_hot:
                values[field.name] = packed(rng, column, sizes.nested, t, field.weighted)
            else:
                values[field.name] = padded(rng, column, t)
        for number in sequence.numbers:
            column = [behavior[number.name] for behavior in behaviors]
            values[number.name] = padded_numbers(rng, column, t)
        age = padded(rng.spawn(1)[0], [behavior["age"] for behavior in behaviors], t)
        sequences[sequence.name] = Behaviors(values, segment_ids_of(histories, t, b), age)
    return Batch(
        label=np.float32([s["label"] for s in samples] + [1] * (b - len(samples))),
        weight=np.float32([1] * len(samples) + [0] * (b - len(samples))),
        user=garbage(rng, b),
        fields=fields,
        sequences=sequences,
    )
