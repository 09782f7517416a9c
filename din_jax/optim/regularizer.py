"""The regularisers of section 6.5: dropout and frequency filter of ids, and n_j for MBA.

Dropout of behaviours beside another regulariser is not in the paper.
Dropout and the frequency filter change which ids are looked up. MBA and DiFacto are decays, see
`din_jax.optim.mba`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import struct
from ml_collections import ConfigDict

from din_jax.data.counts import cached_counts
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.models.features import is_behavior
from din_jax.models.registry import Model
from din_jax.nn.embedding import Lookup, Lookups

_DROPOUT = 0xD809  # folded into the seed's key, which also makes the initial values
_NewLookups = dict[str, dict[str, Lookup]]


class Regularizer(struct.PyTreeNode):
    """The arguments of a config's regulariser in the steps; by default there is none.

    Attributes:
      counts: n_j of the tables that MBA decays, {table: float32[K]}.
      frequent: the ids that the frequency filter keeps, {table: bool[K]}.
      unknown: if True, rare ids become row 0, also in an ad's fields. If False, rare ids of
        behaviours are not looked up (the zero vector), and those of an ad are unchanged.
      dropout: probability that an id is dropped in training.
      behaviors_only: whether only ids of behaviours are dropped.
      seed: the seed of the dropout.
    """

    counts: dict[str, Any] = struct.field(default_factory=dict)
    frequent: dict[str, Any] = struct.field(default_factory=dict)
    unknown: bool = struct.field(pytree_node=False, default=False)
    dropout: float = struct.field(pytree_node=False, default=0.0)
    behaviors_only: bool = struct.field(pytree_node=False, default=False)
    seed: int = struct.field(pytree_node=False, default=0)

    def scoring(self, lookups: Lookups) -> _NewLookups:
        """The lookups in evaluation: filtered."""
        return filter_ids(lookups, self.frequent, unknown=self.unknown)

    def training(self, lookups: Lookups, step: jax.Array, axis: str | None = None) -> _NewLookups:
        """The lookups in training: with dropout, and filtered.

        Args:
          lookups: of a batch, or of this device's local batch.
          step: int32 [], the training step, which determines the ids that are dropped.
          axis: the devices' mapped axis, or None for one device.
        """
        if not self.dropout:
            return self.scoring(lookups)
        key = jax.random.fold_in(jax.random.key(self.seed), _DROPOUT)
        key = jax.random.fold_in(key, step)
        return self.scoring(
            drop_ids(lookups, key, self.dropout, behaviors_only=self.behaviors_only, axis=axis)
        )


def drop_ids(
    lookups: Lookups,
    key: jax.Array,
    rate: float,
    *,
    behaviors_only: bool = False,
    axis: str | None = None,
) -> _NewLookups:
    """Drops each feature id of a batch with probability `rate` (dropout, section 6.5).

    A dropped id gives the zero vector, and its row is not present. The vectors of the other ids are
    scaled by 1 / (1 − rate). Whether an id is dropped depends on its position among the batch's
    real ids, and therefore neither on padding nor on the number of devices. An id that is looked up
    in several tables is dropped in all of them or in none.

    Args:
      lookups: of a batch, or of this device's local batch, in the order of the samples.
      key: the random key of the step.
      rate: in [0, 1); the paper uses 0.5.
      behaviors_only: whether to drop only ids of behaviours.
      axis: the devices' mapped axis, or None for one device.
    """
    new_lookups: _NewLookups = {}
    names = sorted({name for table_lookups in lookups.values() for name in table_lookups})
    for table, table_lookups in lookups.items():
        for name, lookup in table_lookups.items():
            new = lookup
            if is_behavior(name) or not behaviors_only:
                real = jnp.sum(lookup.mask)
                positions = jnp.cumsum(lookup.mask) - 1 + _sum_before(real, axis)
                lookup_key = jax.random.fold_in(key, names.index(name))
                uniform = jax.vmap(
                    lambda p, k=lookup_key: jax.random.uniform(jax.random.fold_in(k, p))
                )(positions)
                new = lookup._replace(
                    mask=lookup.mask & (uniform >= rate), scale=lookup.scale / (1 - rate)
                )
            new_lookups.setdefault(table, {})[name] = new
    return new_lookups


def _sum_before(count: jax.Array, axis: str | None) -> jax.Array | int:
    """The sum of `count` over the devices before this one; 0 without an axis."""
    if axis is None:
        return 0
    counts = jax.lax.all_gather(count, axis)
    return jnp.sum(jnp.where(jnp.arange(len(counts)) < jax.lax.axis_index(axis), counts, 0))


def filter_ids(
    lookups: Lookups, frequent: Mapping[str, Any], *, unknown: bool = False
) -> _NewLookups:
    """Keeps only the frequent ids of some tables (frequency filter, section 6.5).

    Args:
      lookups: of a batch.
      frequent: the ids to keep, {table: bool[K]}, see `most_frequent`.
      unknown: if True, rare ids become row 0, also in an ad's fields. If False, rare ids of
        behaviours are removed from the history, and those of an ad are unchanged.
    """
    new_lookups: _NewLookups = {
        table: dict(table_lookups) for table, table_lookups in lookups.items()
    }
    for table in frequent:
        for name, lookup in new_lookups.get(table, {}).items():
            is_frequent = jnp.asarray(frequent[table]).at[lookup.ids].get(mode="clip")
            new = lookup
            if unknown:
                new = lookup._replace(ids=jnp.where(is_frequent, lookup.ids, 0))
            elif is_behavior(name):
                new = lookup._replace(mask=lookup.mask & is_frequent)
            new_lookups[table][name] = new
    return new_lookups


def most_frequent(counts: npt.NDArray[Any], fraction: float) -> npt.NDArray[Any]:
    """bool[K]: a `fraction` of a table's ids, without row 0, that have the largest n_j.

    At least one id that occurs is kept. Of equally frequent ids those with lower rows are kept. Ids
    that never occur are not kept, and neither is row 0, "unknown".
    """
    frequent = np.zeros(len(counts), bool)
    number = max(1, round(fraction * (len(counts) - 1)))
    frequent[1 + np.argsort(-counts[1:], kind="stable")[:number]] = True
    return frequent & (counts > 0)


def decayed_tables(model: Model) -> list[str]:
    """The names of the tables that MBA and DiFacto decay: not biases or weights per id."""
    return [name for name, spec in model.tables.items() if spec.decayed]


def build_regularizer(config: ConfigDict, store: Store, model: Model) -> Regularizer:
    """Builds the regulariser that a config describes.

    Args:
      config: the run's config.
      store: the data set in which ids are counted, for MBA and the filter.
      model: the model whose tables are decayed or filtered.

    Raises:
      DinError: the regulariser does not support a table of the model, or a key names a table that
        the model does not have.
    """
    settings = config.regularizer
    if settings.name == "dropout":
        return Regularizer(
            dropout=settings.dropout, behaviors_only=settings.behaviors_only, seed=config.seed
        )
    regularizer = _without_dropout(config, store, model)
    if not settings.behavior_dropout:
        return regularizer
    return regularizer.replace(
        dropout=settings.behavior_dropout, behaviors_only=True, seed=config.seed
    )


def _without_dropout(config: ConfigDict, store: Store, model: Model) -> Regularizer:
    settings = config.regularizer
    if settings.name not in ("mba", "filter"):
        return Regularizer()
    n = cached_counts(
        store,
        config.data.fit,
        max_history=config.data.max_history,
        extra_fields=config.model.extra_fields,
    )
    if settings.name == "mba":
        uncounted = [name for name in decayed_tables(model) if name not in n]
        if uncounted:
            raise DinError(
                f"config.regularizer.name='mba': no counts n_j for {', '.join(uncounted)}: the "
                "data set's own tables have them, but not a table of hashed ids, several of which "
                "share a row, or of one input's weights; use 'difacto', which needs none"
            )
        return Regularizer(
            counts={name: n[name].astype(np.float32) for name in decayed_tables(model)}
        )
    uncounted = [name for name in model.tables if name not in n]
    if uncounted:
        raise DinError(
            f"config.regularizer.name='filter' with config.model.name={config.model.name!r}: the "
            f"ids that it removes from the data set's tables would still be looked up in "
            f"{', '.join(uncounted)}; use another regularizer, or a model without such tables"
        )
    schema = store.schema.without(config.model.without)
    goods = dict.fromkeys(sequence.fields[0].table for sequence in schema.sequences)
    filtered = tuple(settings.filter_tables) or tuple(goods)
    for name in filtered:
        if name not in model.tables or name not in n:
            raise DinError(
                f"config.regularizer.filter_tables names {name!r}; tables with counts are: "
                + ", ".join(name for name in model.tables if name in n)
            )
    return Regularizer(
        frequent={name: most_frequent(n[name], settings.keep) for name in filtered},
        unknown=settings.rare == "unknown",
    )
