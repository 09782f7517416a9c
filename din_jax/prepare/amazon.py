"""Amazon reviews (the raw files of 2014, 2018 or 2023), prepared by the paper's protocol.

A user's reviews in time order are behaviours b_1 … b_n; the (k+1)-th is predicted from the first k
(section 6.1 of the paper), for every k from 1 to n − 1. Each of these positions gives a positive
sample and one negative sample: a good drawn uniformly from all goods of the reviews file, and drawn
again while it is one that the user has reviewed at any position. This is the authors' rule. It
looks at the user's future, so that no later purchase is ever labelled as a negative.

Positions k ≤ n − 3 are tagged train, k = n − 2 validation, k = n − 1 test. Training on
train+validation is the paper's protocol (k = 1 … n − 2 for training).

The vocabularies are the whole catalogue (negatives are drawn from all of it), so row 0, "unknown",
never occurs and stays the zero vector; only goods without metadata have category 0. Counts are of
the reviews that training sees, those at positions 1 to n − 2 (1-based).

The keys of the lines tell the layout (`din_jax/prepare/amazon_files.py`): the paper's data is that
of 2014. In 2023 a good is a `parent_asin`. A review that stands twice, with equal user, good and
time, counts once: else a good is in the history of its own second review. Reviews of one good at
several times all count.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.prepare.amazon_files import Reviews, read_goods, read_reviews
from din_jax.prepare.origin import lines
from din_jax.prepare.own_history import own_history

NOTED_DUPLICATES = 0.01  # of all reviews; the releases themselves have fewer, or none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument(
        "--reviews", required=True, help="reviews_*_5.json.gz, or NAME.jsonl of 2023: JSON lines"
    )
    parser.add_argument(
        "--meta", required=True, help="meta_*.json.gz, or meta_NAME.jsonl: of the same release"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the negatives (default 0)")


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it."""
    origin = prepare(arguments.reviews, arguments.meta, arguments.out, seed=arguments.seed)
    for line in lines(origin):
        print(line)
    print(f"store written to {arguments.out}")


def prepare(
    reviews: str | Path, meta: str | Path, out: str | Path, *, seed: int = 0
) -> dict[str, Any]:
    """Writes a store from the two raw files.

    Args:
      reviews: JSON lines in a layout of `amazon_files`; gzip or plain. Reviews of a user with equal
        times keep the file's order.
      meta: the goods, one a line, of the same release. The last category of the last path is used.
        Nothing in a line is ever executed.
      out: folder of the store.
      seed: of the negatives.

    Returns:
      Counts, which are also written to the store as its origin.

    Raises:
      DinError: `out` exists; a file is missing, truncated, not a gzip file or of no known layout;
        the files are of two releases; a line is malformed; no good of the reviews is in the
        metadata; a user has reviewed every good, or no user has four reviews.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    read = read_reviews(Path(reviews))
    events = _events(read)
    goods = events.goods
    found = read_goods(Path(meta), goods, read.layout)
    categories_of_goods, categories = _categories(goods, found.category_of)

    n = np.bincount(events.user, minlength=len(events.users))
    if n.max() < 4:
        raise DinError(
            f"{reviews}: no user has more than {n.max()} reviews; training needs four, since a "
            "user's last two positions are for validation and test"
        )
    begin = np.concatenate([[0], np.cumsum(n)])[:-1]
    # k of each event: how many events of the same user come before it.
    k = np.arange(len(events.user)) - begin[events.user]
    reviews_of_user = n[events.user]
    negative = _negatives(events.user, events.good, len(goods), np.random.default_rng(seed))

    # Rows are 1 + index: row 0 is "unknown".
    good_rows = events.good + 1
    category_rows = categories_of_goods[events.good]
    in_training = k < reviews_of_user - 2
    schema = _schema(len(goods) + 1, len(categories) + 1, len(events.users) + 1)
    id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
    offset_type = smallest_unsigned(len(events.user))

    splits: dict[str, tuple[int, int]] = {}
    with StoreWriter(out, schema) as writer:
        writer.append("events/history/item", good_rows.astype(id_type["item"]))
        writer.append("events/history/category", category_rows.astype(id_type["category"]))
        writer.append("events/history.time", events.time)
        written = 0
        for split, positions in (
            ("train", (k >= 1) & (k <= reviews_of_user - 3)),
            ("validation", (k >= 1) & (k == reviews_of_user - 2)),
            ("test", (k >= 1) & (k == reviews_of_user - 1)),
        ):
            chosen = np.flatnonzero(positions)
            # Two samples per position, the positive first.
            user = np.repeat(events.user[chosen], 2)
            ad = np.stack([events.good[chosen], negative[chosen]], axis=1).reshape(-1)
            writer.append("samples/label", np.tile(np.array([1, 0], np.uint8), len(chosen)))
            writer.append("samples/user", user.astype(id_type["user"]))
            writer.append("samples/time", np.repeat(events.time[chosen], 2))
            writer.append("fields/item", (ad + 1).astype(id_type["item"]))
            writer.append("fields/category", categories_of_goods[ad].astype(id_type["category"]))
            writer.append("fields/user_id", (user + 1).astype(id_type["user"]))
            writer.append("sequences/history.start", begin[user].astype(offset_type))
            writer.append("sequences/history.end", np.repeat(chosen, 2).astype(offset_type))
            splits[split] = (written, written + 2 * len(chosen))
            written += 2 * len(chosen)
        writer.vocabulary(
            "item", goods, np.bincount(good_rows[in_training], minlength=len(goods) + 1)[1:]
        )
        writer.titles(
            "item", pl.Series("title", [*map(found.title_of.get, goods)], dtype=pl.String)
        )
        writer.vocabulary(
            "category",
            categories,
            np.bincount(category_rows[in_training], minlength=len(categories) + 1)[1:],
        )
        writer.vocabulary(
            "user", events.users, np.bincount(events.user[in_training], minlength=len(n))
        )
        predicted = np.flatnonzero(k >= 1)
        own = own_history(
            np.repeat([1, 0], len(predicted)),
            np.concatenate([good_rows[predicted], negative[predicted] + 1]),
            np.tile(begin[events.user[predicted]], 2),
            np.tile(predicted, 2),
            good_rows,
        )
        notes = [*filter(None, [own.note()])]
        if events.duplicates >= NOTED_DUPLICATES * len(read.rows):
            notes.append(
                f"{events.duplicates:,} of {len(read.rows):,} reviews stand twice, with equal "
                "user, good and time, and count once"
            )
        origin = {
            "preparation": "amazon",
            "layout": found.layout,
            "seed": seed,
            "reviews": len(events.user),
            "duplicate_reviews": events.duplicates,
            "users": len(events.users),
            "goods": len(goods),
            "categories": len(categories),
            "goods_without_category": int((categories_of_goods == 0).sum()),
            "users_without_samples": int((n < 2).sum()),
            "train_samples": splits["train"][1] - splits["train"][0],
            "validation_samples": splits["validation"][1] - splits["validation"][0],
            "test_samples": splits["test"][1] - splits["test"][0],
            "longest_history": int(n.max() - 1),
            "ad_in_own_history": str(own),
            "unknown_row": "the zero vector: the vocabularies are the whole catalogue",
            "notes": notes,
        }
        writer.finish(splits, origin)
    return origin


def _schema(goods: int, categories: int, users: int) -> Schema:
    return Schema(
        tables=(Table("item", goods), Table("category", categories), Table("user", users)),
        fields=(
            Field("user_id", "user", "user", optional=True),
            Field("item", "item", "ad"),
            Field("category", "category", "ad"),
        ),
        sequences=(
            Sequence(
                "history",
                (
                    BehaviorField("item", "item", ad="item"),
                    BehaviorField("category", "category", ad="category"),
                ),
                times=True,
            ),
        ),
    )


class _Events(NamedTuple):
    """All reviews, users one after the other, in time order."""

    user: np.ndarray  # index into users
    good: np.ndarray  # index into goods
    time: np.ndarray  # seconds
    users: pl.Series
    goods: pl.Series
    duplicates: int  # number of reviews left out


def _events(reviews: Reviews) -> _Events:
    goods = reviews.rows["good"].unique().sort()
    users = reviews.rows["user"].unique().sort()
    # A stable sort: reviews with equal user and time keep the file's order.
    ordered = reviews.rows.sort("user", "time", maintain_order=True)
    user = ordered["user"].cast(pl.Enum(users)).to_physical().to_numpy().astype(np.int64)
    good = ordered["good"].cast(pl.Enum(goods)).to_physical().to_numpy().astype(np.int64)
    time = ordered["time"].to_numpy()
    distinct = _first_distinct(user, time, good)
    return _Events(
        user=user[distinct],
        good=good[distinct],
        time=time[distinct] // reviews.ticks,
        users=users,
        goods=goods,
        duplicates=int((~distinct).sum()),
    )


def _first_distinct(*columns: np.ndarray) -> np.ndarray:
    """bool [N] whether no earlier row has the same values."""
    order = np.lexsort(columns)  # stable
    differs = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    first = np.ones(len(order), bool)
    first[order[1:]] = differs
    return first


def _negatives(
    user: np.ndarray, good: np.ndarray, goods: int, rng: np.random.Generator
) -> np.ndarray:
    """One good per review, uniform over all goods that the user has never reviewed."""
    reviewed = np.unique(user * goods + good)
    if np.bincount(reviewed // goods).max() >= goods:
        raise DinError(
            f"a user has reviewed all {goods} goods, so there is no negative; leave the user out"
        )
    negative = rng.integers(goods, size=len(user))
    pending = np.arange(len(user))  # reviews whose negative may be a reviewed good
    while len(pending):
        pair = user[pending] * goods + negative[pending]
        index = np.minimum(np.searchsorted(reviewed, pair), len(reviewed) - 1)
        pending = pending[reviewed[index] == pair]
        negative[pending] = rng.integers(goods, size=len(pending))
    return negative


def _categories(goods: pl.Series, category_of: dict[str, str]) -> tuple[np.ndarray, pl.Series]:
    """The category row of each good (0 if it has no category), and the categories in row order."""
    names = [category_of.get(good) for good in goods]
    categories = pl.Series("id", sorted({c for c in names if c is not None}), dtype=pl.String)
    row = {category: i for i, category in enumerate(categories, start=1)}
    return np.array([0 if c is None else row[c] for c in names]), categories
