"""Generates an industrial data set chunk by chunk and writes it to a store."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Group, Schema, Sequence, Table
from din_jax.data.store import SPLITS
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.metrics import user_auc
from din_jax.prepare.industrial.simulation import (
    CONTEXT,
    KEYWORDS_PER_CATEGORY,
    MAX_HISTORY,
    MAX_KEYWORDS,
    PRICE_LEVELS,
    PROFILE,
    Catalogue,
    Impressions,
    Users,
    catalogue,
    draw_impressions,
    draw_users,
)
from din_jax.prepare.industrial.size import SAMPLES, Size

_MAX_BOUND_SAMPLES = 250_000  # test samples that the AUC bounds are computed on


def prepare(
    out: str | Path,
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    users: int | None = None,
    goods: int | None = None,
    shops: int | None = None,
    categories: int | None = None,
) -> dict[str, Any]:
    """Generates and writes a store; equal arguments give equal stores.

    Args:
      out: folder of the store.
      seed: of everything random.
      samples: of train; validation has an eighth of that, test a quarter.
      users, goods, shops, categories: by default they grow with `samples`, see `Size.of`.

    Returns:
      Counts and AUC bounds, which are also written to the store as its origin. The bounds are
      computed on the first quarter of a million test samples, or on all if there are fewer:
      "bayes" is the AUC of the click probability itself, "without_history" that of the probability
      without the effect of the behaviours.

    Raises:
      DinError: `out` exists, or an argument is out of range.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    size = Size.of(samples, users=users, goods=goods, shops=shops, categories=categories)
    world = catalogue(size, seed)
    with StoreWriter(out, _schema(size)) as writer:
        chunk_writer = _ChunkWriter(writer, size, world)
        for split in SPLITS:
            for users_of_chunk, impressions in _chunks(world, size, seed, split):
                chunk_writer.append(split, users_of_chunk, impressions)
        origin = {
            "preparation": "planted",
            "shape": "industrial",
            "seed": seed,
            **dataclasses.asdict(size),
            **chunk_writer.origin(),
            "unknown_row": "the zero vector: the vocabularies are the whole catalogue",
        }
        chunk_writer.write_vocabularies()
        bounds = np.cumsum([0, *(size.samples_of(split) for split in SPLITS)]).tolist()
        writer.finish(dict(zip(SPLITS, itertools.pairwise(bounds), strict=True)), origin)
    return origin


def _chunks(
    world: Catalogue, size: Size, seed: int, split: str
) -> Iterator[tuple[Users, Impressions]]:
    # A store holds one split after the other. Generating the users again for each split takes less
    # than half of the time, and saves holding them all in memory.
    for chunk in range(size.chunks):
        users = draw_users(world, size, seed, chunk)
        yield users, draw_impressions(world, users, size, seed, chunk, split)


class _ChunkWriter:
    """Appends chunks to a store, and counts the ids that training sees."""

    def __init__(self, writer: StoreWriter, size: Size, world: Catalogue):
        self.writer, self.size, self.world = writer, size, world
        schema = writer.schema
        self.counts = {t.name: np.zeros(t.rows - 1, np.int64) for t in schema.tables}
        self.id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
        self.table = {f.name: f.table for f in schema.fields}
        self.offset_type = smallest_unsigned(size.users * MAX_HISTORY)
        total = sum(size.samples_of(split) for split in SPLITS)
        self.keyword_offset_type = smallest_unsigned(total * MAX_KEYWORDS)
        writer.append("fields/keywords.offsets", np.zeros(1, self.keyword_offset_type))
        self.keywords = self.clicks = self.behaviors = 0
        # Of the current split: users and events in the chunks so far.
        self.split, self.users, self.events = "", 0, 0
        self.bound_samples: list[tuple[np.ndarray, ...]] = []

    def append(self, split: str, users: Users, impressions: Impressions) -> None:
        """Appends the next chunk of a split."""
        if split != self.split:
            self.split, self.users, self.events = split, 0, 0
        user, history_end = impressions.user, np.cumsum(users.length)
        if split == "train":
            self.behaviors += int(history_end[-1])
            for name, ids in self._ids_of(users.history).items():
                self._append_ids(f"events/visited/{name}", name, ids, train=True)
        fields = {name: values[user] for name, values in users.profile.items()}
        fields |= self._ids_of(impressions.ad) | impressions.context
        fields["price_level"] = self.world.price[impressions.ad]
        fields["keywords"], keyword_count = self.world.keywords_of(impressions.ad)
        for name, ids in fields.items():
            self._append_ids(f"fields/{name}", name, ids, train=split == "train")
        keyword_end = self.keywords + np.cumsum(keyword_count)
        self.writer.append("fields/keywords.offsets", keyword_end.astype(self.keyword_offset_type))
        self.keywords += int(keyword_count.sum())
        start = (self.events + history_end - users.length).astype(self.offset_type)
        end = (self.events + history_end).astype(self.offset_type)
        self.writer.append("sequences/visited.start", start[user])
        self.writer.append("sequences/visited.end", end[user])
        self.writer.append("samples/label", impressions.label.astype(np.uint8))
        user_number = (self.users + user).astype(smallest_unsigned(self.size.users - 1))
        self.writer.append("samples/user", user_number)
        if split == "test" and sum(len(c[0]) for c in self.bound_samples) < _MAX_BOUND_SAMPLES:
            self.bound_samples.append(
                (
                    user_number,
                    impressions.label,
                    impressions.log_odds,
                    impressions.without_history,
                )
            )
        self.clicks += int(impressions.label.sum())
        self.events += int(history_end[-1])
        self.users += len(history_end)

    def _ids_of(self, goods: np.ndarray) -> dict[str, np.ndarray]:
        shop, category = self.world.shop[goods], self.world.category[goods]
        return {"goods_id": goods, "shop_id": shop, "cate_id": category}

    def _append_ids(self, column: str, field: str, ids: np.ndarray, *, train: bool) -> None:
        table = self.table[field]
        if train:
            np.add.at(self.counts[table], ids, 1)
        self.writer.append(column, (ids.astype(np.int64) + 1).astype(self.id_type[table]))

    def write_vocabularies(self) -> None:
        """Writes all vocabularies: ids are whole numbers from 0 on."""
        for table, counts in self.counts.items():
            ids = pl.int_range(len(counts), dtype=pl.UInt32, eager=True)
            self.writer.vocabulary(table, ids, counts)

    def origin(self) -> dict[str, Any]:
        """Counts and AUC bounds."""
        user, label, log_odds, without_history = (
            np.concatenate(column)[:_MAX_BOUND_SAMPLES]
            for column in zip(*self.bound_samples, strict=True)
        )

        def auc(scores: np.ndarray) -> float:
            return round(user_auc(user, label, scores).weighted("impressions"), 4)

        samples = {f"{split}_samples": self.size.samples_of(split) for split in SPLITS}
        return {
            **samples,
            "click_rate": round(self.clicks / sum(samples.values()), 4),
            "mean_history": round(self.behaviors / self.size.users, 2),
            "test_user_weighted_auc_bayes": auc(log_odds),
            "test_user_weighted_auc_without_history": auc(without_history),
            "bounds_on_test_samples": len(user),
        }


def _schema(size: Size) -> Schema:
    keywords = size.categories * KEYWORDS_PER_CATEGORY
    table_of_id = {"goods_id": "goods", "shop_id": "shop", "cate_id": "cate"}
    # Ids per table: tables that an ad's field shares with a behaviour's, and all others.
    shared = {"goods": size.goods, "shop": size.shops, "cate": size.categories}
    others = {**PROFILE, "price_level": PRICE_LEVELS, "keywords": keywords, **CONTEXT}

    def fields(names: dict[str, int], group: Group) -> tuple[Field, ...]:
        return tuple(Field(name, name, group) for name in names)

    return Schema(
        tables=tuple(Table(name, n + 1) for name, n in {**shared, **others}.items()),
        fields=(
            *fields(PROFILE, "user"),
            *(Field(name, table, "ad") for name, table in table_of_id.items()),
            Field("price_level", "price_level", "ad"),
            Field("keywords", "keywords", "ad", multi_hot=True),
            *fields(CONTEXT, "context"),
        ),
        sequences=(
            Sequence(
                "visited",
                tuple(BehaviorField(name, table, ad=name) for name, table in table_of_id.items()),
            ),
        ),
    )
