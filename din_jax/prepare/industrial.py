"""Synthetic impressions of the shape of table 1 of the paper, of any size.

Sixteen groups of features, counted as section 6.1 counts them: a group is a field whose vector goes
into the MLP, so that with D = 12 the MLP's input is 16 · 12 = 192 wide, as the paper's is. They are
five of the profile, three of the behaviours (one sequence with three aligned fields), five of the
ad (one with several values) and three of the context. There is no field of the user's id: a table
of all users would grow with them. `samples/user` groups Eq. 10.

Goods lie in categories, those that are bought together form bundles, and a shop sells goods of one
bundle. How often a good is visited and shown falls as a power of its rank. A user has some latent
interests, each a bundle; the history comes of them, with some noise, and lies before the first day.
An impression is clicked with probability sigmoid(z), where z is the sum of

    the ad's appeal: of the good, its shop, its category and its keywords;
    crosses: gender × category, age × category, purchasing level × price level;
    the user's own inclination, by city, occupation and the user; pid, time, weekday;
    TASTE · log2(1 + behaviours in the ad's bundle) + LOYALTY · log2(1 + those in the ad's shop).

The draw of the label is all the noise. Signals are weak, as in display advertising: clicks are rare
and the Bayes bound of the user-weighted AUC is about 0.67. A good stands in ten training
impressions on average, most in fewer: a model that goes on fitting the ids learns the noise.

Train is thirteen days, validation the fourteenth and test the fifteenth: train and validation
together are the paper's two weeks. The last two days hold more than their share of impressions, so
that Eq. 10 has some for each user.

Users are made in chunks, each from random numbers of its own: memory grows with the catalogue, not
with samples or users, and more users leave those before them as they were.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Group, Schema, Sequence, Table
from din_jax.data.store import SPLITS
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.metrics import user_auc
from din_jax.prepare.draws import GoodsOfBundles, pick

SAMPLES = 400_000  # of train, if the command line does not say
SAMPLES_PER_USER = 40  # of train
SAMPLES_PER_GOOD = 10  # of train; the paper's 2 billion over 10 million goods are 200
GOODS_PER_SHOP = 100  # as in table 1
CATEGORIES_PER_BUNDLE = 4
SHARE = {"train": 1.0, "validation": 1 / 8, "test": 1 / 4}  # of impressions, beside train's
DAYS = {"train": (0, 13), "validation": (13, 14), "test": (14, 15)}

PROFILE = {"gender": 2, "age_level": 10, "city_level": 6, "purchasing_level": 7, "occupation": 12}
CONTEXT = {"pid": 10, "time": 8, "weekday": 7}
PRICE_LEVELS = 8
KEYWORDS_PER_CATEGORY = 5
MOST_KEYWORDS = 4  # of a good

MEAN_HISTORY = 25
LONGEST_HISTORY = 250
HISTORY_NOISE = 0.2  # share of behaviours that come of no interest
INTERESTS = (3, 4, 5, 6)  # how many bundles a user cares for
MATCHED_ADS = 0.5  # share of impressions whose ad lies in one of the user's interests
ACTIVITY_SHAPE = 2.0  # of the gamma distribution of impressions over users
ZIPF_EXPONENT, ZIPF_SHIFT = 1.0, 20  # a good of rank r has weight (r + shift)^-exponent

BIAS = -2.95
GOOD, SHOP, CATEGORY, KEYWORD = 0.25, 0.12, 0.25, 0.15  # standard deviations of effects
GENDER, AGE, PRICE = 0.08, 0.08, 0.15
INCLINATION = 0.3
CONTEXT_STDDEV = {"pid": 0.2, "time": 0.15, "weekday": 0.05}
TASTE = 0.3
LOYALTY = 0.15

USERS_AT_ONCE = 4096  # a chunk; another number would make another store
_BOUND_SAMPLES = 250_000  # test samples that the bounds are computed on, at most


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a data set is.

    Raises:
      DinError: a number is too small for the others.
    """

    samples: int  # of train
    users: int
    goods: int
    shops: int
    categories: int

    @staticmethod
    def of(
        samples: int,
        *,
        users: int | None = None,
        goods: int | None = None,
        shops: int | None = None,
        categories: int | None = None,
    ) -> Size:
        """What is not given grows with the samples, and categories as the root of the goods."""
        users = users if users is not None else max(1, round(samples / SAMPLES_PER_USER))
        goods = goods if goods is not None else max(64, round(samples / SAMPLES_PER_GOOD))
        at_least = CATEGORIES_PER_BUNDLE * max(
            1, round(max(goods, 0) ** 0.5 / CATEGORIES_PER_BUNDLE)
        )
        categories = categories if categories is not None else at_least
        bundles = max(categories, 0) // CATEGORIES_PER_BUNDLE
        shops = shops if shops is not None else max(bundles, round(goods / GOODS_PER_SHOP))
        return Size(samples, users, goods, shops, categories)

    def __post_init__(self) -> None:
        wrong = [
            f"--{name} {getattr(self, name)}: expected {least:,} or more{why}"
            for name, least, why in (
                ("samples", 8, ", so that each split has some"),
                ("users", 1, ""),
                ("categories", CATEGORIES_PER_BUNDLE, ", one bundle"),
                ("goods", self.categories, ", one a category"),
                ("shops", self.bundles, ", one a bundle of categories"),
            )
            if getattr(self, name) < least
        ]
        if self.users > np.iinfo(np.int32).max:
            wrong.append(f"--users {self.users}: a store numbers at most 2³¹ − 1 users")
        if wrong:
            raise DinError("; ".join(wrong))

    @property
    def bundles(self) -> int:
        """How many bundles the categories form."""
        return max(self.categories // CATEGORIES_PER_BUNDLE, 1)

    @property
    def chunks(self) -> int:
        """How many chunks the users form."""
        return -(-self.users // USERS_AT_ONCE)

    def users_of(self, chunk: int) -> tuple[int, int]:
        """The users [first, stop) of a chunk."""
        first = chunk * USERS_AT_ONCE
        return first, min(first + USERS_AT_ONCE, self.users)

    def samples_of(self, split: str, chunk: int | None = None) -> int:
        """Samples of a split: of one chunk of users, or of all."""
        total = int(self.samples * SHARE[split])
        if chunk is None:
            return total
        first, stop = self.users_of(chunk)
        return total * stop // self.users - total * first // self.users


class Catalogue(NamedTuple):
    """The goods, and what makes people click. All indices are from 0: rows of tables less one."""

    category: np.ndarray  # [goods]
    shop: np.ndarray  # [goods]
    bundle: np.ndarray  # [goods]
    price: np.ndarray  # [goods] level
    first_keyword: np.ndarray  # [goods] within the category's
    keywords: np.ndarray  # [goods] how many, from the first on, round the category's
    appeal: np.ndarray  # [goods] of the good with its shop, category and keywords
    gender_effect: np.ndarray  # [genders, categories]
    age_effect: np.ndarray  # [ages, categories]
    price_effect: np.ndarray  # [purchasing levels, price levels]
    context_effect: dict[str, np.ndarray]
    city_effect: np.ndarray
    occupation_effect: np.ndarray
    draw: GoodsOfBundles

    def keywords_of(self, goods: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The keywords of some goods, end to end, and how many each has."""
        number = self.keywords[goods].astype(np.int64)
        place = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        inner = (np.repeat(self.first_keyword[goods], number) + place) % KEYWORDS_PER_CATEGORY
        return np.repeat(self.category[goods], number) * KEYWORDS_PER_CATEGORY + inner, number


def catalogue(size: Size, seed: int) -> Catalogue:
    """The catalogue of a data set; it depends on the seed and on goods, shops and categories."""
    rng = np.random.default_rng([seed, 0])
    goods, categories, bundles = size.goods, size.categories, size.bundles
    # Shuffled, so that no model can read anything off a row's number.
    bundle_of_category = rng.permutation(np.arange(categories) % bundles)
    category = rng.permutation(np.arange(goods) % categories)
    bundle = bundle_of_category[category]
    # Shops of a bundle are of unequal size.
    shops_of_bundle = np.argsort(rng.permutation(np.arange(size.shops) % bundles), kind="stable")
    number = np.bincount(np.arange(size.shops) % bundles, minlength=bundles)
    first = np.cumsum(number) - number
    shop = shops_of_bundle[first[bundle] + (rng.random(goods) ** 2 * number[bundle]).astype(int)]
    weight = (rng.permutation(goods) + ZIPF_SHIFT) ** -ZIPF_EXPONENT
    keyword_effect = KEYWORD * rng.standard_normal((categories, KEYWORDS_PER_CATEGORY))
    found = Catalogue(
        category=category,
        shop=shop,
        bundle=bundle,
        price=rng.integers(PRICE_LEVELS, size=goods, dtype=np.uint8),
        first_keyword=rng.integers(KEYWORDS_PER_CATEGORY, size=goods, dtype=np.uint8),
        keywords=rng.integers(1, MOST_KEYWORDS + 1, size=goods, dtype=np.uint8),
        appeal=GOOD * rng.standard_normal(goods)
        + SHOP * rng.standard_normal(size.shops)[shop]
        + CATEGORY * rng.standard_normal(categories)[category],
        gender_effect=GENDER * rng.standard_normal((PROFILE["gender"], categories)),
        age_effect=AGE * rng.standard_normal((PROFILE["age_level"], categories)),
        price_effect=PRICE * rng.standard_normal((PROFILE["purchasing_level"], PRICE_LEVELS)),
        context_effect={
            name: CONTEXT_STDDEV[name] * rng.standard_normal(n) for name, n in CONTEXT.items()
        },
        city_effect=INCLINATION / 2 * rng.standard_normal(PROFILE["city_level"]),
        occupation_effect=INCLINATION / 2 * rng.standard_normal(PROFILE["occupation"]),
        draw=GoodsOfBundles(bundle, weight),
    )
    for place in range(MOST_KEYWORDS):  # the mean of a good's keywords
        inner = (found.first_keyword + place) % KEYWORDS_PER_CATEGORY
        has = found.keywords > place
        found.appeal[has] += (keyword_effect[category, inner] / found.keywords)[has]
    return found


class Users(NamedTuple):
    """A chunk of U users and their histories."""

    profile: dict[str, np.ndarray]  # [U] each
    inclination: np.ndarray  # [U] to click, in log odds
    activity: np.ndarray  # [U] share of the chunk's impressions
    interests: np.ndarray  # [U, …] bundles
    interest_count: np.ndarray  # [U] how many of these count
    length: np.ndarray  # [U] of the history
    history: np.ndarray  # [Σ length] goods


def draw_users(goods: Catalogue, size: Size, seed: int, chunk: int) -> Users:
    """The users of a chunk."""
    rng = np.random.default_rng([seed, 1, chunk])
    first, stop = size.users_of(chunk)
    users = stop - first
    profile = {name: rng.integers(n, size=users, dtype=np.uint8) for name, n in PROFILE.items()}
    activity = rng.gamma(ACTIVITY_SHAPE, size=users)
    interests = rng.integers(size.bundles, size=(users, max(INTERESTS)))
    interest_count = rng.choice(INTERESTS, size=users)
    length = np.minimum(rng.geometric(1 / MEAN_HISTORY, size=users), LONGEST_HISTORY)
    of_user = np.repeat(np.arange(users), length)
    history = np.where(
        rng.random(len(of_user)) < HISTORY_NOISE,
        goods.draw.any(rng, len(of_user)),
        goods.draw.of(rng, pick(rng, interests, interest_count, of_user)),
    )
    inclination = (
        goods.city_effect[profile["city_level"]]
        + goods.occupation_effect[profile["occupation"]]
        + INCLINATION * rng.standard_normal(users)
    )
    return Users(
        profile, inclination, activity / activity.sum(), interests, interest_count, length, history
    )


class Impressions(NamedTuple):
    """N impressions of a chunk's users, each user's in order of days."""

    user: np.ndarray  # [N] within the chunk
    ad: np.ndarray  # [N] goods
    context: dict[str, np.ndarray]  # [N] each
    without_history: np.ndarray  # [N] the log odds of a click less what the behaviours add
    log_odds: np.ndarray  # [N]
    label: np.ndarray  # [N]


def draw_impressions(
    goods: Catalogue, users: Users, size: Size, seed: int, chunk: int, split: str
) -> Impressions:
    """The impressions of a chunk's users in the days of a split."""
    rng = np.random.default_rng([seed, 2 + SPLITS.index(split), chunk])
    number = rng.multinomial(size.samples_of(split, chunk), users.activity)
    user = np.repeat(np.arange(len(number)), number)
    ad = np.where(
        rng.random(len(user)) < MATCHED_ADS,
        goods.draw.of(rng, pick(rng, users.interests, users.interest_count, user)),
        goods.draw.any(rng, len(user)),
    )
    day = rng.integers(*DAYS[split], size=len(user))
    day = day[np.lexsort((day, user))]
    context = {
        "pid": rng.integers(CONTEXT["pid"], size=len(user)),
        "time": rng.integers(CONTEXT["time"], size=len(user)),
        "weekday": day % CONTEXT["weekday"],
    }
    category = goods.category[ad]
    without_history = (
        BIAS
        + users.inclination[user]
        + goods.appeal[ad]
        + goods.gender_effect[users.profile["gender"][user], category]
        + goods.age_effect[users.profile["age_level"][user], category]
        + goods.price_effect[users.profile["purchasing_level"][user], goods.price[ad]]
    )
    for name, values in context.items():
        without_history += goods.context_effect[name][values]
    of_user = np.repeat(np.arange(len(number)), users.length)
    log_odds = without_history.copy()
    for weight, group in ((TASTE, goods.bundle), (LOYALTY, goods.shop)):
        visits = _occurrences(of_user, group[users.history], user, group[ad])
        log_odds += weight * np.log2(1 + visits)
    label = rng.random(len(user)) < 1 / (1 + np.exp(-log_odds))
    return Impressions(user, ad, context, without_history, log_odds, label)


def _occurrences(
    user: np.ndarray, value: np.ndarray, asked_user: np.ndarray, asked_value: np.ndarray
) -> np.ndarray:
    """How often each asked pair is among the pairs (user, value)."""
    span = max(int(value.max(initial=0)), int(asked_value.max(initial=0))) + 1
    pairs, asked = np.sort(user * span + value), asked_user * span + asked_value
    return np.searchsorted(pairs, asked, "right") - np.searchsorted(pairs, asked, "left")


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
    """Makes a store in a stream; the same arguments make the same store.

    Args:
      out: folder of the store.
      seed: of everything drawn.
      samples: of train; validation has an eighth of that, test a quarter.
      users, goods, shops, categories: by default they grow with `samples`, see `Size.of`.

    Returns:
      Counts and bounds, kept in the store as its origin. The bounds are of the first test samples,
      a quarter of a million at most: "bayes" is that of the click probability itself,
      "without_history" of that less what the behaviours add.

    Raises:
      DinError: `out` exists, or an argument is out of range.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    size = Size.of(samples, users=users, goods=goods, shops=shops, categories=categories)
    world = catalogue(size, seed)
    with StoreWriter(out, _schema(size)) as writer:
        written = _Written(writer, size, world)
        for split in SPLITS:
            for users_of_chunk, impressions in _chunks(world, size, seed, split):
                written.append(split, users_of_chunk, impressions)
        origin = {
            "preparation": "planted",
            "shape": "industrial",
            "seed": seed,
            **dataclasses.asdict(size),
            **written.origin(),
            "unknown_row": "the zero vector: the vocabularies are the whole catalogue",
        }
        written.vocabularies()
        bounds = np.cumsum([0, *(size.samples_of(split) for split in SPLITS)]).tolist()
        writer.finish(dict(zip(SPLITS, itertools.pairwise(bounds), strict=True)), origin)
    return origin


def _chunks(
    world: Catalogue, size: Size, seed: int, split: str
) -> Iterator[tuple[Users, Impressions]]:
    # Splits lie one after the other in a store, so that users are made again for each of them:
    # less than half of the work, and nothing has to be kept.
    for chunk in range(size.chunks):
        users = draw_users(world, size, seed, chunk)
        yield users, draw_impressions(world, users, size, seed, chunk, split)


class _Written:
    """Appends chunks to a store, and counts what training sees."""

    def __init__(self, writer: StoreWriter, size: Size, world: Catalogue):
        self.writer, self.size, self.world = writer, size, world
        schema = writer.schema
        self.counts = {t.name: np.zeros(t.rows - 1, np.int64) for t in schema.tables}
        self.id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
        self.table = {f.name: f.table for f in schema.fields}
        self.offset_type = smallest_unsigned(size.users * LONGEST_HISTORY)
        total = sum(size.samples_of(split) for split in SPLITS)
        self.keyword_offset_type = smallest_unsigned(total * MOST_KEYWORDS)
        writer.append("fields/keywords.offsets", np.zeros(1, self.keyword_offset_type))
        self.keywords = self.clicks = self.behaviors = 0
        self.split, self.users, self.events = "", 0, 0  # of the pass over the users
        self.bound: list[tuple[np.ndarray, ...]] = []

    def append(self, split: str, users: Users, seen: Impressions) -> None:
        """Appends the next chunk of a split."""
        if split != self.split:
            self.split, self.users, self.events = split, 0, 0
        user, stop = seen.user, np.cumsum(users.length)
        if split == "train":
            self.behaviors += int(stop[-1])
            for name, ids in self._ids_of(users.history).items():
                self._ids(f"events/visited/{name}", name, ids, train=True)
        fields = {name: values[user] for name, values in users.profile.items()}
        fields |= self._ids_of(seen.ad) | seen.context
        fields["price_level"] = self.world.price[seen.ad]
        fields["keywords"], number = self.world.keywords_of(seen.ad)
        for name, ids in fields.items():
            self._ids(f"fields/{name}", name, ids, train=split == "train")
        ends = self.keywords + np.cumsum(number)
        self.writer.append("fields/keywords.offsets", ends.astype(self.keyword_offset_type))
        self.keywords += int(number.sum())
        begin = (self.events + stop - users.length).astype(self.offset_type)
        self.writer.append("sequences/visited.start", begin[user])
        self.writer.append(
            "sequences/visited.end", (self.events + stop).astype(self.offset_type)[user]
        )
        self.writer.append("samples/label", seen.label.astype(np.uint8))
        of_all = (self.users + user).astype(smallest_unsigned(self.size.users - 1))
        self.writer.append("samples/user", of_all)
        if split == "test" and sum(len(part[0]) for part in self.bound) < _BOUND_SAMPLES:
            self.bound.append((of_all, seen.label, seen.log_odds, seen.without_history))
        self.clicks += int(seen.label.sum())
        self.events += int(stop[-1])
        self.users += len(stop)

    def _ids_of(self, goods: np.ndarray) -> dict[str, np.ndarray]:
        shop, category = self.world.shop[goods], self.world.category[goods]
        return {"goods_id": goods, "shop_id": shop, "cate_id": category}

    def _ids(self, column: str, field: str, ids: np.ndarray, *, train: bool) -> None:
        table = self.table[field]
        if train:
            np.add.at(self.counts[table], ids, 1)
        self.writer.append(column, (ids.astype(np.int64) + 1).astype(self.id_type[table]))

    def vocabularies(self) -> None:
        """Writes all vocabularies: ids are whole numbers from 0 on."""
        for table, counts in self.counts.items():
            ids = pl.int_range(len(counts), dtype=pl.UInt32, eager=True)
            self.writer.vocabulary(table, ids, counts)

    def origin(self) -> dict[str, Any]:
        """Counts and bounds."""
        user, label, log_odds, without_history = (
            np.concatenate(part)[:_BOUND_SAMPLES] for part in zip(*self.bound, strict=True)
        )

        def bound(scores: np.ndarray) -> float:
            return round(user_auc(user, label, scores).weighted("impressions"), 4)

        samples = {f"{split}_samples": self.size.samples_of(split) for split in SPLITS}
        return {
            **samples,
            "click_rate": round(self.clicks / sum(samples.values()), 4),
            "mean_history": round(self.behaviors / self.size.users, 2),
            "test_user_weighted_auc_bayes": bound(log_odds),
            "test_user_weighted_auc_without_history": bound(without_history),
            "bounds_on_test_samples": len(user),
        }


def _schema(size: Size) -> Schema:
    keywords = size.categories * KEYWORDS_PER_CATEGORY
    ids = {"goods_id": "goods", "shop_id": "shop", "cate_id": "cate"}
    catalogue = {"goods": size.goods, "shop": size.shops, "cate": size.categories}
    single = {**PROFILE, "price_level": PRICE_LEVELS, "keywords": keywords, **CONTEXT}

    def fields(names: dict[str, int], group: Group) -> tuple[Field, ...]:
        return tuple(Field(name, name, group) for name in names)

    return Schema(
        tables=tuple(Table(name, n + 1) for name, n in {**catalogue, **single}.items()),
        fields=(
            *fields(PROFILE, "user"),
            *(Field(name, table, "ad") for name, table in ids.items()),
            Field("price_level", "price_level", "ad"),
            Field("keywords", "keywords", "ad", multi_hot=True),
            *fields(CONTEXT, "context"),
        ),
        sequences=(
            Sequence(
                "visited",
                tuple(BehaviorField(name, table, ad=name) for name, table in ids.items()),
            ),
        ),
    )
