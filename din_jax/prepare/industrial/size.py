"""How large an industrial data set is, and how its users and samples fall into chunks."""

from __future__ import annotations

import dataclasses

import numpy as np

from din_jax.errors import DinError

SAMPLES = 400_000  # training samples, unless the command line says otherwise
SAMPLES_PER_USER = 40  # training samples
SAMPLES_PER_GOOD = 10  # training samples; the paper's 2 billion over 10 million goods are 200
GOODS_PER_SHOP = 100  # as in table 1
CATEGORIES_PER_BUNDLE = 4
SPLIT_FRACTION = {"train": 1.0, "validation": 1 / 8, "test": 1 / 4}  # of the training samples
USERS_PER_CHUNK = 4096  # another number would generate another store


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
        """Fills in defaults: they grow with the samples, categories as the root of the goods."""
        users = users if users is not None else max(1, round(samples / SAMPLES_PER_USER))
        goods = goods if goods is not None else max(64, round(samples / SAMPLES_PER_GOOD))
        default_categories = CATEGORIES_PER_BUNDLE * max(
            1, round(max(goods, 0) ** 0.5 / CATEGORIES_PER_BUNDLE)
        )
        categories = categories if categories is not None else default_categories
        bundles = max(categories, 0) // CATEGORIES_PER_BUNDLE
        shops = shops if shops is not None else max(bundles, round(goods / GOODS_PER_SHOP))
        return Size(samples, users, goods, shops, categories)

    def __post_init__(self) -> None:
        errors = [
            f"--{name} {getattr(self, name)}: expected {minimum:,} or more{reason}"
            for name, minimum, reason in (
                ("samples", 8, ", so that each split has some"),
                ("users", 1, ""),
                ("categories", CATEGORIES_PER_BUNDLE, ", one bundle"),
                ("goods", self.categories, ", one a category"),
                ("shops", self.bundles, ", one a bundle of categories"),
            )
            if getattr(self, name) < minimum
        ]
        if self.users > np.iinfo(np.int32).max:
            errors.append(f"--users {self.users}: a store has at most 2³¹ − 1 users")
        if errors:
            raise DinError("; ".join(errors))

    @property
    def bundles(self) -> int:
        """How many bundles the categories form."""
        return max(self.categories // CATEGORIES_PER_BUNDLE, 1)

    @property
    def chunks(self) -> int:
        """How many chunks the users form."""
        return -(-self.users // USERS_PER_CHUNK)

    def users_of(self, chunk: int) -> tuple[int, int]:
        """The users [first, stop) of a chunk."""
        first = chunk * USERS_PER_CHUNK
        return first, min(first + USERS_PER_CHUNK, self.users)

    def samples_of(self, split: str, chunk: int | None = None) -> int:
        """How many samples a split has: for one chunk of users, or in total."""
        total = int(self.samples * SPLIT_FRACTION[split])
        if chunk is None:
            return total
        first, stop = self.users_of(chunk)
        return total * stop // self.users - total * first // self.users
