"""The tables that another store has fitted, for a log that is prepared like it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from din_jax.data import vocabularies
from din_jax.data.numbers import NumberTransform
from din_jax.data.schema import Schema
from din_jax.data.store import Store
from din_jax.data.transform import Transform
from din_jax.errors import DinError
from din_jax.prepare.log.spec import TableOptions
from din_jax.prepare.log.vocabulary_fitting import FittedTable


def fitted_tables(like: str | Path) -> dict[str, FittedTable]:
    """{embedding table, or transform of numbers: what the store has fitted}.

    Raises:
      DinError: there is no store, or a vocabulary is damaged.
    """
    store = Store(like)
    transform = Transform.of_store(store)
    names = store.origin.get("number transforms", {})
    return {**transform.tables, **{names.get(n, n): t for n, t in transform.numbers.items()}}


def like_fingerprints(like: str | Path) -> tuple[str, ...]:
    """The fingerprints of a store, and of those whose vocabularies it has."""
    store = Store(like)
    return store.fingerprint, *store.like


def options_like(
    options: Mapping[str, TableOptions], known: Mapping[str, FittedTable], like: str | Path
) -> dict[str, TableOptions]:
    """The options of tables, by which their columns are read as another store's were.

    Raises:
      DinError: the store has no such table, or another kind of it.
    """
    if missing := [name for name in options if name not in known]:
        raise DinError(
            f"{like} has no table {', '.join(missing)}, which the spec names; its tables are: "
            f"{', '.join(known)}"
        )
    for name, option in options.items():
        here, there = _kind(option), _kind_of(known[name])
        if here != there:
            raise DinError(
                f"{like} has {there} in {name}, and the spec {here}; write the spec as it was for "
                "that store"
            )

    def is_text(table: FittedTable) -> bool:
        return isinstance(table, vocabularies.Fitted) and table.ids.dtype == pl.String

    return {n: dataclasses.replace(o, text=is_text(known[n])) for n, o in options.items()}


def _kind(options: TableOptions) -> str:
    if options.transform is not None:
        return f"numbers by numeric = {options.transform!r}"
    return "ids" if options.buckets is None else "buckets of numbers"


def _kind_of(table: FittedTable) -> str:
    if isinstance(table, NumberTransform):
        return _kind(TableOptions(transform=table.transform))
    return _kind(TableOptions(buckets=2 if isinstance(table, vocabularies.Buckets) else None))


def check_like(schema: Schema, other: Schema, like: str | Path) -> None:
    """Raises if a log's store would not have the inputs of another, `like`.

    Raises:
      DinError: fields or sequences differ.
    """
    parts: list[dict[str, Any]] = [
        {part.name: part for group in (s.fields, s.numbers, s.sequences) for part in group}
        for s in (schema, other)
    ]
    here, there = parts
    missing = [name for name in there if name not in here]
    extra = [name for name in here if name not in there]
    differing = [name for name in here if name in there and here[name] != there[name]]
    if missing or extra or differing:
        raise DinError(
            f"the spec does not describe the inputs of {like}: "
            + "; ".join(
                f"{what} {', '.join(names)}"
                for what, names in (
                    ("missing here:", missing),
                    ("not there:", extra),
                    (
                        "of another kind (one value or several, another table, with weights or "
                        "times or without):",
                        differing,
                    ),
                )
                if names
            )
            + ". Write the spec with the same fields and sequences"
            + (
                "; what users clicked, if that is their history, is in [behaviours], or in "
                "[impressions] with a label, which is empty in the rows to score"
                if any(name in missing for name in (s.name for s in other.sequences))
                else ""
            )
        )
