"""A plain click log, as a newcomer has one: who saw what and when, and whether they clicked.

Users and goods are known by their ids. An item has a category, a price and a few tags, and an
impression has a time. A few users are very active and a few goods very popular: how much a user
does is log-normal, and a good's popularity falls as 1 / rank. Each user has three hidden tastes.
Some of the ads are chosen for the user, from these tastes; the others are drawn from all goods. A
click depends on one thing only: whether the ad's trait is one of the user's tastes.

With short histories the trait is the category, and a history is what the log itself holds: the
user's earlier clicks, from none on. With long ones the trait is one of the item's tags, and nothing
tells which; the category says nothing. Users have viewed items before the log begins, very few or
very many, so that histories reach a thousand behaviours and more.

The tables are those of a log of one's own, and `prepare log` makes the store of them by a spec.
With `--raw FOLDER` they are kept:

    python -m din_jax.prepare planted --shape log --raw data/raw --out data/log
    python -m din_jax.prepare log --spec data/raw/spec.toml --out data/again

Train is the first ten of fourteen days, validation the next two, and test the last two.

The origin has these AUCs on test:

- auc_true_probability: of the click's probability, for which the tastes must be known;
- auc_bayes_history: of P(click | history, ad), the most that reading the history can reach
  (`din_jax/prepare/click_log_bounds.py`);
- auc_bayes_impressions: of the same given also the ads that the user saw before and did not click;
- auc_history_count, auc_history_share: of how many of the history's behaviours have the ad's trait,
  and which share of them.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.data.store_writer import check_free
from din_jax.errors import DinError
from din_jax.metrics import auc
from din_jax.prepare import log as own_log
from din_jax.prepare.click_log_bounds import TASTES, Bayes, Rates
from din_jax.prepare.goods_sampler import GoodsSampler
from din_jax.prepare.log.report import report as log_report

DAYS = 14
DAYS_BEFORE = 60  # in which the views before the log lie
VALIDATION_DAY, TEST_DAY = 10, 12  # the first of validation and of test, from 0 on
BEGIN = datetime.datetime(2024, 5, 1)
CATEGORIES = 40
PRICE_BUCKETS = 10
_DAY = 24 * 3600 * 1000  # milliseconds


class Kind(NamedTuple):
    """One of the two kinds of log, with its default size."""

    samples: int
    users: int
    goods: int
    trait: str
    tags: int
    tags_per_item: tuple[int, int]
    activity: float  # standard deviation of the logarithm of a user's impressions
    views: float  # median of a user's views before the log; 0: there are none
    views_spread: float  # standard deviation of their logarithm
    rates: Rates


KINDS = {
    "short": Kind(80_000, 3000, 2000, "category", 60, (1, 3), 1.3, 0, 0, Rates(0.35, 0.08, 0.3, 0)),
    "long": Kind(
        200_000, 5000, 3000, "main tag", 40, (2, 5), 0.8, 21, 1.3, Rates(0.35, 0.06, 0.3, 0.1)
    ),
}


class Log(NamedTuple):
    """A generated log.

    Attributes:
      impressions, items: the tables, impressions in the order of time.
      behaviors: the table of views and clicks; None where the clicks are the history.
      trait: [impressions] the trait of the ad.
      probability: [impressions] the true probability of a click.
      user: [impressions] the user's number.
      views: [users, traits] each user's views before the log.
      popularity: [traits] which share of the untargeted impressions each has.
      tastes: [users, TASTES] traits.
    """

    impressions: pl.DataFrame
    items: pl.DataFrame
    behaviors: pl.DataFrame | None
    trait: np.ndarray
    probability: np.ndarray
    user: np.ndarray
    views: np.ndarray
    popularity: np.ndarray
    tastes: np.ndarray


def prepare(
    out: str | Path,
    *,
    seed: int = 0,
    samples: int | None = None,
    users: int | None = None,
    goods: int | None = None,
    histories: str = "short",
    raw: str | Path | None = None,
) -> dict[str, Any]:
    """Generates a log and writes its store; equal arguments give equal stores.

    Args:
      out: folder of the store.
      seed: of everything random.
      samples: impressions of all splits; by default 80,000, or 200,000 with long histories.
      users: by default 3,000, or 5,000.
      goods: by default 2,000, or 3,000.
      histories: "short" or "long".
      raw: a new folder that keeps the tables and their spec; by default they are temporary.

    Returns:
      The origin of the store: that of `prepare log`, and under "planted" click rates and AUCs.

    Raises:
      DinError: `out` or `raw` exists, or an argument is out of range.
    """
    check_free(out)
    if raw is not None:
        check_free(raw)
    kind = KINDS[histories]
    kind = kind._replace(
        samples=kind.samples if samples is None else samples,
        users=kind.users if users is None else users,
        goods=kind.goods if goods is None else goods,
    )
    for name, value, minimum in (
        ("seed", seed, 0),
        ("samples", kind.samples, 1000),
        ("users", kind.users, 10),
        ("goods", kind.goods, CATEGORIES),
    ):
        if value < minimum:
            raise DinError(f"--{name} {value}: expected {minimum:,} or more")
    generated = generate(kind, seed)
    facts = {
        "planted": {"shape": "log", "histories": histories, "seed": seed, **bounds(generated, kind)}
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if raw is None else raw)
        write_tables(generated, folder)
        return own_log.prepare(folder / "spec.toml", out, seed=seed, origin=facts)


def report(origin: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a store's origin."""
    yield from log_report(origin)
    for name, value in origin["planted"].items():
        yield f"{name:<28}{value}"


def generate(kind: Kind, seed: int) -> Log:
    """Draws the goods, the users and what they do."""
    rng = np.random.default_rng(seed)
    goods, users, rates = kind.goods, kind.users, kind.rates

    # Goods. Each trait has equally many, and an id tells nothing about popularity or trait.
    trait_of_good = rng.permutation(np.arange(goods) % _traits(kind))
    weight = 1 / (1.0 + rng.permutation(goods))
    popularity = np.bincount(trait_of_good, weight) / weight.sum()
    by_tag = kind.trait == "main tag"
    category = rng.integers(CATEGORIES, size=goods) if by_tag else trait_of_good
    sampler = GoodsSampler(trait_of_good, weight)
    items = pl.DataFrame(
        {
            "item_id": _item_ids(np.arange(goods)),
            "category": pl.Series([f"category{c}" for c in category.tolist()]),
            "price": rng.lognormal(3, 1, goods).round(2),
            "tags": _tags(rng, kind, trait_of_good if by_tag else None),
        }
    )

    # Users.
    tastes = rng.random((users, _traits(kind))).argsort(axis=1)[:, :TASTES]
    activity = np.exp(kind.activity * rng.standard_normal(users))
    views = np.floor(kind.views * np.exp(kind.views_spread * rng.standard_normal(users)))
    cumulative_of_tastes = np.cumsum(popularity[tastes], axis=1)

    def draw_goods(user: np.ndarray, for_user: float) -> np.ndarray:
        """One good for each user, the share `for_user` from the user's tastes."""
        height = rng.random(len(user)) * cumulative_of_tastes[user, -1]
        column = (height[:, None] >= cumulative_of_tastes[user, :-1]).sum(axis=1)
        return np.where(
            rng.random(len(user)) < for_user,
            sampler.from_bundles(rng, tastes[user, column]),
            sampler.from_all(rng, len(user)),
        )

    def draw_times(count: int, days: int) -> np.ndarray:
        """Distinct milliseconds, ascending: no order of equal times has to be defined."""
        return np.sort(rng.choice(days * _DAY, count, replace=False))

    # Impressions.
    user = rng.choice(users, kind.samples, p=activity / activity.sum())
    good = draw_goods(user, rates.ads_for_user)
    trait = trait_of_good[good]
    matches = (tastes[user] == trait[:, None]).any(axis=1)
    probability = np.where(matches, rates.click_of_taste, rates.click_of_other)
    click = rng.random(kind.samples) < probability
    time = draw_times(kind.samples, DAYS)
    impressions = pl.DataFrame(
        {
            "user_id": _user_ids(user),
            "item_id": _item_ids(good),
            "time": _times(time),
            "hour": pl.Series(time % _DAY * 24 // _DAY),
            "click": pl.Series(click.astype(np.int8)),
        }
    )

    # What users did before the log.
    viewer = np.repeat(np.arange(users), views.astype(np.int64))
    viewed = draw_goods(viewer, rates.views_for_user)
    views_of_trait = np.zeros((users, _traits(kind)), np.int64)
    np.add.at(views_of_trait, (viewer, trait_of_good[viewed]), 1)
    behaviors = None
    if kind.views:
        earlier = rng.permutation(draw_times(len(viewer), DAYS_BEFORE)) - DAYS_BEFORE * _DAY
        views_table = pl.DataFrame(
            {
                "user_id": _user_ids(viewer),
                "item_id": _item_ids(viewed),
                "time": _times(earlier),
            }
        )
        clicked = impressions.filter(pl.col("click") == 1)
        behaviors = pl.concat([views_table, clicked.select(views_table.columns)]).sort("time")
    return Log(
        impressions, items, behaviors, trait, probability, user, views_of_trait, popularity, tastes
    )


def write_tables(generated: Log, folder: Path) -> None:
    """Writes the tables as Parquet files, and `spec.toml`, which describes them."""
    folder.mkdir(parents=True, exist_ok=True)
    generated.impressions.write_parquet(folder / "impressions.parquet")
    generated.items.write_parquet(folder / "items.parquet")
    behaviors = ""
    if generated.behaviors is not None:
        generated.behaviors.write_parquet(folder / "behaviors.parquet")
        behaviors = _BEHAVIORS
    begins = [BEGIN + datetime.timedelta(days) for days in (VALIDATION_DAY, TEST_DAY)]
    spec = _SPEC.format(
        behaviors=behaviors, validation=begins[0], test=begins[1], buckets=PRICE_BUCKETS
    )
    (folder / "spec.toml").write_text(spec, encoding="utf-8")


def bounds(generated: Log, kind: Kind) -> dict[str, Any]:
    """The click rates, and the AUCs on test of what can be known of a click."""
    user, trait, click = generated.user, generated.trait, generated.impressions["click"].to_numpy()
    begin = BEGIN + datetime.timedelta(TEST_DAY)
    test = (generated.impressions["time"] >= begin).to_numpy()
    clicks, passed = (
        _earlier(user, trait, counted, len(generated.popularity))[test]
        for counted in (click, 1 - click)
    )
    views = generated.views[user[test]]
    ad = trait[test]
    history = views + clicks
    count = np.take_along_axis(history, ad[:, None], axis=1)[:, 0]
    bayes = Bayes(generated.popularity, kind.rates)
    scores = {
        "true_probability": generated.probability[test],
        "bayes_history": bayes.of_history(views, clicks, ad),
        "bayes_impressions": bayes.of_impressions(views, clicks, passed, ad),
        "history_count": count,
        "history_share": count / np.maximum(history.sum(axis=1), 1),
    }
    taste = generated.probability == kind.rates.click_of_taste
    return {
        "click_rate": round(float(click.mean()), 4),
        "click_rate_of_tastes": round(float(click[taste].mean()), 4),
        "click_rate_of_others": round(float(click[~taste].mean()), 4),
        "impressions_of_tastes": round(float(taste.mean()), 4),
        **{f"auc_{name}": round(auc(click[test], score), 4) for name, score in scores.items()},
    }


def _earlier(user: np.ndarray, trait: np.ndarray, counted: np.ndarray, traits: int) -> np.ndarray:
    """[impressions, traits] how many counted impressions the user had before, of each trait."""
    order = np.argsort(user, kind="stable")  # by user, then by time
    event = np.zeros((len(user), traits), np.int32)
    event[np.arange(len(user)), trait[order]] = counted[order]
    before = np.cumsum(event, axis=0, dtype=np.int32) - event
    first = np.searchsorted(user[order], user[order], side="left")
    result = np.empty_like(before)
    result[order] = before - before[first]
    return result


def _traits(kind: Kind) -> int:
    return kind.tags if kind.trait == "main tag" else CATEGORIES


def _tags(rng: np.random.Generator, kind: Kind, main: np.ndarray | None) -> pl.Series:
    """A list of tags for each good, with the main one if it is given."""
    goods, (least, most) = kind.goods, kind.tags_per_item
    order = rng.random((goods, kind.tags))
    if main is not None:
        order[np.arange(goods), main] = -1
    tags = order.argsort(axis=1)
    count = rng.integers(least, most + 1, size=goods)
    # Sorted, so that the main tag has no place of its own.
    return pl.Series(
        [[f"tag{t}" for t in sorted(row[:n])] for row, n in zip(tags.tolist(), count, strict=True)],
        dtype=pl.List(pl.String),
    )


def _user_ids(user: np.ndarray) -> pl.Series:
    return pl.Series(user + 100_001)


def _item_ids(good: np.ndarray) -> pl.Series:
    return pl.Series(good + 1)


def _times(milliseconds: np.ndarray) -> pl.Series:
    begin = int(BEGIN.replace(tzinfo=datetime.UTC).timestamp() * 1000)
    return pl.Series(milliseconds + begin).cast(pl.Datetime("ms"))


_SPEC = """\
# python -m din_jax.prepare log --spec spec.toml --out STORE

[impressions]
path = "impressions.parquet"
label = "click"
user = "user_id"
item = "item_id"
time = "time"
context = ["hour"]
{behaviors}
[items]
path = "items.parquet"
item = "item_id"
columns = ["category", "price", "tags"]

[tables.price]
buckets = {buckets}

[split]
by = "time"
validation = {validation}
test = {test}
"""
_BEHAVIORS = """
[behaviours]
path = "behaviors.parquet"
user = "user_id"
item = "item_id"
time = "time"
"""
