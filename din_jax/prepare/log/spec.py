"""The spec of a log as dataclasses: what the user's tables and columns mean.

`docs/your-data.md` describes every key of the TOML file; `spec_reader` reads it.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any, Literal, TypeGuard

from din_jax.data.vocabularies import UNKNOWN_SHARE

SplitStart = int | float | datetime.datetime


@dataclasses.dataclass(frozen=True)
class Column:
    """A feature: the column of its values and the embedding table of their ids.

    Attributes:
      name: of the field.
      column: of the user's table.
      table: the embedding table.
      separator: text is split at it into several values.
      list: "json" or "python": text holds a list of values in this notation.
      weighted: each of the several values is "id:weight". "drop": the id alone is used; "use": the
        weight too.
      take: which one of several values is used: the category at the end of its path, for instance.
      numeric: a number a row, for the buckets of the embedding table or as a number itself.
      null_values: text that means a missing value in this column, beside that of the table.
      transform: of a number that is an input itself, see `din_jax.data.numbers`; `table` then
        names the transform, which columns may share.
    """

    name: str
    column: str
    table: str
    separator: str | None = None
    list: Literal["json", "python"] | None = None
    weighted: Literal["drop", "use"] | None = None
    take: Literal["first", "last"] | None = None
    numeric: bool = False
    null_values: tuple[str, ...] = ()
    transform: str | None = None


@dataclasses.dataclass(frozen=True)
class TableFiles:
    """The files of one of the user's tables, named `section` in messages, and how to read them.

    Attributes:
      section: of the spec.
      paths: files, folders or patterns such as "day-*.csv", in order.
      delimiter: of CSV; None: a tab in files named .tsv, else a comma.
      quote, escape, encoding, header: of CSV, see `csv_blocks.Dialect`; `header` names the columns
        of files without one.
      null_values: text that means a missing value, beside the empty one.
      strip: whether spaces around values are removed.
      where: {column: the values of the rows to read}.
      keep_duplicates: whether rows that are equal in all columns count as often as they occur.
    """

    section: str
    paths: tuple[Path, ...]
    delimiter: str | None = None
    quote: str = '"'
    escape: str | None = None
    encoding: str = "utf-8"
    header: tuple[str, ...] | None = None
    null_values: tuple[str, ...] = ()
    strip: bool = False
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()
    keep_duplicates: bool = False

    def source(self) -> tuple[Any, ...]:
        """What two sections that read the same text in the same way have in common."""
        return dataclasses.astuple(
            dataclasses.replace(self, section="", where=(), keep_duplicates=False)
        )


@dataclasses.dataclass(frozen=True)
class Time:
    """The time of a row: its columns, which are joined by a space, and how they are written.

    Attributes:
      columns: their names.
      unit: of numbers; None where the spec does not name it.
      format: of text, as in `strptime`; None: numbers, or dates as in ISO 8601.
      zone: of dates without a zone, "Asia/Shanghai" for instance; None: UTC.
    """

    columns: tuple[str, ...]
    unit: str | None = None
    format: str | None = None
    zone: str | None = None

    @property
    def name(self) -> str:
        """The columns as a message names them."""
        return " ".join(self.columns)


@dataclasses.dataclass(frozen=True)
class Label:
    """What a click is.

    Attributes:
      column: its values are 0 and 1, unless one of the following is given.
      positive: the values that are clicks.
      at_least: numbers from this one on are clicks.
      impressions: `column` has numbers of clicks, and this column of impressions: each row
        is a sample of label 1, weighted by its clicks, and one of label 0 by the rest.
    """

    column: str
    positive: tuple[str, ...] | None = None
    at_least: float | None = None
    impressions: str | None = None


@dataclasses.dataclass(frozen=True)
class Impressions:
    """The table of samples; `fields` is {"user" | "ad" | "context": the columns of the group}.

    Without `label` every row is an interaction, and `Negatives` makes the others; or the rows are
    to be scored. `user`, `item`, `time` and `weight` are None where the log has none. `in_order`:
    where clicks are the behaviours, rows of one time follow one another as in the files.
    """

    files: TableFiles
    label: Label | None
    user: str | None
    item: str | None
    time: Time | None
    weight: str | None
    in_order: bool
    fields: dict[str, tuple[Column, ...]]


@dataclasses.dataclass(frozen=True)
class Behaviors:
    """A table of behaviours and the name of its sequence.

    `time` is None where all behaviours lie before all impressions (`prior = true`). `item` is None
    where only what is in `ad` is known of them. `extra` are fields that the ad does not have, such
    as the behaviour's type.
    """

    name: str
    files: TableFiles
    user: str
    item: str | None
    time: Time | None
    order: str | None
    ad: tuple[Column, ...]
    extra: tuple[Column, ...] = ()


@dataclasses.dataclass(frozen=True)
class ListedHistory:
    """A history that stands in the impression's own row: columns that are lists.

    `item` and the fields in `ad` are aligned; `time` has the behaviours' times, or is None where
    all lie before the impression; `time_lists` says how their lists are written. `newest_first`: in
    this order; otherwise the oldest is first.
    """

    name: str
    item: Column | None
    time: Time | None
    time_lists: Column | None
    ad: tuple[Column, ...]
    newest_first: bool

    @property
    def section(self) -> str:
        """The section of the spec, as messages name it."""
        return "history" if self.name == "history" else f"history.{self.name}"


@dataclasses.dataclass(frozen=True)
class SideTable:
    """A table of items or users: `columns` by `key`, valid from `valid_from` on if it is given.

    `title` is the column of the items' display names, which no model reads, or None.
    """

    files: TableFiles
    key: str
    valid_from: Time | None
    columns: tuple[Column, ...]
    title: str | None = None


@dataclasses.dataclass(frozen=True)
class Negatives:
    """What the user did not take, drawn for each interaction.

    Attributes:
      per_positive: how many.
      by: the law: "uniform", "in_category", or "popularity" with an exponent.
      category: with "in_category": the ad's field.
      exclude: "before": what the user has taken until then is never drawn; "ever": nor later.
    """

    per_positive: int
    by: str
    category: str | None
    exclude: Literal["before", "ever"]


@dataclasses.dataclass(frozen=True)
class Split:
    """How impressions are split.

    Attributes:
      by: "time", "user", "column", "random", or "last": each user's last impression is of test, the
        one before it of validation.
      column, values, ignore: if `by` is "column": its name, the values of each split, and the
        values that are left out.
      starts: of validation and test, where given: a fraction of the rows (of the train rows if
        `by` is "column") or of the users, or the time at which the split begins.
      min_history: rows with fewer clicks before them are behaviours, and no samples.
    """

    by: str
    column: str | None
    values: dict[str, tuple[str, ...]]
    ignore: tuple[str, ...]
    starts: dict[str, SplitStart]
    min_history: int = 0


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How an embedding table is fitted: a vocabulary, or with `buckets` quantiles.

    `ids`: of training alone ("train"), or all that the log has ("all").

    With `transform` it is no table, but the transform of a number. With `text` its ids are text as
    it stands, "4.0" too; otherwise they are whole numbers where all values of a column are.
    """

    min_count: int = 1
    unknown_share: float = UNKNOWN_SHARE
    buckets: int | None = None
    transform: str | None = None
    ids: Literal["train", "all"] = "train"
    text: bool = False


@dataclasses.dataclass(frozen=True)
class Spec:
    """A whole spec.

    Without `behaviors` and `histories` the clicked impressions are the behaviours. `tables` has an
    entry for every embedding table. `source` is the parsed TOML. `to_score`: the rows are to be
    scored like those of another store; few of them need to meet the other tables.
    """

    path: Path
    impressions: Impressions
    behaviors: tuple[Behaviors, ...]
    histories: tuple[ListedHistory, ...]
    items: tuple[SideTable, ...]
    users: tuple[SideTable, ...]
    negatives: Negatives | None
    split: Split | None
    tables: dict[str, TableOptions]
    source: dict[str, Any]
    to_score: bool = False


SHARE_OR_TIME = (
    "A share lies between 0 and 1 (0.1 is a tenth of the rows); any other number, or a date, is "
    "the point in time at which the split begins"
)


def is_share(start: SplitStart) -> TypeGuard[float]:
    """Whether this is a fraction of rows or users, not a point in time."""
    return isinstance(start, float) and 0 < start < 1
