"""Turns interactions into samples: each is a positive, followed by negatives that are drawn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from din_jax.data.id_lookup import index_in
from din_jax.errors import DinError
from din_jax.prepare import negative_sampling
from din_jax.prepare.log.features import by_key, joined_features
from din_jax.prepare.log.seeding import generator
from din_jax.prepare.log.spec import Spec
from din_jax.prepare.negative_laws import Catalogue, read_law


class Drawn(NamedTuple):
    """Samples: each positive, and behind it its negatives.

    Attributes:
      frame: the samples; a negative has its positive's row, but its own item and the ad's values
        of that item.
      splits: {split: its samples}.
      origin: counts, for the store's origin.
    """

    frame: pl.DataFrame
    splits: dict[str, slice]
    origin: dict[str, object]


def draw(
    spec: Spec,
    positives: pl.DataFrame,
    splits: dict[str, slice],
    frames: dict[str, pl.DataFrame],
    seed: int,
    notes: list[str],
) -> Drawn:
    """Draws the negatives that the spec asks for.

    A user has taken the items of [impressions], of behaviours, and of the lists of a [history] by
    the time of their row. The catalogue is the items of all interactions of [impressions]; their
    popularity is that in training. An item's values of the ad's own columns are those of its first
    interaction.

    Raises:
      DinError: a user has taken every item that could be drawn; or an item has several categories.
    """
    negatives = spec.negatives
    assert negatives is not None
    everything = frames["impressions"]
    taken = [everything.select(".user", ".item", *_time(everything))]
    taken += [
        frame.select(
            ".user",
            ".item",
            *(_time(everything) if ".time" in frame.columns else _prior(everything)),
        )
        for frame in (frames[b.files.section] for b in spec.behaviors)
        if ".item" in frame.columns
    ]
    for history in spec.histories:
        if history.item is not None:
            lists = everything.select(".user", pl.col(f".{history.name}.item").alias(".item"))
            lists = lists.with_columns(everything.select(_time(everything)))
            taken.append(lists.filter(pl.col(".item").list.len() > 0).explode(".item"))
    items = everything[".item"].unique(maintain_order=True)
    users = positives[".user"].unique(maintain_order=True)
    interactions = pl.concat(_of_catalogue(table, users, items) for table in taken)
    interactions = interactions[by_key(interactions["user"].to_numpy())]
    user = index_in(users, positives[".user"])
    item = index_in(items, positives[".item"])
    has_time = ".time" in everything.columns
    if negatives.exclude == "before" and not has_time:
        raise DinError(
            f'{spec.path}: [negatives] exclude = "before" needs a time in [impressions]; name it, '
            'or write exclude = "ever"'
        )
    time, time_of = (
        _whole_times(positives, interactions) if has_time else (np.zeros(len(user), np.int64), None)
    )
    train = item[splits["train"]]
    representative = _first_rows(item, len(items), everything, items)
    law = read_law(negatives.by)
    category = _categories(spec, negatives.category, everything, items, representative, frames)
    drawn = negative_sampling.sample(
        Catalogue(
            law, len(items), count=np.bincount(train, minlength=len(items)), category=category
        ),
        negative_sampling.Interactions(
            np.searchsorted(interactions["user"].to_numpy(), np.arange(len(users) + 1)),
            interactions["item"].to_numpy(),
            time_of,
        ),
        negative_sampling.Positives(user, item, time),
        negatives.per_positive,
        exclude=negatives.exclude,
        rng=generator(seed, "negatives"),
    )
    each = 1 + negatives.per_positive
    chosen = np.concatenate([item[:, None], drawn.item], axis=1).reshape(-1)
    is_negative = np.arange(len(chosen)) % each > 0
    row = np.repeat(np.arange(len(positives)), each)
    own = [c.name for c in spec.impressions.fields["ad"]]
    frame = positives.drop(".item", *own)[row].with_columns(
        items[chosen].alias(".item"), pl.Series(".label", (~is_negative).astype(np.uint8))
    )
    if own:
        values = everything.select(own)[representative[chosen]]
        kept = pl.Series(is_negative)
        frame = frame.with_columns(
            pl.select(pl.when(kept).then(values[name]).otherwise(positives[name][row]))
            .to_series()
            .alias(name)
            for name in own
        )
    if negatives.per_positive >= len(items):
        notes.append(
            f"[negatives] per_positive = {negatives.per_positive:,}, but the catalogue has "
            f"{len(items):,} items: a positive has the same negatives more than once"
        )
    if drawn.outside_category:
        notes.append(
            f"[negatives] {drawn.outside_category:,} of {len(positives):,} positives are of users "
            "who have taken every item of the category; their negatives are of all categories"
        )
    origin: dict[str, object] = {
        "by": negatives.by,
        "per positive": negatives.per_positive,
        "exclude": negatives.exclude,
        "catalogue": len(items),
    }
    return Drawn(
        frame,
        {name: slice(part.start * each, part.stop * each) for name, part in splits.items()},
        origin,
    )


def _of_catalogue(table: pl.DataFrame, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    """The rows of these users that took items of the catalogue, by their numbers."""
    item = index_in(items, table[".item"])
    rows = np.flatnonzero(item >= 0)
    user = index_in(users, table[".user"][rows])
    of_users = user >= 0
    return pl.DataFrame({"user": user[of_users], "item": item[rows[of_users]]}).with_columns(
        table[rows[of_users]].select(_time(table))
    )


def _time(frame: pl.DataFrame) -> list[str]:
    return [".time"] if ".time" in frame.columns else []


def _prior(everything: pl.DataFrame) -> list[pl.Expr]:
    """The time of behaviours that lie before all impressions."""
    if ".time" not in everything.columns:
        return []
    time = everything[".time"]
    return [pl.lit(time.min()).cast(time.dtype).alias(".time")]


def _whole_times(
    positives: pl.DataFrame, interactions: pl.DataFrame
) -> tuple[np.ndarray, np.ndarray]:
    """The times of positives and of interactions as whole numbers in one order."""
    times = [positives[".time"], interactions[".time"]]
    if times[0].dtype.is_float():
        rank = pl.concat(times).rank("dense").to_numpy().astype(np.int64)
        return rank[: len(positives)], rank[len(positives) :]
    first, second = (t.to_physical().to_numpy().astype(np.int64) for t in times)
    return first, second


def _first_rows(
    item: np.ndarray, items: int, everything: pl.DataFrame, of: pl.Series
) -> np.ndarray:
    """[items] the row of `everything` in which each item is first."""
    index = index_in(of, everything[".item"])
    first = np.zeros(items, np.int64)
    first[index[::-1]] = np.arange(len(index))[::-1]
    return first


def _categories(
    spec: Spec,
    field: str | None,
    everything: pl.DataFrame,
    items: pl.Series,
    representative: np.ndarray,
    frames: dict[str, pl.DataFrame],
) -> np.ndarray | None:
    """[items] the number of each item's category; unknown ones have one of their own."""
    if field is None:
        return None
    if field in [c.name for c in spec.impressions.fields["ad"]]:
        values = everything[field][representative]
    else:
        side_table = next(s for s in spec.items if field in [c.name for c in s.columns])
        one = np.arange(len(items))
        frame = pl.DataFrame({".item": items})
        if side_table.valid_from is not None:
            raise DinError(
                f"{spec.path}: [negatives] category = {field!r} changes in time (valid_from); "
                "expected a category that an item always has"
            )
        feature = joined_features(
            side_table, frames[side_table.files.section], ".item", items, one, frame
        )[field]
        index = feature.value_index
        known = feature.values[np.maximum(index, 0)]
        values = known.set(pl.Series(index < 0), None) if (index < 0).any() else known
    if values.dtype == pl.List:
        raise DinError(
            f"{spec.path}: [negatives] category = {field!r} has several values an item; expected "
            "one"
        )
    return values.rank("dense").fill_null(0).to_numpy().astype(np.int64)
