"""Times FuxiCTR's DIN (of its LongCTR models) in training and prediction, with its own loader.

    DIR/bin/python benchmarks/peers/speed_fuxictr.py --samples amazon.npz --dim 64 --batch 1024

Runs in the environment of `install.sh fuxictr DIR`. The last line is JSON (see `timing.py`).
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuxictr_files
import torch
from fuxictr_model import Library
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader
from samples import Samples
from timing import LEARNING_RATES, UNITS, main, parser, ready

from din_jax.errors import DinError


def _written(path: Path, batch: int, folder: Path) -> None:
    try:
        samples = Samples(path, [], 0)
        fuxictr_files.write(samples, {"train": samples.train.whole_batches(batch)}, folder)
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
        writer = multiprocessing.get_context("fork").Process(
            target=_written, args=(arguments.samples, arguments.batch, folder)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit(1)  # the child has printed the error
        self._library = Library(folder, arguments.dim)
        activation = {"dice": "Dice", "sigmoid": "sigmoid"}[arguments.activation]
        self._model = self._library.model(
            dnn_hidden_units=list(UNITS),
            dnn_activations=activation,
            attention_hidden_units=list(UNITS),
            attention_hidden_activations=activation,
            optimizer={"adam": "adam", "sgd": "SGD"}[arguments.optimizer],
            learning_rate=LEARNING_RATES[arguments.optimizer],
        )

    def _loader(self, workers: int, *, shuffle: bool) -> LongCTRDataLoader:
        return self._library.loader("train", self._arguments.batch, workers, shuffle=shuffle)

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
