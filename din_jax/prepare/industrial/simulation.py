"""Generates an industrial catalogue, its users with their histories, and their impressions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from din_jax.data.store import SPLITS
from din_jax.prepare.goods_sampler import GoodsSampler, sample_interests
from din_jax.prepare.industrial.size import Size

# How many values each feature has.
PROFILE = {"gender": 2, "age_level": 10, "city_level": 6, "purchasing_level": 7, "occupation": 12}
CONTEXT = {"pid": 10, "time": 8, "weekday": 7}
PRICE_LEVELS = 8
KEYWORDS_PER_CATEGORY = 5
MAX_KEYWORDS = 4  # per good

DAYS = {"train": (0, 13), "validation": (13, 14), "test": (14, 15)}
MEAN_HISTORY = 25
MAX_HISTORY = 250
HISTORY_NOISE = 0.2  # fraction of behaviours that come from no interest
INTERESTS = (3, 4, 5, 6)  # how many interests a user may have
MATCHED_ADS = 0.5  # fraction of impressions whose ad lies in one of the user's interests
ACTIVITY_SHAPE = 2.0  # of the gamma distribution of impressions over users
ZIPF_EXPONENT, ZIPF_SHIFT = 1.0, 20  # a good of rank r has weight (r + shift)^-exponent

BIAS = -2.95
GOOD, SHOP, CATEGORY, KEYWORD = 0.25, 0.12, 0.25, 0.15  # standard deviations of effects
GENDER, AGE, PRICE = 0.08, 0.08, 0.15
INCLINATION = 0.3
CONTEXT_STDDEV = {"pid": 0.2, "time": 0.15, "weekday": 0.05}
TASTE = 0.3
LOYALTY = 0.15


class Catalogue(NamedTuple):
    """The goods, and what makes people click.

    All indices start at 0: they are table rows minus one.
    """

    category: np.ndarray  # [goods]
    shop: np.ndarray  # [goods]
    bundle: np.ndarray  # [goods]
    price: np.ndarray  # [goods] level
    first_keyword: np.ndarray  # [goods] index within the category's keywords
    keywords: np.ndarray  # [goods] how many, from the first on, modulo the category's number
    appeal: np.ndarray  # [goods] of the good with its shop, category and keywords
    gender_effect: np.ndarray  # [genders, categories]
    age_effect: np.ndarray  # [ages, categories]
    price_effect: np.ndarray  # [purchasing levels, price levels]
    context_effect: dict[str, np.ndarray]
    city_effect: np.ndarray
    occupation_effect: np.ndarray
    sampler: GoodsSampler

    def keywords_of(self, goods: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The concatenated keywords of some goods, and how many each good has."""
        count = self.keywords[goods].astype(np.int64)
        position = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        in_category = (np.repeat(self.first_keyword[goods], count) + position) % (
            KEYWORDS_PER_CATEGORY
        )
        return np.repeat(self.category[goods], count) * KEYWORDS_PER_CATEGORY + in_category, count


def catalogue(size: Size, seed: int) -> Catalogue:
    """Generates the catalogue; it depends on the seed and on goods, shops and categories."""
    rng = np.random.default_rng([seed, 0])
    goods, categories, bundles = size.goods, size.categories, size.bundles
    # Shuffled, so that a row's number tells a model nothing.
    bundle_of_category = rng.permutation(np.arange(categories) % bundles)
    category = rng.permutation(np.arange(goods) % categories)
    bundle = bundle_of_category[category]
    # The shops of a bundle have different sizes.
    shops_of_bundle = np.argsort(rng.permutation(np.arange(size.shops) % bundles), kind="stable")
    shop_count = np.bincount(np.arange(size.shops) % bundles, minlength=bundles)
    first_shop = np.cumsum(shop_count) - shop_count
    shop_in_bundle = (rng.random(goods) ** 2 * shop_count[bundle]).astype(int)
    shop = shops_of_bundle[first_shop[bundle] + shop_in_bundle]
    weight = (rng.permutation(goods) + ZIPF_SHIFT) ** -ZIPF_EXPONENT
    keyword_effect = KEYWORD * rng.standard_normal((categories, KEYWORDS_PER_CATEGORY))
    result = Catalogue(
        category=category,
        shop=shop,
        bundle=bundle,
        price=rng.integers(PRICE_LEVELS, size=goods, dtype=np.uint8),
        first_keyword=rng.integers(KEYWORDS_PER_CATEGORY, size=goods, dtype=np.uint8),
        keywords=rng.integers(1, MAX_KEYWORDS + 1, size=goods, dtype=np.uint8),
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
        sampler=GoodsSampler(bundle, weight),
    )
    for position in range(MAX_KEYWORDS):  # adds the mean effect of a good's keywords
        in_category = (result.first_keyword + position) % KEYWORDS_PER_CATEGORY
        has_keyword = result.keywords > position
        effect = keyword_effect[category, in_category] / result.keywords
        result.appeal[has_keyword] += effect[has_keyword]
    return result


class Users(NamedTuple):
    """A chunk of U users and their histories."""

    profile: dict[str, np.ndarray]  # [U] each
    inclination: np.ndarray  # [U] to click, in log odds
    activity: np.ndarray  # [U] fraction of the chunk's impressions
    interests: np.ndarray  # [U, …] bundles
    interest_count: np.ndarray  # [U] how many of these the user has
    length: np.ndarray  # [U] of the history
    history: np.ndarray  # [Σ length] goods


def draw_users(goods: Catalogue, size: Size, seed: int, chunk: int) -> Users:
    """Generates the users of a chunk."""
    rng = np.random.default_rng([seed, 1, chunk])
    first, stop = size.users_of(chunk)
    users = stop - first
    profile = {name: rng.integers(n, size=users, dtype=np.uint8) for name, n in PROFILE.items()}
    activity = rng.gamma(ACTIVITY_SHAPE, size=users)
    interests = rng.integers(size.bundles, size=(users, max(INTERESTS)))
    interest_count = rng.choice(INTERESTS, size=users)
    length = np.minimum(rng.geometric(1 / MEAN_HISTORY, size=users), MAX_HISTORY)
    user_of_event = np.repeat(np.arange(users), length)
    history = np.where(
        rng.random(len(user_of_event)) < HISTORY_NOISE,
        goods.sampler.from_all(rng, len(user_of_event)),
        goods.sampler.from_bundles(
            rng, sample_interests(rng, interests, interest_count, user_of_event)
        ),
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
    without_history: np.ndarray  # [N] the log odds of a click without the effect of behaviours
    log_odds: np.ndarray  # [N]
    label: np.ndarray  # [N]


def draw_impressions(
    goods: Catalogue, users: Users, size: Size, seed: int, chunk: int, split: str
) -> Impressions:
    """Generates the impressions of a chunk's users in the days of a split."""
    rng = np.random.default_rng([seed, 2 + SPLITS.index(split), chunk])
    impressions_per_user = rng.multinomial(size.samples_of(split, chunk), users.activity)
    user = np.repeat(np.arange(len(impressions_per_user)), impressions_per_user)
    ad = np.where(
        rng.random(len(user)) < MATCHED_ADS,
        goods.sampler.from_bundles(
            rng, sample_interests(rng, users.interests, users.interest_count, user)
        ),
        goods.sampler.from_all(rng, len(user)),
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
    user_of_event = np.repeat(np.arange(len(users.length)), users.length)
    log_odds = without_history.copy()
    for weight, group in ((TASTE, goods.bundle), (LOYALTY, goods.shop)):
        visits = _count_pairs(user_of_event, group[users.history], user, group[ad])
        log_odds += weight * np.log2(1 + visits)
    label = rng.random(len(user)) < 1 / (1 + np.exp(-log_odds))
    return Impressions(user, ad, context, without_history, log_odds, label)


def _count_pairs(
    user: np.ndarray, value: np.ndarray, query_user: np.ndarray, query_value: np.ndarray
) -> np.ndarray:
    """[queries] how often each query pair occurs among the pairs (user, value)."""
    span = max(int(value.max(initial=0)), int(query_value.max(initial=0))) + 1
    pairs, queries = np.sort(user * span + value), query_user * span + query_value
    counts: np.ndarray = np.searchsorted(pairs, queries, "right") - np.searchsorted(
        pairs, queries, "left"
    )
    return counts
