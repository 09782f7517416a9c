"""Trains DeepCTR's DIN on din_jax's samples, and scores it with din_jax's metrics.

    DIR/bin/python benchmarks/peers/deepctr_din.py --samples amazon.npz --epochs 3 --seed 0

Runs in the environment of `install.sh deepctr DIR`, on a file of `export_samples.py`.
Hyper-parameters without a flag have DeepCTR's defaults. See `ranking.py`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # DeepCTR does not support Keras 3
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from deepctr.feature_column import SparseFeat, VarLenSparseFeat
from deepctr.models import DIN
from ranking import Setting, main, parser
from samples import Samples

L2 = 1e-6  # DeepCTR's default
# As many trials as `python -m din_jax.report table3 --protocol tuned` has per line.
SEARCHED = [
    Setting(rate, dropout, L2)
    for dropout, rate in itertools.product((0.0, 0.3), (0.001, 0.003, 0.0003))
]


class Model:
    """The library's model, as `ranking.Model`. Its random seeds are the defaults plus `seed`."""

    def __init__(
        self, samples: Samples, arguments: argparse.Namespace, setting: Setting, seed: int
    ):
        tf.keras.backend.clear_session()
        tf.keras.utils.set_random_seed(seed)
        columns = samples.columns(
            arguments.dim,
            SparseFeat,
            VarLenSparseFeat,
            embeddings_initializer=tf.keras.initializers.RandomNormal(
                0.0, 0.0001, seed=2020 + seed
            ),
        )
        self._model = DIN(
            columns,
            samples.histories,
            dnn_dropout=setting.dropout,
            l2_reg_embedding=setting.l2,
            seed=1024 + seed,
        )
        adam = tf.keras.optimizers.Adam(setting.learning_rate)
        self._model.compile(adam, "binary_crossentropy")
        self._samples, self._batch = samples, arguments.batch
        self.parameters = self._model.count_params()
        self.weights = self._model.get_weights
        self.restore = self._model.set_weights

    def fit(self, split: str) -> None:
        """Trains for one epoch."""
        inputs, label, _ = self._samples[split]
        self._model.fit(inputs, label.astype(np.float32), batch_size=self._batch, verbose=0)

    def predict(self, split: str) -> np.ndarray:
        """Predicts probabilities, [N]."""
        return self._model.predict(self._samples[split].inputs, batch_size=4096, verbose=0).ravel()

    def plateau(self) -> None:
        """Does nothing: the library has no schedule of the rate."""


class DeepCTR:
    """The library, as `ranking.Peer`."""

    def __init__(self, samples: Samples, arguments: argparse.Namespace):
        self._samples, self._arguments = samples, arguments

    def model(self, setting: Setting, seed: int) -> Model:
        """Makes a model with initial weights."""
        return Model(self._samples, self._arguments, setting, seed)


if __name__ == "__main__":
    main(parser(__doc__, L2), SEARCHED, ("deepctr", "tensorflow-cpu", "tf_keras"), DeepCTR)
