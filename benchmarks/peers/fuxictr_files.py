"""Writes the samples of `samples.py` as the files of FuxiCTR's LongCTR models.

The library reads Parquet files: samples, histories, and a table of the goods' fields, which it
joins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from samples import Samples, Split

from din_jax.errors import DinError


def write(samples: Samples, splits: Mapping[str, Split], folder: Path) -> None:
    """Writes splits, the goods that they have, and a description of the fields.

    The files are NAME.parquet and NAME-histories.parquet for each split, goods.parquet and
    features.json. The first field that histories have is the good.

    Args:
      samples: the file that the splits are of.
      splits: {name: split}.
      folder: an empty folder.

    Raises:
      DinError: a good has two values of a field.
    """
    tables = {field.name: field.table for field in samples.fields}
    rows = {name: samples.schema.rows(table) + 1 for name, table in tables.items()}
    good = samples.histories[0]
    goods = {name: np.zeros(rows[good], np.int64) for name in samples.histories}
    for split in splits.values():
        mask = np.arange(samples.max_history) < split.inputs["length"][:, None]
        found = {
            name: np.concatenate([split.inputs[name], split.inputs[f"hist_{name}"][mask]])
            for name in samples.histories
        }
        for name, values in found.items():
            new = goods[name][found[good]] == 0
            goods[name][found[good][new]] = values[new]
            if (goods[name][found[good]] != values).any():
                raise DinError(
                    f"a good has two values of {name!r}; FuxiCTR needs one value per good"
                )
    pl.DataFrame({"item_index": np.arange(rows[good]), **goods}).write_parquet(
        folder / "goods.parquet"
    )
    others = [name for name in tables if name not in goods]
    for name, split in splits.items():
        _write_split(folder, name, split, good, others)
    features: list[dict[str, Any]] = [
        {name: {"type": "meta"}} for name in ("user_index", "seq_len", "item_index")
    ]
    for name, vocabulary in rows.items():
        source = {"source": "item"} if name in goods else {}
        features.append(
            {name: source | {"type": "categorical", "padding_idx": 0, "vocab_size": vocabulary}}
        )
    described = {
        "dataset_id": "samples",
        "num_fields": len(rows),
        "total_features": sum(rows.values()),
        "input_length": len(features),
        "labels": ["label"],
        "features": features,
        "max_history": samples.max_history,
    }
    (folder / "features.json").write_text(json.dumps(described))


def _write_split(folder: Path, name: str, split: Split, good: str, others: list[str]) -> None:
    inputs = split.inputs
    columns = {
        "user_index": np.arange(len(split.label)),
        "seq_len": inputs["length"],
        "item_index": inputs[good],
        **{other: inputs[other] for other in others},
        "label": split.label,
    }
    pl.DataFrame({key: values.astype(np.int64) for key, values in columns.items()}).write_parquet(
        folder / f"{name}.parquet"
    )
    histories = zip(inputs[f"hist_{good}"], inputs["length"], strict=True)
    pl.DataFrame(
        {"full_item_seq": [history[:length].astype(np.int64) for history, length in histories]},
        schema={"full_item_seq": pl.List(pl.Int64)},
    ).write_parquet(folder / f"{name}-histories.parquet")
