"""Amazon reviews (the raw files of 2014), prepared by the paper's protocol.

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
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.prepare import text_files

_ASIN = re.compile(rb"""['"]asin['"]: *(?:'([^'\\]*)'|"([^"\\]*)")""")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument("--reviews", required=True, help="reviews_*_5.json.gz (JSON lines)")
    parser.add_argument("--meta", required=True, help="meta_*.json.gz (Python-literal lines)")
    parser.add_argument("--seed", type=int, default=0, help="of the negatives (default 0)")


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it."""
    origin = prepare(arguments.reviews, arguments.meta, arguments.out, seed=arguments.seed)
    for name, value in origin.items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value}")
    print(f"store written to {arguments.out}")


def prepare(
    reviews: str | Path, meta: str | Path, out: str | Path, *, seed: int = 0
) -> dict[str, Any]:
    """Writes a store from the two raw files.

    Args:
      reviews: JSON lines with `reviewerID`, `asin`, `unixReviewTime`; gzip or plain. Reviews of a
        user with equal times keep the file's order.
      meta: Python-literal lines with `asin` and `categories`; the last category of the last path
        is used. The lines are parsed as literals: nothing in them is ever executed.
      out: folder of the store.
      seed: of the negatives.

    Returns:
      Counts, which are also written to the store as its origin.

    Raises:
      DinError: `out` exists; a file is missing, truncated or not a gzip file; a line is malformed;
        no good of the reviews is in the metadata; a user has reviewed every good, or no user has
        four reviews.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    events = _events(_read_reviews(Path(reviews)))
    goods = events.goods
    categories_of_goods, categories = _categories(goods, _read_meta(Path(meta), goods))

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
        writer.vocabulary(
            "category",
            categories,
            np.bincount(category_rows[in_training], minlength=len(categories) + 1)[1:],
        )
        writer.vocabulary(
            "user", events.users, np.bincount(events.user[in_training], minlength=len(n))
        )
        origin = {
            "preparation": "amazon",
            "seed": seed,
            "reviews": len(events.user),
            "users": len(events.users),
            "goods": len(goods),
            "categories": len(categories),
            "goods_without_category": int((categories_of_goods == 0).sum()),
            "users_without_samples": int((n < 2).sum()),
            "train_samples": splits["train"][1] - splits["train"][0],
            "validation_samples": splits["validation"][1] - splits["validation"][0],
            "test_samples": splits["test"][1] - splits["test"][0],
            "longest_history": int(n.max() - 1),
            "unknown_row": "the zero vector: the vocabularies are the whole catalogue",
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


def _events(reviews: pl.DataFrame) -> _Events:
    goods = reviews["asin"].unique().sort()
    users = reviews["reviewerID"].unique().sort()
    # A stable sort: reviews with equal user and time keep the file's order.
    ordered = reviews.sort("reviewerID", "unixReviewTime", maintain_order=True)
    return _Events(
        user=ordered["reviewerID"].cast(pl.Enum(users)).to_physical().to_numpy().astype(np.int64),
        good=ordered["asin"].cast(pl.Enum(goods)).to_physical().to_numpy().astype(np.int64),
        time=ordered["unixReviewTime"].to_numpy(),
        users=users,
        goods=goods,
    )


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


def _read_reviews(path: Path) -> pl.DataFrame:
    columns = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64}
    frames = []
    for first_line, block in _blocks(path):
        try:
            frame = pl.read_ndjson(io.BytesIO(block), schema=columns)
            complete = frame.null_count().sum_horizontal()[0] == 0
        except pl.exceptions.PolarsError:
            complete = False
        if not complete:
            _raise_first_bad_review(path, first_line, block)
        frames.append(frame)
    if not sum(map(len, frames)):
        raise DinError(f"{path}: contains no reviews; expected JSON lines, one per review")
    return pl.concat(frames)


def _raise_first_bad_review(path: Path, first_line: int, block: bytes) -> None:
    for number, line in enumerate(block.split(b"\n"), start=first_line):
        if not line.strip():
            continue
        try:
            review = json.loads(line, parse_constant=_reject_constant)
            time = review.get("unixReviewTime")
            is_review = (
                isinstance(review.get("reviewerID"), str)
                and isinstance(review.get("asin"), str)
                and isinstance(time, int)
                and not isinstance(time, bool)
                and -(2**63) <= time < 2**63
            )
        except (ValueError, AttributeError):
            is_review = False
        if not is_review:
            raise DinError(
                f"{path}, line {number}: {text_files.quoted(line)} is not a review; expected a "
                "JSON object with reviewerID and asin (text) and unixReviewTime (whole seconds). "
                "Fix or delete the line"
            )
    raise DinError(
        f"{path}, a line from {first_line} on: cannot be read as JSON lines; expected UTF-8 "
        "without a byte order mark, and a line feed after each object"
    )


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_meta(path: Path, goods: pl.Series) -> dict[str, str]:
    """{good: the last category of its last path}, for the goods in `goods`."""
    reviewed = set(goods)
    reviewed_bytes = {good.encode() for good in reviewed}
    category: dict[str, str] = {}
    for first_line, block in _blocks(path):
        for number, line in enumerate(block.split(b"\n"), start=first_line):
            asins = [a or b for a, b in _ASIN.findall(line)]
            if not line.strip() or (asins and reviewed_bytes.isdisjoint(asins)):
                continue  # most goods are in no review, and parsing a line takes 50 times as long
            try:
                good = ast.literal_eval(line.decode().strip())
                paths = good.get("categories") or []
                if not all(isinstance(name, str) for path in paths for name in [*path]) or any(
                    isinstance(path, str) for path in paths
                ):
                    raise TypeError("categories")
                if good["asin"] in reviewed and paths and paths[-1]:
                    category[good["asin"]] = paths[-1][-1]
            except (ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError,
                    MemoryError, RecursionError) as error:  # fmt: skip
                raise DinError(
                    f"{path}, line {number}: {text_files.quoted(line)} is not a good; expected a "
                    "Python literal like {'asin': '…', 'categories': [['…', '…']]}. "
                    "Fix or delete the line"
                ) from error
    if not category:
        raise DinError(
            f"{path}: has a category for none of the {len(goods):,} goods of the reviews; "
            "are both files of the same product group?"
        )
    return category


def _blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    if path.suffix == ".gz" and not text_files.is_gzip(path):
        raise DinError(f"{path}: named .gz, but it is not a gzip file; rename or compress it")
    return text_files.blocks(path)
