"""Rows to score, in blocks: joined with side tables and histories as a store was prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.prepare.log import spec_reader
from din_jax.prepare.log.fitted import check_like, fitted_tables, options_like
from din_jax.prepare.log.joined_log import JoinedLog
from din_jax.prepare.log.spec import Behaviors, Spec
from din_jax.prepare.log.table_reader import TableReader
from din_jax.prepare.log.tables import Tables, columns_of
from din_jax.prepare.log.typed_columns import TypedColumns
from din_jax.prepare.log.writing import log_schema, write_columns

BLOCK_ROWS = 1 << 18
_PLACE = ".place"  # the row of a block that a sample is


class Block(NamedTuple):
    """Some rows to score.

    Attributes:
      frame: the rows, with all their columns, as they are in the file.
      store: their samples, in memory, in the split "test".
      row_of_sample: int64, the row of each sample.
      unknown: {feature: how many of its values have no row of their own: unknown ids, and none}.
    """

    frame: pl.DataFrame
    store: Store
    row_of_sample: npt.NDArray[np.int64]
    unknown: dict[str, int]


class RowsToScore:
    """Reads rows to score, whose ids and numbers are mapped as a store maps them.

    A row's history is the user's behaviours strictly before it: those of the table of behaviours,
    or of the row's own lists; or, where the store's histories are clicks, the clicks in
    `behaviors`, or else in the rows themselves.

    Args:
      store: that the model was trained on.
      data: the files of the rows.
      spec: describes them; by default the store's own spec.
      behaviors: the file of the behaviours, in place of the spec's.
      folder: that the spec's other paths start from; by default as it was prepared.

    Attributes:
      notes: of what is not an error but may be a mistake.

    Raises:
      DinError: the rows lack a column, or have other inputs than the store.
    """

    def __init__(
        self,
        store: Store,
        data: tuple[Path, ...],
        *,
        spec: str | Path | None = None,
        behaviors: Path | None = None,
        folder: str | Path | None = None,
    ):
        self.store = store
        parsed = self._spec(spec, folder)
        files = dataclasses.replace(
            parsed.impressions.files, paths=data, where=(), keep_duplicates=True
        )
        self._reader = TableReader(files)
        impressions = dataclasses.replace(parsed.impressions, files=files, label=None, weight=None)
        own = not (parsed.behaviors or parsed.histories) and bool(store.schema.sequences)
        if own:
            parsed = dataclasses.replace(parsed, behaviors=(self._clicks(parsed, behaviors),))
        elif behaviors is not None:
            parsed = _with_behaviors(parsed, behaviors)
        known = fitted_tables(store.path)
        self.spec = dataclasses.replace(
            parsed,
            impressions=impressions,
            split=None,
            negatives=None,
            tables=options_like(parsed.tables, known, store.path),
            to_score=True,
        )
        self._known = {name: known[name] for name in self.spec.tables}
        self._others = Tables.without_impressions(self.spec)
        self.notes = self._others.notes

    def _spec(self, spec: str | Path | None, folder: str | Path | None) -> Spec:
        if spec is not None:
            return spec_reader.read(spec, folder, to_score=True)
        source = self.store.origin.get("spec")
        if source is None:
            raise DinError(
                f"{self.store.path}: this store was not prepared by a spec; describe the rows by "
                "--spec, with the store's fields (docs/predict.md)"
            )
        folder = folder or self.store.origin.get("data", ".")
        described = {k: v for k, v in source.items() if k not in ("split", "negatives")}
        return spec_reader.parse(
            described, self.store.path / "schema.json", Path(folder), to_score=True
        )

    def _clicks(self, spec: Spec, path: Path | None) -> Behaviors:
        """The clicks as a table of behaviours: a file of them, or the rows with a label."""
        impressions = spec.impressions
        files = dataclasses.replace(impressions.files, section="behaviours", where=())
        label = impressions.label
        paths = self._reader.files[0].path if path is None else path
        reader = TableReader(dataclasses.replace(files, paths=(paths,)))
        has_label = label is not None and label.column in reader.names()
        if path is None and not has_label:
            raise DinError(
                f"{paths}: the histories of {self.store.path} are the clicks before, and these "
                "rows have no label; name the file of the users' clicks with --behaviours"
            )
        where: tuple[tuple[str, tuple[str, ...]], ...] = ()
        if has_label and label is not None:
            if label.at_least is not None or label.impressions is not None:
                raise DinError(
                    f"{paths}: clicks that are derived by at_least or from counts can't be "
                    "behaviours here; name a file that has them alone with --behaviours"
                )
            clicks = label.positive or ("1", "1.0", "true", "True")
            where = ((label.column, clicks),)
        used = self._reader.files if path is None else reader.files
        assert impressions.user is not None  # else the store would have no sequence
        return Behaviors(
            name=self.store.schema.sequences[0].name,
            files=dataclasses.replace(files, paths=tuple(f.path for f in used), where=where),
            user=impressions.user,
            item=impressions.item,
            time=impressions.time,
            order=None,
            ad=impressions.fields["ad"],
            extra=(),
        )

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[Block]:
        """Yields the rows in their order, about so many at a time."""
        _, columns = columns_of(self.spec)[0]
        for frame, read in self._reader.blocks(columns, rows):
            if len(frame):
                yield self._block(frame, read)

    def _block(self, frame: pl.DataFrame, read: pl.DataFrame) -> Block:
        typed = TypedColumns(
            self.spec.impressions.files, self._reader, read, self._others.text_tables
        )
        tables = self._others.with_impressions(self.spec, typed)
        tables.frames["impressions"] = tables.frames["impressions"].with_row_index(_PLACE)
        log = JoinedLog(self.spec, 0, tables)
        check_like(log_schema(log, self._known), self.store.schema, self.store.path)
        schema = dataclasses.replace(self.store.schema, weighted=False)
        columns = _Columns()
        write_columns(columns, log, self._known, schema)
        store = Store.of_columns(schema, columns.whole(), {"test": (0, len(frame))})
        assert log.place is not None  # it was given above
        return Block(frame, store, log.place, _unknown(store))


def _with_behaviors(spec: Spec, path: Path) -> Spec:
    if len(spec.behaviors) != 1:
        raise DinError(
            f"--behaviours {path}: the spec has {len(spec.behaviors)} tables of behaviours, and "
            "one file can't replace them; name a --spec with their paths"
        )
    (one,) = spec.behaviors
    files = dataclasses.replace(one.files, paths=(path,))
    return dataclasses.replace(spec, behaviors=(dataclasses.replace(one, files=files),))


def _unknown(store: Store) -> dict[str, int]:
    unknown = {}
    for field in store.schema.fields:
        rows = store.column(f"fields/{field.name}")
        unknown[field.name] = int((rows == 0).sum())
    return unknown


class _Columns:
    """Columns in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[npt.NDArray[Any]]] = {}

    def append(self, name: str, values: npt.NDArray[Any]) -> None:
        self._parts.setdefault(name, []).append(values)

    def whole(self) -> dict[str, npt.NDArray[Any]]:
        return {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts)
            for name, parts in self._parts.items()
        }
