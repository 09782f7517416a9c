"""The files of the BARS benchmark (FuxiCTR's layout AmazonElectronics_x1), by its protocol.

A line has `label,user_id,item_id,cate_id,item_history,cate_history`. The two histories are lists of
equal length, separated by ^, oldest behaviour first, and may be empty. Other columns are ignored.

BARS has no validation file here: its configuration names test.csv as validation data too, selects
the epoch and the hyper-parameters on it and reports its metrics (reczoo/BARS, ranking/ctr/DIN/
DIN_amazonelectronics_x1/DIN_amazonelectronics_x1_tuner_config_11.yaml). Without --valid this
preparation does so too: the validation split is the test split. Compare metrics of such a store
with those that BARS publishes and with no others; `data.fit=train+validation` would train on test.

Vocabularies are FuxiCTR's: they have the ids that occur at least --min-count times in training (its
min_categr_count, 1 in BARS) as an ad or in histories; others are row 0, "unknown". FuxiCTR has two
rows in its place, one for padding and one for unknown ids. Here nothing is padded, and as in
FuxiCTR no training sample has an unknown id if --min-count is 1, so that row 0 stays the zero
vector. Each sample's history is stored as it is in the file; `data.max_history` truncates it to the
last behaviours, as FuxiCTR's max_len does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import SPLITS
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.data.vocabularies import Fitted
from din_jax.errors import DinError
from din_jax.prepare.origin import lines
from din_jax.prepare.own_history import own_history

COLUMNS = ("label", "user_id", "item_id", "cate_id", "item_history", "cate_history")
_FIELDS = {"item": ("item_id", "item_history"), "category": ("cate_id", "cate_history")}
_ROWS_AT_ONCE = 1 << 18

SELECTED_ON_TEST = (
    "validation is test, as in BARS: what is selected on it is selected on test. Compare the "
    "figures with those that BARS publishes and with nothing else, and never train this store "
    "with data.fit=train+validation"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this preparation's flags to a command line."""
    parser.add_argument("--train", required=True, help="train.csv")
    parser.add_argument("--valid", help="valid.csv; without it validation is test, as in BARS")
    parser.add_argument("--test", required=True, help="test.csv")
    parser.add_argument(
        "--min-count", type=int, default=1, help="ids rarer in training are unknown (default 1)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares the store and prints what is in it."""
    if arguments.valid is None:
        print(f"WARNING: no --valid: {SELECTED_ON_TEST}.", file=sys.stderr)
    origin = prepare(
        arguments.train,
        arguments.test,
        arguments.out,
        valid=arguments.valid,
        min_count=arguments.min_count,
    )
    for line in lines(origin):
        print(line)
    print(f"store written to {arguments.out}")


def prepare(
    train: str | Path,
    test: str | Path,
    out: str | Path,
    *,
    valid: str | Path | None = None,
    min_count: int = 1,
) -> dict[str, Any]:
    """Writes a store from the files of a BARS data set.

    Args:
      train, test: CSV files with a header, see the module's description.
      out: folder of the store.
      valid: as `test`; None: the validation split is the test split.
      min_count: ids that occur less often in training, among ads and among histories, are unknown.

    Returns:
      Counts, which are also written to the store as its origin.

    Raises:
      DinError: `out` exists; a file is missing, empty or not such a CSV file; a label is neither 0
        nor 1; a value is missing; the two lists of a line differ in length or have an empty id.
    """
    check_free(out)
    if min_count < 1:
        raise DinError(f"--min-count {min_count}: expected 1 or more")
    paths = {"train": Path(train), "test": Path(test)}
    if valid is not None:
        paths["validation"] = Path(valid)
    files = {split: _read(path) for split, path in paths.items()}
    vocabularies = {
        name: _fit(files["train"], ad, history, min_count)
        for name, (ad, history) in _FIELDS.items()
    }
    users = pl.concat([file["user_id"] for file in files.values()]).unique().sort()
    all_users = Fitted(users, np.zeros(len(users), np.int64), 0)
    vocabularies["user"] = _fit(files["train"], "user_id", None, 1)

    schema = _schema({name: len(fitted.ids) + 1 for name, fitted in vocabularies.items()})
    id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
    lengths = {split: _lengths(file["item_history"]) for split, file in files.items()}
    offset_type = smallest_unsigned(sum(int(n.sum()) for n in lengths.values()))
    origin: dict[str, Any] = {
        "preparation": "bars",
        "users": len(users),
        "goods": len(vocabularies["item"].ids),
        "categories": len(vocabularies["category"].ids),
        "min_count": min_count,
        "mean_history": round(float(np.concatenate([*lengths.values()]).mean()), 2),
    }
    splits: dict[str, tuple[int, int]] = {}
    first_event: dict[str, int] = {}  # of each file's histories
    written = events = 0
    # For `own_history`: each file once.
    samples: list[tuple[np.ndarray, ...]] = []
    behaviors: list[np.ndarray] = []
    with StoreWriter(out, schema) as writer:
        for split in SPLITS:
            source = split if split in files else "test"
            file, length = files[source], lengths[source]
            if source not in first_event:  # where validation is test, both share the histories
                first_event[source] = events
                events += int(length.sum())
                for name, (_, history) in _FIELDS.items():
                    for chunk in file[history].to_frame().iter_slices(_ROWS_AT_ONCE):
                        rows = vocabularies[name].rows(_ids(chunk[history])).astype(id_type[name])
                        writer.append(f"events/history/{name}", rows)
                        if name == "item":
                            behaviors.append(rows)
            for name, column in {
                "item": "item_id",
                "category": "cate_id",
                "user": "user_id",
            }.items():
                rows = vocabularies[name].rows(file[column])
                field = "user_id" if name == "user" else name
                writer.append(f"fields/{field}", rows.astype(id_type[name]))
            user = all_users.rows(file["user_id"]) - 1
            writer.append("samples/user", user.astype(smallest_unsigned(len(users))))
            writer.append("samples/label", file["label"].to_numpy())
            ads = vocabularies["item"].rows(file["item_id"])
            end = first_event[source] + np.cumsum(length)
            writer.append("sequences/history.start", (end - length).astype(offset_type))
            writer.append("sequences/history.end", end.astype(offset_type))
            if split == source:
                samples.append((file["label"].to_numpy(), ads, end - length, end))
            splits[split] = (written, written + len(file))
            written += len(file)
            origin[f"{split}_samples"] = len(file)
            origin[f"{split}_unknown_goods"] = int((ads == 0).sum())
        for name, fitted in vocabularies.items():
            writer.vocabulary(name, fitted.ids, fitted.counts)
        if valid is None:
            origin["model_selection"] = f"ON TEST: {SELECTED_ON_TEST}"
        origin["unknown_row"] = "the zero vector" if min_count == 1 else "ids rarer than min_count"
        label, ads, start, end = map(np.concatenate, zip(*samples, strict=True))
        own = own_history(label, ads, start, end, np.concatenate(behaviors))
        origin["ad_in_own_history"] = str(own)
        origin["notes"] = [*filter(None, [own.note()])]
        writer.finish(splits, origin)
    return origin


def _schema(rows: dict[str, int]) -> Schema:
    names = ("item", "category")
    return Schema(
        tables=tuple(Table(name, k) for name, k in rows.items()),
        fields=(
            Field("user_id", "user", "user", optional=True),
            *(Field(name, name, "ad") for name in names),
        ),
        sequences=(
            Sequence("history", tuple(BehaviorField(name, name, ad=name) for name in names)),
        ),
    )


def _fit(train: pl.DataFrame, ad: str, history: str | None, min_count: int) -> Fitted:
    """The vocabulary of a table: the ids that one of the two columns contains often enough."""
    ids = train[ad] if history is None else pl.concat([train[ad], _ids(train[history]).unique()])
    ids = ids.unique().sort()
    all_ids = Fitted(ids, np.zeros(len(ids), np.int64), 0)
    counts = []
    for column in (ad, history):
        if column is None:
            continue
        count = np.zeros(len(ids) + 1, np.int64)
        for chunk in train[column].to_frame().iter_slices(_ROWS_AT_ONCE):
            values = chunk[column] if column == ad else _ids(chunk[column])
            count += np.bincount(all_ids.rows(values), minlength=len(count))
        counts.append(count[1:])
    known = np.any([count >= min_count for count in counts], axis=0)
    total = np.sum(counts, axis=0)
    return Fitted(ids.filter(pl.Series(known)), total[known], int((~known).sum()))


def _ids(histories: pl.Series) -> pl.Series:
    """The concatenated ids of some histories."""
    return histories.filter(histories != "").str.split("^").explode()


def _lengths(histories: pl.Series) -> np.ndarray:
    return (histories.str.count_matches("^", literal=True) + (histories != "")).cast(
        pl.Int64
    ).to_numpy()  # fmt: skip


def _read(path: Path) -> pl.DataFrame:
    """Reads and checks the columns of a file; labels are uint8, all other columns text."""
    try:
        frame = pl.read_csv(path, infer_schema=False, quote_char=None, glob=False)
    except OSError as error:
        raise DinError(f"{path}: {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        raise DinError(
            f"{path}: cannot be read as CSV ({str(error).splitlines()[0]}); expected a header "
            f"{','.join(COLUMNS)} and as many values in each line as in the header"
        ) from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise DinError(
            f"{path}: the header lacks {', '.join(missing)}; found {','.join(frame.columns)}, "
            f"expected {','.join(COLUMNS)}"
        )
    frame = frame.select(COLUMNS)
    if not len(frame):
        raise DinError(f"{path}: contains no samples; expected lines after the header")
    frame = frame.with_columns(pl.col("item_history", "cate_history").fill_null(""))
    for name in COLUMNS[:4]:
        _refuse(path, frame, frame[name].is_null(), f"{name} is missing")
    label = frame["label"].cast(pl.Float64, strict=False)
    _refuse(path, frame, ~label.is_in([0.0, 1.0]).fill_null(False), "the label is not 0 or 1")
    lengths = [_lengths(frame[name]) for name in ("item_history", "cate_history")]
    _refuse(
        path,
        frame,
        pl.Series(lengths[0] != lengths[1]),
        "item_history and cate_history differ in length",
        lambda row: f"{lengths[0][row]} goods and {lengths[1][row]} categories",
    )
    for name in ("item_history", "cate_history"):
        has_empty_id = frame[name].str.contains(r"^\^|\^\^|\^$")
        _refuse(path, frame, has_empty_id, f"{name} has an empty id")
    return frame.with_columns(label.cast(pl.UInt8).alias("label"))


def _refuse(
    path: Path,
    frame: pl.DataFrame,
    invalid: pl.Series,
    problem: str,
    details: Callable[[int], str] | None = None,
) -> None:
    """Raises DinError for the first invalid row, if there is one."""
    if not invalid.any():
        return
    row = int(invalid.arg_max() or 0)
    text = ",".join("" if value is None else value for value in frame.row(row))
    quoted = text if len(text) <= 80 else text[:79] + "…"
    # The header is line 1.
    raise DinError(
        f"{path}, line {row + 2}: {problem}{f': {details(row)}' if details else ''}; found "
        f"{quoted!r}, expected label,user_id,item_id,cate_id and two lists of equal length, "
        "separated by ^. Fix or delete the line"
    )
