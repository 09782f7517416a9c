"""Your own log: impressions, behaviours and side tables, Parquet or CSV, by a spec in TOML.

A sample is an impression. Its history is the user's behaviours strictly before it: those of a
separate table, or the impressions that the user clicked. Everything that is fitted (vocabularies,
their counts, quantiles) comes from the training split: from its samples, and from the behaviours
in the history of at least one of them. Validation and test are only mapped.

docs/your-data.md describes the spec.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from din_jax.data.store_writer import check_free
from din_jax.errors import DinError
from din_jax.prepare.log import spec_reader
from din_jax.prepare.log.joined_log import JoinedLog
from din_jax.prepare.log.report import report
from din_jax.prepare.log.vocabulary_fitting import fit_table
from din_jax.prepare.log.writing import write_store

__all__ = ["add_arguments", "prepare", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument("--spec", required=True, help="the TOML file that describes the tables")
    parser.add_argument("--data", help="folder that the spec's paths start from (default: its own)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of a split by user, and of ids made unknown"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it."""
    origin = prepare(arguments.spec, arguments.out, data=arguments.data, seed=arguments.seed)
    print("\n".join(report(origin)))
    print(f"store written to {arguments.out}")


def prepare(
    spec: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    seed: int = 0,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a store from the tables of a log.

    Args:
      spec: the TOML file that describes them (docs/your-data.md).
      out: folder of the store.
      data: the folder that the spec's paths start from; by default its own.
      seed: of a split by user, and of which ids are made unknown.
      origin: further entries of the store's origin.

    Returns:
      Counts of the input and the output, which are also written to the store as its origin.

    Raises:
      DinError: `out` exists; the spec or a table is invalid, and the message says where; a split
        is empty; clicks of a later split would be behaviours of an earlier one.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    parsed = spec_reader.read(spec, data)
    log = JoinedLog(parsed, seed)
    tables = {name: fit_table(log, name, options, seed) for name, options in parsed.tables.items()}
    return write_store(log, tables, out, seed, origin or {})
