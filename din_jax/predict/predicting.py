"""Scores the rows of a file by a trained run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from din_jax.checkpoint.checkpoints import Kind
from din_jax.data.store_writer import check_free
from din_jax.errors import DinError
from din_jax.predict.table_writer import TableWriter
from din_jax.prepare.log.rows_to_score import BLOCK_ROWS, RowsToScore
from din_jax.step.state import TrainState
from din_jax.training.evaluation import Evaluator
from din_jax.training.run import Run
from din_jax.training.trained import load_run

COLUMN = "p_click"


class Predicted(NamedTuple):
    """What `predict_file` has written.

    Attributes:
      rows: how many.
      unknown: {field: how many values were unknown to the model, or missing}.
      notes: of what is not an error but may be a mistake.
    """

    rows: int
    unknown: dict[str, int]
    notes: list[str]


def predict_file(
    workdir: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    behaviors: str | Path | None = None,
    spec: str | Path | None = None,
    tables: str | Path | None = None,
    store: str | Path = "",
    checkpoint: Kind | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Predicted:
    """Scores rows without labels by a trained run, and writes them with their click probabilities.

    Rows keep their order and all their columns; `p_click` is added. They are read and written in
    blocks. Histories are joined strictly before each row, as when the store was prepared.

    Args:
      workdir, store, checkpoint: see `din_jax.training.trained.load_run`.
      data: the file or files of the rows, as the store's spec describes the impressions.
      out: the new file, .parquet, .csv or .jsonl.
      behaviors: the file of the behaviours; by default that of the spec. If the store's histories
        are clicks: a file like `data`, whose clicks they are; by default `data` itself.
      spec: describes the rows, if it is not the store's own spec.
      tables: the folder that the spec's other paths start from; by default that of the preparation.
      block_rows: how many rows are in memory at a time, about.

    Raises:
      DinError: `out` exists; the run can't be loaded; the rows lack a column, or have other inputs
        than the store.
    """
    out = Path(out)
    writer = TableWriter(out)
    check_free(out)
    run, state = load_run(workdir, store=store, devices=1, checkpoint=checkpoint)
    paths = (data,) if isinstance(data, str | Path) else data
    rows = RowsToScore(
        run.store,
        tuple(map(Path, paths)),
        spec=spec,
        behaviors=None if behaviors is None else Path(behaviors),
        folder=tables,
    )
    schema, config = run.store.schema, run.config.model
    read = {f.name for f in schema.without(config.without).inputs(config.extra_fields)}
    unknown: Counter[str] = Counter()
    count = 0
    with writer:
        for frame, missing in _scored(run, state, rows, block_rows):
            writer.append(frame)
            unknown.update(missing)
            count += len(frame)
        writer.finish()
    of_inputs = {name: missing for name, missing in unknown.items() if name in read}
    return Predicted(count, of_inputs, rows.notes)


def _scored(
    run: Run, state: TrainState, rows: RowsToScore, block_rows: int
) -> Iterator[tuple[pl.DataFrame, dict[str, int]]]:
    evaluator: Evaluator | None = None
    for frame, store, row_of_sample, unknown in rows.blocks(block_rows):
        if COLUMN in frame.columns:
            raise DinError(
                f"the rows have a column {COLUMN!r} already; rename it, since the scores are "
                "written under this name"
            )
        evaluator = run.evaluator("test", store, after=evaluator)
        probabilities = np.empty(len(frame))
        probabilities[row_of_sample] = evaluator.probabilities(state)
        yield frame.with_columns(pl.Series(COLUMN, probabilities)), unknown


def write_embeddings(
    workdir: str | Path,
    table: str,
    out: str | Path,
    *,
    store: str | Path = "",
    checkpoint: Kind | None = None,
) -> int:
    """Writes the ids of an embedding table and their vectors; returns how many.

    The file has the columns "id", as in the user's data, and "vector", a list of D numbers. The row
    of unknown ids is not in it.

    Args:
      workdir, store, checkpoint: see `din_jax.training.trained.load_run`.
      table: the name of the table.
      out: the new file, .parquet or .jsonl.

    Raises:
      DinError: `out` exists; the run can't be loaded, or its model has no such table.
    """
    writer = TableWriter(out)
    check_free(out)
    run, state = load_run(workdir, store=store, devices=1, checkpoint=checkpoint)
    named = [t.name for t in run.store.schema.tables if t.name in state.tables]
    if table not in named:
        raise DinError(f"the model has no embedding table {table!r}; it has: {', '.join(named)}")
    vectors: Any = np.asarray(state.tables[table])[1:]
    ids = run.store.vocabulary(table).ids[1:]
    column = pl.Series("vector", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
    with writer:
        writer.append(pl.DataFrame([ids.alias("id"), column.arr.to_list()]))
        writer.finish()
    return len(ids)
