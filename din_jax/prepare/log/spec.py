"""The spec of a log as dataclasses: what the user's tables and columns mean.

`docs/your-data.md` describes every key of the TOML file; `spec_reader` reads it.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any, TypeGuard

from din_jax.prepare.vocabularies import UNKNOWN_SHARE

SplitStart = int | float | datetime.datetime


@dataclasses.dataclass(frozen=True)
class Column:
    """A feature: the column of its values and the embedding table of their ids.

    Text is split at `separator` into several values. `numeric`: the embedding table has buckets.
    """

    name: str
    column: str
    table: str
    separator: str | None
    numeric: bool


@dataclasses.dataclass(frozen=True)
class TableFiles:
    """The file or folder of one of the user's tables, named `section` in messages."""

    section: str
    path: Path
    delimiter: str | None  # None: a tab in files named .tsv, else a comma


@dataclasses.dataclass(frozen=True)
class Impressions:
    """The table of samples; `fields` is {"user" | "ad" | "context": the columns of the group}.

    `time_unit` is that of all times that are numbers; None where the spec does not name it.
    """

    files: TableFiles
    label: str
    user: str
    item: str
    time: str
    time_unit: str | None
    fields: dict[str, tuple[Column, ...]]


@dataclasses.dataclass(frozen=True)
class Behaviors:
    """A table of behaviours and the name of its sequence.

    `time` is None where all behaviours lie before all impressions (`prior = true`).
    """

    name: str
    files: TableFiles
    user: str
    item: str
    time: str | None
    order: str | None
    ad: tuple[Column, ...]


@dataclasses.dataclass(frozen=True)
class SideTable:
    """A table of items or users: `columns` by `key`, valid from `valid_from` on if it is given."""

    files: TableFiles
    key: str
    valid_from: str | None
    columns: tuple[Column, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """How impressions are split.

    Attributes:
      by: "time", "user" or "column".
      column, values, ignore: if `by` is "column": its name, the values of each split, and the
        values that are left out.
      starts: of validation and test, where given: a fraction of the rows (of the train rows if
        `by` is "column") or of the users, or the time at which the split begins.
    """

    by: str
    column: str | None
    values: dict[str, tuple[str, ...]]
    ignore: tuple[str, ...]
    starts: dict[str, SplitStart]


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How an embedding table is fitted: a vocabulary, or with `buckets` quantiles."""

    min_count: int = 1
    unknown_share: float = UNKNOWN_SHARE
    buckets: int | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
    """A whole spec.

    `behaviors` is empty where the clicked impressions are the behaviours. `tables` has an entry for
    every embedding table. `source` is the parsed TOML.
    """

    path: Path
    impressions: Impressions
    behaviors: tuple[Behaviors, ...]
    items: tuple[SideTable, ...]
    users: tuple[SideTable, ...]
    split: Split
    tables: dict[str, TableOptions]
    source: dict[str, Any]


SHARE_OR_TIME = (
    "A share lies between 0 and 1 (0.1 is a tenth of the rows); any other number, or a date, is "
    "the point in time at which the split begins"
)


def is_share(start: SplitStart) -> TypeGuard[float]:
    """Whether this is a fraction of rows or users, not a point in time."""
    return isinstance(start, float) and 0 < start < 1
