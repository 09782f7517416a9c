"""Your own log: impressions, behaviours and side tables, Parquet, CSV or JSON, by a spec in TOML.

A sample is an impression. Its history is the user's behaviours strictly before it: those of a
separate table, of the impression's own row, or the impressions that the user clicked. Where a log
has only what users took, what they did not take is drawn. Everything that is fitted (vocabularies,
their counts, quantiles) comes from the training split: from its samples, and from the behaviours
in the history of at least one of them. Validation and test are only mapped.

docs/your-data.md describes the spec.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from din_jax.data.numbers import NumberTransform
from din_jax.data.store import Store
from din_jax.data.store_writer import check_free
from din_jax.distributed import heap
from din_jax.errors import DinError
from din_jax.prepare.log import sample_notes, spec_reader
from din_jax.prepare.log.fitted import (
    check_like,
    fitted_tables,
    like_fingerprints,
    options_like,
)
from din_jax.prepare.log.joined_log import JoinedLog
from din_jax.prepare.log.preview import preview
from din_jax.prepare.log.report import report
from din_jax.prepare.log.tables import Tables
from din_jax.prepare.log.vocabulary_fitting import fit_table
from din_jax.prepare.log.writing import as_json, log_schema, table_counts, write_store

_THREADS = 2
_MAPPED_BYTES = (
    1 << 30
)  # smaller arrays stay in the heap when they are freed: half the system's time

__all__ = ["add_arguments", "check", "prepare", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument("--spec", required=True, help="the TOML file that describes the tables")
    parser.add_argument("--data", help="folder that the spec's paths start from (default: its own)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of a split, of negatives, and of ids made unknown"
    )
    parser.add_argument(
        "--like",
        metavar="STORE",
        help="map ids and numbers as this store does, and fit nothing: for a new day, to score it",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read the first million rows of each table, report on them, and write nothing",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it."""
    heap.set_thresholds(_MAPPED_BYTES, heap.MOST_BYTES)
    if arguments.check:
        for line in check(arguments.spec, data=arguments.data, to_score=arguments.like is not None):
            print(line)
        return
    if arguments.out is None:
        raise DinError("--out is missing; expected the folder of the new store (or --check)")
    origin = prepare(
        arguments.spec,
        arguments.out,
        data=arguments.data,
        seed=arguments.seed,
        like=arguments.like,
    )
    print("\n".join(report(origin)))
    print(f"store written to {arguments.out}")


def check(spec: str | Path, *, data: str | Path | None = None, to_score: bool = False) -> list[str]:
    """What is understood of the first million rows of each table, as lines of text.

    Raises:
      DinError: as `prepare`, as far as these rows show it.
    """
    return list(preview(spec_reader.read(spec, data, to_score=to_score)))


def prepare(
    spec: str | Path,
    out: str | Path,
    *,
    data: str | Path | None = None,
    seed: int = 0,
    like: str | Path | None = None,
    origin: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a store from the tables of a log.

    Args:
      spec: the TOML file that describes them (docs/your-data.md).
      out: folder of the store.
      data: the folder that the spec's paths start from; by default its own.
      seed: of a random split, of negatives, and of which ids are made unknown.
      like: a store whose vocabularies and buckets are used in place of fitting. Then the spec needs
        no label, and without a [split] all samples are in test.
      origin: further entries of the store's origin, in place of "data", the folder of the tables.

    Returns:
      Counts of the input and the output, which are also written to the store as its origin.

    Raises:
      DinError: `out` exists; the spec or a table is invalid, and the message says where; a split
        is empty; clicks of a later split would be behaviours of an earlier one; or the inputs are
        not those of `like`.
    """
    check_free(out)
    if seed < 0:
        raise DinError(f"--seed {seed}: expected 0 or more")
    parsed = spec_reader.read(spec, data, to_score=like is not None)
    known = None if like is None else fitted_tables(like)
    if known is not None and like is not None:
        parsed = dataclasses.replace(parsed, tables=options_like(parsed.tables, known, like))
    log = JoinedLog(parsed, seed, Tables(parsed))
    with ThreadPoolExecutor(_THREADS) as threads:  # NumPy and Polars release the interpreter
        counting = threads.submit(sample_notes.own_histories, log)
        if known is None:
            log.check_labels()
            fits = {n: threads.submit(fit_table, log, n, o, seed) for n, o in parsed.tables.items()}
            tables = {name: fit.result() for name, fit in fits.items()}
        else:
            tables = {name: known[name] for name in parsed.tables}
            assert like is not None
            check_like(log_schema(log, tables), Store(like).schema, like)
        counted = counting.result()
    written: dict[str, Any] = {
        "preparation": "log",
        "seed": seed,
        "rows": log.counts,
        "found": log.join_rates(),
        "samples": {},
        "label rate": {},
        "tables": {name: table_counts(table) for name, table in tables.items()},
        "unknown": {},
        "histories": {},
        "own history": {name: str(own) for name, own in counted.items()},
        "notes": log.notes,
        "spec": as_json(parsed.source),
    }
    if transforms := {n: t.to_json() for n, t in tables.items() if isinstance(t, NumberTransform)}:
        written["numbers"] = transforms
        of_field = {n: f.table for n, f in log.all_fields().items() if f.table in transforms}
        if shared := {name: table for name, table in of_field.items() if name != table}:
            written["number transforms"] = shared
    if log.negatives is not None:
        written["negatives"] = log.negatives
    if like is not None:
        written["like"] = str(like)
    folder = Path(data if data is not None else Path(spec).parent)
    written |= {"data": str(folder.absolute())} if origin is None else origin
    write_store(
        log,
        tables,
        out,
        written,
        lambda: sample_notes.notes(log, counted, written),
        like_fingerprints(like) if like is not None else (),
    )
    return written
