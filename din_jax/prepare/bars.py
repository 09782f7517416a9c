"""The files of the BARS benchmark (FuxiCTR's layout AmazonElectronics_x1), by its protocol.

A line has `label,user_id,item_id,cate_id,item_history,cate_history`; the histories are lists of the
same length, split by ^, oldest first, and may be empty. Other columns are passed over.

BARS has no validation file here: its configuration names test.csv as validation data too, chooses
the epoch and the hyper-parameters on it and reports it (reczoo/BARS, ranking/ctr/DIN/
DIN_amazonelectronics_x1/DIN_amazonelectronics_x1_tuner_config_11.yaml). Without --valid this does
the same: the validation split is the test split. Figures of such a store are comparable with those
that BARS publishes and with nothing else, and `data.fit=train+validation` would train on test.

Vocabularies are FuxiCTR's: of the ids that training holds at least --min-count times (its
min_categr_count, 1 in BARS) as an ad or in histories; others are row 0, "unknown". FuxiCTR has two
rows there, one for padding and one for unknown ids. Here nothing is padded, and as in FuxiCTR no
training sample holds an unknown id if --min-count is 1, so that row 0 stays the zero vector.
A history is stored for each sample as it is in the file; `data.max_history` cuts it to its last
behaviours, as FuxiCTR's max_len does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import SPLITS
from din_jax.data.store_writer import StoreWriter, check_free, smallest_unsigned
from din_jax.errors import DinError
from din_jax.prepare.vocabularies import Fitted

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
        "--min-count", type=int, default=1, help="rarer ids of training are unknown (default 1)"
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
    for name, value in origin.items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value}")
    print(f"store written to {arguments.out}")


def prepare(
    train: str | Path,
    test: str | Path,
    out: str | Path,
    *,
    valid: str | Path | None = None,
    min_count: int = 1,
) -> dict[str, Any]:
    """Makes a store from the files of a BARS data set.

    Args:
      train, test: CSV files with a header, see above.
      out: folder of the store.
      valid: as `test`; None: the validation split is the test split.
      min_count: ids that neither the ads nor the histories of training hold as often are unknown.

    Returns:
      Counts, kept in the store as its origin.

    Raises:
      DinError: `out` exists; a file is missing, empty or no such CSV; a label is neither 0 nor 1; a
        value is missing; the two lists of a line differ in length or hold an empty id.
    """
    check_free(out)
    if min_count < 1:
        raise DinError(f"--min-count {min_count}: expected 1 or more")
    paths = {"train": Path(train), "test": Path(test)}
    if valid is not None:
        paths["validation"] = Path(valid)
    files = {split: _read(path) for split, path in paths.items()}
    fitted = {name: _fit(files["train"], ad, past, min_count) for name, (ad, past) in
              _FIELDS.items()}  # fmt: skip
    users = pl.concat([file["user_id"] for file in files.values()]).unique().sort()
    everybody = Fitted(users, np.zeros(len(users), np.int64), 0)
    fitted["user"] = _fit(files["train"], "user_id", None, 1)

    schema = _schema({name: len(found.ids) + 1 for name, found in fitted.items()})
    id_type = {t.name: smallest_unsigned(t.rows - 1) for t in schema.tables}
    lengths = {split: _lengths(file["item_history"]) for split, file in files.items()}
    offset_type = smallest_unsigned(sum(int(n.sum()) for n in lengths.values()))
    origin: dict[str, Any] = {
        "preparation": "bars",
        "users": len(users),
        "goods": len(fitted["item"].ids),
        "categories": len(fitted["category"].ids),
        "min_count": min_count,
        "mean_history": round(float(np.concatenate([*lengths.values()]).mean()), 2),
    }
    splits: dict[str, tuple[int, int]] = {}
    begin: dict[str, int] = {}  # where the histories of a file begin
    written = events = 0
    with StoreWriter(out, schema) as writer:
        for split in SPLITS:
            source = split if split in files else "test"
            file, length = files[source], lengths[source]
            if source not in begin:  # where validation is test, both point to the same histories
                begin[source] = events
                events += int(length.sum())
                for name, (_, past) in _FIELDS.items():
                    for part in file[past].to_frame().iter_slices(_ROWS_AT_ONCE):
                        rows = fitted[name].rows(_ids(part[past]))
                        writer.append(f"events/history/{name}", rows.astype(id_type[name]))
            for name, column in {
                "item": "item_id",
                "category": "cate_id",
                "user": "user_id",
            }.items():
                rows = fitted[name].rows(file[column])
                field = "user_id" if name == "user" else name
                writer.append(f"fields/{field}", rows.astype(id_type[name]))
            user = everybody.rows(file["user_id"]) - 1
            writer.append("samples/user", user.astype(smallest_unsigned(len(users))))
            writer.append("samples/label", file["label"].to_numpy())
            end = begin[source] + np.cumsum(length)
            writer.append("sequences/history.start", (end - length).astype(offset_type))
            writer.append("sequences/history.end", end.astype(offset_type))
            splits[split] = (written, written + len(file))
            written += len(file)
            origin[f"{split}_samples"] = len(file)
            origin[f"{split}_unknown_goods"] = int(
                (fitted["item"].rows(file["item_id"]) == 0).sum()
            )
        for name, found in fitted.items():
            writer.vocabulary(name, found.ids, found.counts)
        if valid is None:
            origin["model_selection"] = f"ON TEST: {SELECTED_ON_TEST}"
        origin["unknown_row"] = "the zero vector" if min_count == 1 else "ids rarer than min_count"
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


def _fit(train: pl.DataFrame, ad: str, past: str | None, min_count: int) -> Fitted:
    """The vocabulary of a table; an id is kept if one of the two columns holds it often enough."""
    counts: dict[str, np.ndarray] = {}
    ids = train[ad] if past is None else pl.concat([train[ad], _ids(train[past]).unique()])
    ids = ids.unique().sort()
    everything = Fitted(ids, np.zeros(len(ids), np.int64), 0)
    for column, occurrences in ((ad, train[ad]), (past, None)):
        if column is None:
            continue
        found = np.zeros(len(ids) + 1, np.int64)
        for part in train[column].to_frame().iter_slices(_ROWS_AT_ONCE):
            values = part[column] if occurrences is not None else _ids(part[column])
            found += np.bincount(everything.rows(values), minlength=len(found))
        counts[column] = found[1:]
    kept = np.any([found >= min_count for found in counts.values()], axis=0)
    total = np.sum([*counts.values()], axis=0)
    return Fitted(ids.filter(pl.Series(kept)), total[kept], int((~kept).sum()))


def _ids(histories: pl.Series) -> pl.Series:
    """The ids of some histories, end to end."""
    return histories.filter(histories != "").str.split("^").explode()


def _lengths(histories: pl.Series) -> np.ndarray:
    return (histories.str.count_matches("^", literal=True) + (histories != "")).cast(
        pl.Int64
    ).to_numpy()  # fmt: skip


def _read(path: Path) -> pl.DataFrame:
    """The columns of a file, checked; labels are uint8, all else text."""
    try:
        frame = pl.read_csv(path, infer_schema=False, quote_char=None, glob=False)
    except OSError as error:
        raise DinError(f"{path}: {error.strerror or error}") from error
    except pl.exceptions.PolarsError as error:
        raise DinError(
            f"{path}: can't be read as CSV ({str(error).splitlines()[0]}); expected a header "
            f"{','.join(COLUMNS)} and as many values in each line"
        ) from error
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise DinError(
            f"{path}: the header lacks {', '.join(missing)}; found {','.join(frame.columns)}, "
            f"expected {','.join(COLUMNS)}"
        )
    frame = frame.select(COLUMNS)
    if not len(frame):
        raise DinError(f"{path}: no samples in it")
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
        "item_history and cate_history are not aligned",
        lambda row: f"{lengths[0][row]} goods and {lengths[1][row]} categories",
    )
    for name in ("item_history", "cate_history"):
        hole = frame[name].str.contains(r"^\^|\^\^|\^$")
        _refuse(path, frame, hole, f"{name} holds an empty id")
    return frame.with_columns(label.cast(pl.UInt8).alias("label"))


def _refuse(
    path: Path, frame: pl.DataFrame, wrong: pl.Series, what: str, found: Any = None
) -> None:
    """Raises DinError at the first wrong row, if there is one."""
    if not wrong.any():
        return
    row = int(wrong.arg_max() or 0)
    text = ",".join("" if value is None else value for value in frame.row(row))
    shown = text if len(text) <= 80 else text[:79] + "…"
    # The header is line 1.
    raise DinError(
        f"{path}, line {row + 2}: {what}{f': {found(row)}' if found else ''}; found {shown!r}, "
        "expected label,user_id,item_id,cate_id and two lists of one length, split by ^. "
        "Mend or delete the line"
    )
