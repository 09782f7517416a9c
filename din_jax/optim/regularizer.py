"""The regularisers of section 6.5 as the steps take them: dropout and filter of ids, n_j for MBA.

Dropout and the frequency filter change which ids are looked up; MBA and DiFacto are decays, see
`din_jax.optim.decay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from ml_collections import ConfigDict

from din_jax.data.counts import cached_counts
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.models.features import is_behavior
from din_jax.models.registry import Model
from din_jax.nn.embedding import Lookup, Lookups

_DROPOUT = 0xD809
_Changed = dict[str, dict[str, Lookup]]


class Regularizer(struct.PyTreeNode):
    """What a config's regulariser needs in the steps; by default nothing.

    Attributes:
      counts: n_j of the tables that are decayed, {table: float32[K]}.
      frequent: ids that the frequency filter leaves, {table: bool[K]}.
      unknown: filtered ids, an ad's too, become row 0; otherwise an ad's stay, and visited ones are
        looked up no more (the zero vector).
      dropout: probability that an id is dropped in training.
      behaviors_only: drop only ids of behaviours.
      seed: of what is dropped.
    """

    counts: dict[str, Any] = struct.field(default_factory=dict)
    frequent: dict[str, Any] = struct.field(default_factory=dict)
    unknown: bool = struct.field(pytree_node=False, default=False)
    dropout: float = struct.field(pytree_node=False, default=0.0)
    behaviors_only: bool = struct.field(pytree_node=False, default=False)
    seed: int = struct.field(pytree_node=False, default=0)

    def scoring(self, lookups: Lookups) -> _Changed:
        """The lookups as they are in evaluation: filtered."""
        return filter_ids(lookups, self.frequent, unknown=self.unknown)

    def training(self, lookups: Lookups, step: jax.Array, axis: str | None = None) -> _Changed:
        """The lookups as they are in training step `step`: some dropped, and filtered.

        Args:
          lookups: of a batch, or of this device's local batch.
          step: which.
          axis: mapped axis of the devices, or None for one.
        """
        if not self.dropout:
            return self.scoring(lookups)
        # Not the keys that the initial values are made of.
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
) -> _Changed:
    """Drops each feature id of a batch with probability `rate` (dropout, section 6.5).

    A dropped id gives the zero vector, and its row is not present; the others are scaled by
    1 / (1 − rate). Whether an id is dropped depends on its position among the batch's real ids,
    which neither padding nor the number of devices changes; if it is looked up in several tables,
    it is dropped in all of them.

    Args:
      lookups: of a batch, or of this device's local batch; in the order of samples.
      key: of this step.
      rate: in [0, 1); the paper: 0.5.
      behaviors_only: leave the ids of fields alone.
      axis: mapped axis of the devices, or None for one.
    """
    changed: _Changed = {}
    names = sorted({name for of_table in lookups.values() for name in of_table})
    for table, of_table in lookups.items():
        for name, at in of_table.items():
            if is_behavior(name) or not behaviors_only:
                positions = jnp.cumsum(at.mask) - 1 + _before(jnp.sum(at.mask), axis)
                own_key = jax.random.fold_in(key, names.index(name))
                drawn = jax.vmap(lambda p, k=own_key: jax.random.uniform(jax.random.fold_in(k, p)))(
                    positions
                )
                at = at._replace(mask=at.mask & (drawn >= rate), scale=at.scale / (1 - rate))
            changed.setdefault(table, {})[name] = at
    return changed


def _before(count: jax.Array, axis: str | None) -> jax.Array | int:
    """The sum of `count` over the devices before this one."""
    if axis is None:
        return 0
    counts = jax.lax.all_gather(count, axis)
    return jnp.sum(jnp.where(jnp.arange(len(counts)) < jax.lax.axis_index(axis), counts, 0))


def filter_ids(lookups: Lookups, frequent: Mapping[str, Any], *, unknown: bool = False) -> _Changed:
    """Leaves only the frequent ids of some tables (frequency filter, section 6.5).

    Args:
      lookups: of a batch.
      frequent: {table: bool[K]}, see `most_frequent`.
      unknown: rare ids become row 0, an ad's too; otherwise rare visited ids leave the history, and
        an ad's stay.
    """
    changed: _Changed = {table: dict(of_table) for table, of_table in lookups.items()}
    for table in frequent:
        for name, at in changed.get(table, {}).items():
            stays = jnp.asarray(frequent[table]).at[at.ids].get(mode="clip")
            if unknown:
                at = at._replace(ids=jnp.where(stays, at.ids, 0))
            elif is_behavior(name):
                at = at._replace(mask=at.mask & stays)
            changed[table][name] = at
    return changed


def most_frequent(counts: np.ndarray, fraction: float) -> np.ndarray:
    """bool[K]: the most frequent ids of a table by n_j, a `fraction` of all but row 0.

    At least one stays of those that occur; of ids that are equally frequent the lower rows stay.
    One that never occurs does not, and row 0 is never in it: it is what "unknown" becomes.
    """
    frequent = np.zeros(len(counts), bool)
    number = max(1, round(fraction * (len(counts) - 1)))
    frequent[1 + np.argsort(-counts[1:], kind="stable")[:number]] = True
    return frequent & (counts > 0)


def decayed_tables(model: Model) -> list[str]:
    """The embedding tables, without those of a bias or a weight an id."""
    return [name for name, spec in model.tables.items() if spec.decayed]


def build_regularizer(config: ConfigDict, store: Store, model: Model) -> Regularizer:
    """The regulariser that a config describes.

    Args:
      config: of the run.
      store: whose ids are counted, for MBA and the filter.
      model: whose tables are decayed or filtered.

    Raises:
      DinError: the model has tables that this regulariser can't handle, or a key names a table that
        the model lacks.
    """
    chosen = config.regularizer
    if chosen.name == "dropout":
        return Regularizer(
            dropout=chosen.dropout, behaviors_only=chosen.behaviors_only, seed=config.seed
        )
    if chosen.name not in ("mba", "filter"):
        return Regularizer()
    n = cached_counts(
        store,
        config.data.fit,
        max_history=config.data.max_history,
        extra_fields=config.model.extra_fields,
    )
    if chosen.name == "mba":
        without = [name for name in decayed_tables(model) if name not in n]
        if without:
            raise DinError(
                f"config.regularizer.name='mba': no counts n_j for {', '.join(without)}: the data "
                "set's own tables have them, but not a table of hashed ids, several of which "
                "share a row, or of one input's weights; use 'difacto', which needs none"
            )
        return Regularizer(
            counts={name: n[name].astype(np.float32) for name in decayed_tables(model)}
        )
    beside = [name for name in model.tables if name not in n]
    if beside:
        raise DinError(
            f"config.regularizer.name='filter' with config.model.name={config.model.name!r}: the "
            f"ids that it takes out of the data set's tables would live on in {', '.join(beside)}; "
            "use another regularizer, or a model without such tables"
        )
    schema = store.schema.without(config.model.without)
    goods = dict.fromkeys(sequence.fields[0].table for sequence in schema.sequences)
    filtered = tuple(chosen.filter_tables) or tuple(goods)
    for name in filtered:
        if name not in model.tables or name not in n:
            raise DinError(
                f"config.regularizer.filter_tables names {name!r}; tables with counts are: "
                + ", ".join(name for name in model.tables if name in n)
            )
    return Regularizer(
        frequent={name: most_frequent(n[name], chosen.keep) for name in filtered},
        unknown=chosen.rare == "unknown",
    )
