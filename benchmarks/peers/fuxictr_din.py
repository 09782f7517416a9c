"""Trains FuxiCTR's DIN on din_jax's samples, and scores it with din_jax's metrics.

    DIR/bin/python benchmarks/peers/fuxictr_din.py --samples amazon.npz --epochs 3 --seed 0

Runs in the environment of `install.sh fuxictr DIR`, on a file of `export_samples.py`.
Hyper-parameters without a flag have FuxiCTR's defaults. See `ranking.py`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import fuxictr_files
import numpy as np
import torch
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr_model import Library
from ranking import Setting, main, parser
from samples import Samples

L2 = 0.0  # FuxiCTR's default
# The trials of `deepctr_din.py`, and two with a regulariser. The most promising ones are first.
SEARCHED = [
    Setting(0.001, 0.0, L2),
    Setting(0.001, 0.0, 0.005),
    Setting(0.001, 0.3, L2),
    Setting(0.003, 0.0, L2),
    Setting(0.001, 0.0, 0.0001),
    Setting(0.0003, 0.0, L2),
    Setting(0.003, 0.3, L2),
    Setting(0.0003, 0.3, L2),
]


class Model:
    """The library's model, as `ranking.Model`."""

    def __init__(self, library: Library, batch: int, setting: Setting, seed: int):
        seed_everything(seed)
        self._model = library.model(
            optimizer="adam",
            learning_rate=setting.learning_rate,
            net_dropout=setting.dropout,
            embedding_regularizer=setting.l2 or None,
        )
        self._library, self._batch = library, batch
        self.parameters = sum(weights.numel() for weights in self._model.parameters())
        self.restore = self._model.load_state_dict

    def fit(self, split: str) -> None:
        """Trains for one epoch."""
        self._model.train_epoch(self._library.loader(split, self._batch, 0, shuffle=True))

    def predict(self, split: str) -> np.ndarray:
        """Predicts probabilities, [N]."""
        return self._model.predict(self._library.loader(split, 4096, 0, shuffle=False))

    def plateau(self) -> None:
        """Divides the rate by 10, as the library does by default."""
        self._model.lr_decay()

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies the weights."""
        return {name: weights.clone() for name, weights in self._model.state_dict().items()}


class FuxiCTR:
    """The library and its files, as `ranking.Peer`."""

    def __init__(self, samples: Samples, arguments: argparse.Namespace):
        self._folder = tempfile.TemporaryDirectory(prefix="fuxictr_din-")
        folder = Path(self._folder.name)
        splits = ("train", "validation", "both", "test")
        fuxictr_files.write(samples, {name: samples[name] for name in splits}, folder)
        self._library = Library(folder, arguments.dim)
        self._batch = arguments.batch

    def model(self, setting: Setting, seed: int) -> Model:
        """Makes a model with initial weights."""
        return Model(self._library, self._batch, setting, seed)


if __name__ == "__main__":
    main(parser(__doc__, L2), SEARCHED, ("fuxictr", "torch"), FuxiCTR)
