"""Fits the embedding tables of a log on its training split."""

from __future__ import annotations

import numpy as np
import polars as pl

from din_jax.data import numbers, vocabularies
from din_jax.data.id_lookup import distinct
from din_jax.data.numbers import NumberTransform
from din_jax.prepare.log.joined_log import JoinedLog
from din_jax.prepare.log.seeding import generator
from din_jax.prepare.log.spec import TableOptions
from din_jax.prepare.log.value_types import common_type

FittedTable = vocabularies.Fitted | vocabularies.Buckets | NumberTransform


def fit_table(log: JoinedLog, table: str, options: TableOptions, seed: int) -> FittedTable:
    """Fits a table on the training samples and on the behaviours in their histories, each once."""
    train = log.splits["train"]
    in_train = np.zeros(len(log.user), bool)
    in_train[train] = True
    parts = [f.occurrences(in_train) for f in log.all_fields().values() if f.table == table]
    for sequence in log.sequences.values():
        features = [f for f in sequence.features.values() if f.table == table]
        if features:
            in_histories = sequence.in_histories_of(train)
            parts += [f.occurrences(in_histories) for f in features]
    dtype = common_type(part.dtype for part in parts)
    occurrences = pl.concat([part.cast(dtype).alias("id") for part in parts])
    if options.transform is not None:
        values = occurrences.cast(pl.Float64).fill_null(np.nan).to_numpy()
        return numbers.fit(values, options.transform, name=f"{log.spec.path}: {table}")
    if options.buckets is not None:
        return vocabularies.fit_buckets(occurrences, options.buckets)
    return vocabularies.fit(
        occurrences,
        generator(seed, table),
        unknown_share=options.unknown_share,
        min_count=options.min_count,
        others=_all_ids(log, table, dtype) if options.ids == "all" else None,
    )


def _all_ids(log: JoinedLog, table: str, dtype: pl.DataType) -> pl.Series:
    """The ids of a table that occur anywhere in the log, and those of the catalogue."""
    features = list(log.all_fields().values())
    features += [f for s in log.sequences.values() for f in s.features.values()]
    parts = [f.values.explode() if f.multi_hot else f.values for f in features if f.table == table]
    return distinct(pl.concat([part.cast(dtype).alias("id") for part in parts]))
