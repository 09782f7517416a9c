"""Times FuxiCTR's DIN (of its LongCTR models) in training and prediction, with its own loader.

    DIR/bin/python benchmarks/peers/speed_fuxictr.py --samples amazon.npz --dim 64 --batch 1024

Runs in the environment of `install.sh fuxictr DIR`. The last line is JSON (see `timing.py`).

The library reads Parquet files: samples, histories, and a table of the goods' fields, which it
joins.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fuxictr.features import FeatureMap
from model_zoo.LongCTR.DIN.DIN import DIN
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader
from samples import Samples
from timing import LEARNING_RATES, UNITS, main, parser, ready

from din_jax.errors import DinError


def convert(path: Path, batch: int, folder: Path) -> None:
    """Writes the training samples, in full batches, as the library's files.

    Raises:
      DinError: the file can't be read, or has fields other than those of goods.
    """
    samples = Samples(path, [], 0)
    train = samples.train.whole_batches(batch)
    inputs, count = train.inputs, len(train.label)
    good, *others = samples.histories
    if {field.name for field in samples.fields} != {good, *others}:
        raise DinError(
            f"{path}: FuxiCTR is timed with fields of goods only; use benchmarks/make_samples.py"
        )
    mask = np.arange(samples.max_history) < inputs["length"][:, None]
    goods = np.concatenate([inputs[good], inputs[f"hist_{good}"][mask]])
    tables = {field.name: field.table for field in samples.fields}
    rows = {name: samples.schema.rows(tables[name]) + 1 for name in samples.histories}
    columns = {good: np.arange(rows[good])}
    for name in others:
        values = np.concatenate([inputs[name], inputs[f"hist_{name}"][mask]])
        columns[name] = np.zeros(rows[good], np.int64)
        columns[name][goods] = values
        if (columns[name][goods] != values).any():
            raise DinError(
                f"{path}: a good has two values of {name!r}; FuxiCTR needs one value per good"
            )
    pd.DataFrame({"item_index": np.arange(rows[good]), **columns}).to_parquet(
        folder / "goods.parquet"
    )
    pd.DataFrame(
        {
            "user_index": np.arange(count),
            "seq_len": inputs["length"].astype(np.int64),
            "item_index": inputs[good].astype(np.int64),
            "label": train.label.astype(np.int64),
        }
    ).to_parquet(folder / "samples.parquet")
    lengths = inputs["length"]
    histories = [x[:n] for x, n in zip(inputs[f"hist_{good}"], lengths, strict=True)]
    pd.DataFrame({"full_item_seq": histories}).to_parquet(folder / "histories.parquet")
    features: list[dict[str, Any]] = [
        {name: {"type": "meta"}} for name in ("user_index", "seq_len", "item_index")
    ]
    features += [
        {name: {"source": "item", "type": "categorical", "padding_idx": 0, "vocab_size": k}}
        for name, k in rows.items()
    ]
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


def _converted(path: Path, batch: int, folder: Path) -> None:
    try:
        convert(path, batch, folder)
    except DinError as error:
        sys.exit(f"error: {error}")


class Ticked:
    """A loader that repeats forever, and calls `tick` before each batch."""

    def __init__(self, loader: LongCTRDataLoader, tick: Callable[[], None]):
        self._loader, self._tick = loader, tick

    def __iter__(self) -> Iterator[Any]:
        while True:
            for batch in self._loader:
                self._tick()
                yield batch


class FuxiCTR:
    """The model and the files of the training samples, in full batches."""

    def __init__(self, arguments: argparse.Namespace):
        torch.set_num_threads(arguments.threads)
        self._arguments = arguments
        self._folder = tempfile.TemporaryDirectory(prefix="speed_fuxictr-")
        folder = Path(self._folder.name)
        # In another process: the library does not use the padded arrays, so that its peak memory
        # must not include them.
        converter = multiprocessing.get_context("fork").Process(
            target=_converted, args=(arguments.samples, arguments.batch, folder)
        )
        converter.start()
        converter.join()
        if converter.exitcode:
            sys.exit(1)  # the child has printed the error
        self._max_history = json.loads((folder / "features.json").read_text())["max_history"]
        self._features = FeatureMap("samples", str(folder))
        self._features.load(str(folder / "features.json"), {"embedding_dim": arguments.dim})
        activation = {"dice": "Dice", "sigmoid": "sigmoid"}[arguments.activation]
        self._model = DIN(
            self._features,
            dnn_hidden_units=list(UNITS),
            dnn_activations=activation,
            attention_hidden_units=list(UNITS),
            attention_hidden_activations=activation,
            embedding_dim=arguments.dim,
            optimizer={"adam": "adam", "sgd": "SGD"}[arguments.optimizer],
            learning_rate=LEARNING_RATES[arguments.optimizer],
            loss="binary_crossentropy",
            metrics=["AUC"],
            model_root=str(folder),
            verbose=0,
        )
        # `BaseModel.fit` sets these before it calls `train_epoch`. Evaluation is turned off.
        self._model._max_gradient_norm = 10.0
        self._model._total_steps = 0
        self._model._eval_steps = sys.maxsize
        self._model._stop_training = False
        self._model._batch_index = 0

    def _loader(self, workers: int, *, shuffle: bool) -> LongCTRDataLoader:
        folder = self._folder.name
        return LongCTRDataLoader(
            self._features,
            f"{folder}/samples.parquet",
            f"{folder}/histories.parquet",
            f"{folder}/goods.parquet",
            batch_size=self._arguments.batch,
            shuffle=shuffle,
            num_workers=workers,
            max_len=self._max_history,
        )

    def fit(self, tick: Callable[[], None]) -> None:
        """Trains with `train_epoch`, which `fit` calls, on the library's shuffled loader."""
        self._model.train_epoch(Ticked(self._loader(self._arguments.workers, shuffle=True), tick))

    def step(self) -> Callable[[], None]:
        """Applies the model's `train_step` to batches of the loader."""
        first = itertools.islice(self._loader(0, shuffle=True), ready(self._arguments.batch))
        batch = itertools.cycle(list(first))
        self._model.train()

        def step() -> None:
            sample, items, mask = next(batch)
            self._model.train_step((sample, dict(items), mask)).item()

        return step

    def predict(self, tick: Callable[[], None]) -> None:
        """Predicts the training samples with `predict`, on the library's loader."""
        self._model.predict(Ticked(self._loader(self._arguments.workers, shuffle=False), tick))


if __name__ == "__main__":
    flags = parser(__doc__)
    flags.add_argument(
        "--workers",
        type=int,
        default=min(4, len(os.sched_getaffinity(0))),
        help="processes of the loader (default: 4, as in the library's config of DIN, or the "
        "number of CPUs if that is smaller)",
    )
    main(flags, ("fuxictr", "torch"), FuxiCTR)
