"""Makes a synthetic store with the shape of Amazon Electronics, for timing.

    python benchmarks/make_samples.py --mean-history 9 --out data/speed/history-9

The ad and the history have as many goods and categories as the data set. A good's frequency is a
power law of its rank, and the lengths of histories are geometric. Labels alternate: there is
nothing to learn.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl

from din_jax.cli import guarded
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store_writer import StoreWriter, smallest_unsigned
from din_jax.errors import DinError

GOODS = 63_001
CATEGORIES = 801
FIELDS = ("item", "category")
SAMPLES = 100_000  # training samples; validation and test each have an eighth as many
SAMPLES_PER_USER = 2  # one of each class, with the same history


def longest(mean_history: int) -> int:
    """The maximum length of histories: four times the mean, and at least 100."""
    return max(100, 4 * mean_history)


def make(out: str | Path, mean_history: int, samples: int = SAMPLES, seed: int = 0) -> None:
    """Writes the store, which is a deterministic function of the arguments.

    Args:
      out: the store's folder.
      mean_history: the mean length of histories before they are cut to `longest`.
      samples: the number of training samples.
      seed: the seed of all random numbers.

    Raises:
      DinError: `out` exists, or a number is too small.
    """
    for name, value, minimum in (
        ("mean-history", mean_history, 1),
        ("samples", samples, 16),
        ("seed", seed, 0),
    ):
        if value < minimum:
            raise DinError(f"--{name} {value}: expected at least {minimum}")
    rng = np.random.default_rng(seed)
    # Every category has at least one good; popularity is independent of the row.
    category_of_good = rng.permutation(np.arange(GOODS) % CATEGORIES)
    good_of_rank = rng.permutation(GOODS)
    popularity = np.cumsum((np.arange(GOODS) + 50.0) ** -0.9)

    def goods(count: int) -> np.ndarray:
        return good_of_rank[np.searchsorted(popularity, popularity[-1] * rng.random(count))]

    stops = np.cumsum([samples, samples // 8, samples // 8])
    user = np.arange(stops[-1]) // SAMPLES_PER_USER
    length = rng.geometric(1 / mean_history, user[-1] + 1).clip(max=longest(mean_history))
    begin = np.concatenate([[0], np.cumsum(length)])
    ad, history = goods(len(user)), goods(begin[-1])
    schema = Schema(
        (Table("item", GOODS + 1), Table("category", CATEGORIES + 1)),
        tuple(Field(name, name, "ad") for name in FIELDS),
        (Sequence("history", tuple(BehaviorField(name, name, ad=name) for name in FIELDS)),),
    )
    with StoreWriter(out, schema) as writer:
        for name, id_of_good in (("item", np.arange(GOODS)), ("category", category_of_good)):
            rows = (id_of_good + 1).astype(smallest_unsigned(len(id_of_good)))
            writer.append(f"fields/{name}", rows[ad])
            writer.append(f"events/history/{name}", rows[history])
            training_ids = id_of_good[np.concatenate([ad[:samples], history])]
            counts = np.bincount(training_ids, minlength=schema.rows(name) - 1)
            ids = pl.Series("id", [f"{name}{i}" for i in range(len(counts))])
            writer.vocabulary(name, ids, counts)
        writer.append("samples/label", (np.arange(len(user)) % 2).astype(np.uint8))
        writer.append("samples/user", user.astype(np.uint32))
        writer.append("sequences/history.start", begin[user].astype(np.uint32))
        writer.append("sequences/history.end", begin[user + 1].astype(np.uint32))
        train, validation, test = stops.tolist()
        writer.finish(
            {"train": (0, train), "validation": (train, validation), "test": (validation, test)},
            {"preparation": "make_samples", "mean_history": mean_history, "seed": seed},
        )


def main() -> None:
    """Writes the store and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", required=True, help="folder of the store")
    parser.add_argument("--mean-history", type=int, default=9)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="number of training samples")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.out, arguments.mean_history, arguments.samples, arguments.seed)
    print(f"store written to {arguments.out}; histories of up to {longest(arguments.mean_history)}")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))
