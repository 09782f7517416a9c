"""Synthetic impressions whose clicks are caused by the behaviours that the ad activates.

Goods lie in categories. Categories that are bought together (tents and sleeping bags) form bundles.
A user has several latent interests, each a bundle, and a history of behaviours drawn from them,
with some noise. An impression is clicked with probability sigmoid(z), where

    z = bias + popularity of the good + hour + taste · log2(1 + c) + noise,

and c is the number of the user's behaviours in the categories of the ad's bundle: a few behaviours
matter for a given ad, the others do not. No embedding and no attention generates the data: clicks
depend on co-purchase between categories, popularity, hour and noise.

With many goods in a category each id is rare, and a model that keeps fitting ids learns the noise
of the few samples that contain each (section 6.5 of the paper).

With `taste` 0 the ad activates nothing: clicks depend on popularity, hour and noise alone.

The report gives two bounds on the user-weighted AUC. "Bayes" is the AUC of the click probability
given everything but the noise: no model beats it on average. "Popularity" is the AUC of the effects
of good and hour alone: what a model reaches that ignores the history.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.metrics import user_auc
from din_jax.prepare import click_log, industrial
from din_jax.prepare.goods_sampler import GoodsSampler, sample_interests
from din_jax.prepare.own_history import own_history

BUNDLES = 60
CATEGORIES_PER_BUNDLE = 4
GOODS_PER_CATEGORY = 12
SHOPS = 150
AGES = 6
HOURS = 8
INTERESTS = (3, 4, 5, 6)  # how many interests a user may have
MEAN_HISTORY = 30
HISTORY_NOISE = 0.2  # fraction of behaviours that come from no interest
TRAIN_IMPRESSIONS = 20  # per user
VALIDATION_IMPRESSIONS = 4
TEST_IMPRESSIONS = 6
MATCHED_ADS = 0.5  # fraction of impressions whose ad lies in one of the user's interests
BIAS = -2.0
POPULARITY_STDDEV = 0.6
HOUR_STDDEV = 0.3
NOISE_STDDEV = 0.5
TASTE = 0.8
# The key of a store's origin that says which behaviours cause a click: those whose id of `field` is
# of the same group as the ad's; `group_of_id` has the group of rows 1, 2, … of its table.
CAUSE = "cause"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument(
        "--shape",
        choices=tuple(_FLAGS),
        default="quickstart",
        help="quickstart (the default): small and strong signals, as described above; industrial: "
        "the feature groups of the paper's table 1, weak signals, any size "
        "(din_jax/prepare/industrial); log: a plain click log, through `prepare log` "
        "(din_jax/prepare/click_log.py)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything (default 0)")
    parser.add_argument(
        "--users",
        type=int,
        help="how many users (default 6000; industrial: a fortieth of the samples; log: 3000, or "
        "5000 with long histories)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        help=f"industrial: training samples (default {industrial.SAMPLES:,}), while validation has "
        "an eighth of that and test a quarter; log: samples of all splits (default 80,000, or "
        "200,000 with long histories)",
    )
    parser.add_argument(
        "--goods",
        type=int,
        help=f"how many goods (industrial: default 1 per {industrial.SAMPLES_PER_GOOD} training "
        "samples; log: default 2000, or 3000 with long histories)",
    )
    quickstart = parser.add_argument_group("quickstart")
    quickstart.add_argument(
        "--goods-per-category",
        type=int,
        help=f"how fine-grained the goods are (default {GOODS_PER_CATEGORY})",
    )
    quickstart.add_argument(
        "--taste",
        type=float,
        help=f"strength of the activated behaviours; 0: the ad activates nothing (default {TASTE})",
    )
    shaped = parser.add_argument_group("industrial")
    for name, default in (
        ("shops", f"1 per {industrial.GOODS_PER_SHOP} goods"),
        ("categories", "about the square root of the goods"),
    ):
        shaped.add_argument(f"--{name}", type=int, help=f"how many {name} (default {default})")
    plain = parser.add_argument_group("log")
    plain.add_argument(
        "--histories",
        choices=tuple(click_log.KINDS),
        help="short (the default): the clicks of the log, caused by the item's category; long: "
        "visits before the log too, and clicks are caused by one of the item's tags",
    )
    plain.add_argument("--raw", help="a new folder that keeps the tables of the log and their spec")


_FLAGS = {
    "quickstart": ("users", "taste", "goods_per_category"),
    "industrial": ("users", "samples", "goods", "shops", "categories"),
    "log": ("users", "samples", "goods", "histories", "raw"),
}


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it.

    Raises:
      DinError: a flag of the other shape is given, or `prepare` of the shape raises it.
    """
    shape = arguments.shape
    given = {
        name: getattr(arguments, name)
        for name in dict.fromkeys(sum(_FLAGS.values(), ()))
        if getattr(arguments, name) is not None
    }
    for name in given:
        if name not in _FLAGS[shape]:
            raise DinError(
                f"--{name.replace('_', '-')} is not a flag of --shape {shape}, whose flags are: "
                + ", ".join(f"--{flag.replace('_', '-')}" for flag in _FLAGS[shape])
            )
    shapes: dict[str, Callable[..., dict[str, Any]]] = {
        "quickstart": prepare,
        "industrial": industrial.prepare,
        "log": click_log.prepare,
    }
    origin = shapes[shape](arguments.out, seed=arguments.seed, **given)
    if shape == "log":
        print("\n".join(click_log.report(origin)))
    else:
        for name, value in origin.items():
            if name != CAUSE:
                print(f"{name:<40}{value}")
    print(f"store written to {arguments.out}")


def prepare(
    out: str | Path,
    *,
    seed: int = 0,
    users: int = 6000,
    taste: float = TASTE,
    goods_per_category: int = GOODS_PER_CATEGORY,
) -> dict[str, Any]:
    """Generates and writes a store; equal arguments give equal stores.

    Args:
      out: folder of the store.
      seed: of everything random.
      users: how many users; each has TRAIN_, VALIDATION_ and TEST_IMPRESSIONS impressions.
      taste: weight of the activated behaviours in a click's log odds.
      goods_per_category: how many goods each of the categories has.

    Returns:
      Counts and AUC bounds, which are also written to the store as its origin.

    Raises:
      DinError: `out` exists, or an argument is out of range.
    """
    check_free(out)
    if seed < 0 or users < 1 or not np.isfinite(taste) or goods_per_category < 1:
        raise DinError(
            f"--seed {seed} --users {users} --taste {taste} --goods-per-category "
            f"{goods_per_category}: expected a seed of 0 or more, at least 1 user, a finite taste, "
            "and at least 1 good"
        )
    rng = np.random.default_rng(seed)
    categories = BUNDLES * CATEGORIES_PER_BUNDLE
    goods = categories * goods_per_category

    # Goods. Rows are shuffled, so that a row's number tells a model nothing about its bundle.
    bundle_of_category = rng.permutation(np.arange(categories) % BUNDLES)
    category_of_good = rng.permutation(np.arange(goods) % categories)
    shop_of_good = rng.integers(SHOPS, size=goods)
    popularity = POPULARITY_STDDEV * rng.standard_normal(goods)
    bundle_of_good = bundle_of_category[category_of_good]
    sampler = GoodsSampler(bundle_of_good, np.exp(popularity))

    # Users and their histories.
    age = rng.integers(AGES, size=users)
    interest_count = rng.choice(INTERESTS, size=users)
    interests = rng.random((users, BUNDLES)).argsort(axis=1)[:, : max(INTERESTS)]
    length = rng.geometric(1 / MEAN_HISTORY, size=users)
    begin = np.concatenate([[0], np.cumsum(length)])
    user_of_event = np.repeat(np.arange(users), length)
    history = np.where(
        rng.random(len(user_of_event)) < HISTORY_NOISE,
        sampler.from_all(rng, len(user_of_event)),
        sampler.from_bundles(rng, sample_interests(rng, interests, interest_count, user_of_event)),
    )

    # Impressions.
    per_user = TRAIN_IMPRESSIONS + VALIDATION_IMPRESSIONS + TEST_IMPRESSIONS
    user = np.repeat(np.arange(users), per_user)
    ad = np.where(
        rng.random(len(user)) < MATCHED_ADS,
        sampler.from_bundles(rng, sample_interests(rng, interests, interest_count, user)),
        sampler.from_all(rng, len(user)),
    )
    hour = rng.integers(HOURS, size=len(user))
    hour_effect = HOUR_STDDEV * rng.standard_normal(HOURS)
    visits = np.zeros((users, BUNDLES), np.int64)
    np.add.at(visits, (user_of_event, bundle_of_good[history]), 1)
    activated = np.log2(1 + visits[user, bundle_of_good[ad]])
    without_history = popularity[ad] + hour_effect[hour]
    log_odds = BIAS + without_history + taste * activated
    noise = NOISE_STDDEV * rng.standard_normal(len(user))
    label = rng.random(len(user)) < 1 / (1 + np.exp(-(log_odds + noise)))

    # The impressions of each user, in order, are train, then validation, then test.
    position = np.arange(len(user)) % per_user
    stops = np.cumsum([TRAIN_IMPRESSIONS, VALIDATION_IMPRESSIONS, TEST_IMPRESSIONS])
    split_of = np.searchsorted(stops, position, side="right")
    order = np.argsort(split_of, kind="stable")
    bounds = [0, *(users * stops).tolist()]
    test = order[bounds[2] :]
    schema = _schema(goods + 1, categories + 1, SHOPS + 1, users + 1)
    origin: dict[str, Any] = {
        "preparation": "planted",
        "seed": seed,
        "users": users,
        "taste": taste,
        "goods": goods,
        "categories": categories,
        "samples": len(user),
        "click_rate": round(float(label.mean()), 4),
        "mean_history": round(float(length.mean()), 2),
        "test_user_weighted_auc_bayes": round(
            user_auc(user[test], label[test], log_odds[test]).weighted("impressions"), 4
        ),
        "test_user_weighted_auc_popularity": round(
            user_auc(user[test], label[test], without_history[test]).weighted("impressions"), 4
        ),
        "ad_in_own_history": str(
            own_history(label, ad + 1, begin[user], begin[user + 1], history + 1)
        ),
        "unknown_row": "the zero vector: the vocabularies are the whole catalogue",
        CAUSE: {"field": "category", "group_of_id": bundle_of_category.tolist()},
    }

    train = order[: bounds[1]]
    columns = {"item": np.arange(goods), "category": category_of_good, "shop": shop_of_good}
    with StoreWriter(out, schema) as writer:
        for name, of_good in columns.items():
            rows = of_good + 1
            dtype = smallest_unsigned(schema.rows(name) - 1)
            writer.append(f"events/history/{name}", rows[history].astype(dtype))
            writer.append(f"fields/{name}", rows[ad[order]].astype(dtype))
            counts = np.bincount(
                np.concatenate([of_good[history], of_good[ad[train]]]),
                minlength=schema.rows(name) - 1,
            )
            writer.vocabulary(name, _names(name, len(counts)), counts)
        writer.titles("item", _titles(category_of_good, bundle_of_category))
        for name, values in {"age": age[user], "hour": hour}.items():
            writer.append(f"fields/{name}", (values[order] + 1).astype(np.uint8))
            counts = np.bincount(values[train], minlength=schema.rows(name) - 1)
            writer.vocabulary(name, _names(name, len(counts)), counts)
        writer.append("fields/user_id", (user[order] + 1).astype(smallest_unsigned(users)))
        writer.vocabulary("user", _names("user", users), np.bincount(user[train]))
        writer.append("samples/label", label[order].astype(np.uint8))
        writer.append("samples/user", user[order].astype(smallest_unsigned(users)))
        offset_type = smallest_unsigned(len(history))
        writer.append("sequences/history.start", begin[user[order]].astype(offset_type))
        writer.append("sequences/history.end", begin[user[order] + 1].astype(offset_type))
        writer.finish(
            {
                "train": (bounds[0], bounds[1]),
                "validation": (bounds[1], bounds[2]),
                "test": (bounds[2], bounds[3]),
            },
            origin,
        )
    return origin


def _schema(goods: int, categories: int, shops: int, users: int) -> Schema:
    names = ("item", "shop", "category")
    return Schema(
        tables=(
            Table("item", goods),
            Table("shop", shops),
            Table("category", categories),
            Table("age", AGES + 1),
            Table("hour", HOURS + 1),
            Table("user", users),
        ),
        fields=(
            Field("age", "age", "user"),
            Field("user_id", "user", "user", optional=True),
            *(Field(name, name, "ad") for name in names),
            Field("hour", "hour", "context"),
        ),
        sequences=(
            Sequence("history", tuple(BehaviorField(name, name, ad=name) for name in names)),
        ),
    )


def _names(prefix: str, count: int) -> pl.Series:
    return pl.Series("id", [f"{prefix}{i}" for i in range(count)])


def _titles(category_of_good: npt.NDArray[Any], bundle_of_category: npt.NDArray[Any]) -> pl.Series:
    """The goods' display names, by which people see what belongs together."""
    return pl.Series(
        "title",
        [
            f"good {good} (bundle {bundle_of_category[category]}, category {category})"
            for good, category in enumerate(category_of_good.tolist())
        ],
    )
