"""Times DeepCTR's DIN in training and prediction, with Keras' `fit` and `predict`.

    DIR/bin/python benchmarks/peers/speed_deepctr.py --samples amazon.npz --dim 64 --batch 1024

Runs in the environment of `install.sh deepctr DIR`. The last line is JSON (see `timing.py`).
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # DeepCTR does not support Keras 3
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import deepctr.inputs
import deepctr.layers.core
import numpy as np
import tensorflow as tf
from deepctr.feature_column import SparseFeat, VarLenSparseFeat
from deepctr.models import DIN
from samples import Samples
from timing import LEARNING_RATES, UNITS, main, parser, ready

# Even with an L2 rate of 0 Keras squares and sums the full table in each step, and makes its
# gradient dense.
deepctr.inputs.l2 = deepctr.layers.core.l2 = lambda rate: None


class Ticks(tf.keras.callbacks.Callback):
    """Calls `tick` at the start of each batch."""

    _supports_tf_logs = True  # otherwise Keras copies the metrics in every step

    def __init__(self, tick: Callable[[], None]):
        super().__init__()
        self._tick = tick

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Called by `fit`."""
        self._tick()

    def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Called by `predict`."""
        self._tick()


class DeepCTR:
    """The model and the training samples, in full batches."""

    def __init__(self, arguments: argparse.Namespace):
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
        samples = Samples(arguments.samples, [], 0)
        self._batch = arguments.batch
        train = samples.train.whole_batches(self._batch)
        self._inputs, self._label = train.inputs, train.label.astype(np.float32)
        self._model = DIN(
            samples.columns(arguments.dim, SparseFeat, VarLenSparseFeat),
            samples.histories,
            dnn_hidden_units=UNITS,
            dnn_activation=arguments.activation,
            att_hidden_size=UNITS,
            att_activation=arguments.activation,
            att_weight_normalization=False,
        )
        optimizer = {"adam": tf.keras.optimizers.Adam, "sgd": tf.keras.optimizers.SGD}
        self._model.compile(
            optimizer[arguments.optimizer](LEARNING_RATES[arguments.optimizer]),
            "binary_crossentropy",
        )

    def fit(self, tick: Callable[[], None]) -> None:
        """Trains with `fit` on the arrays, shuffled."""
        self._model.fit(
            self._inputs,
            self._label,
            batch_size=self._batch,
            epochs=10**6,
            verbose=0,
            callbacks=[Ticks(tick)],
        )

    def step(self) -> Callable[[], None]:
        """Compiles the model's `train_step`, and applies it to tensors."""
        batches = []
        for i in range(min(ready(self._batch), len(self._label) // self._batch)):
            rows = slice(i * self._batch, (i + 1) * self._batch)
            inputs = {name: tf.constant(x[rows]) for name, x in self._inputs.items()}
            batches.append((inputs, tf.constant(self._label[rows])))
        batch = itertools.cycle(batches)
        train = tf.function(self._model.train_step)

        def step() -> None:
            float(train(next(batch))["loss"])

        return step

    def predict(self, tick: Callable[[], None]) -> None:
        """Predicts the training samples with `predict`, repeatedly."""
        while True:
            self._model.predict(
                self._inputs, batch_size=self._batch, verbose=0, callbacks=[Ticks(tick)]
            )


if __name__ == "__main__":
    main(parser(__doc__), ("deepctr", "tensorflow-cpu", "tf_keras"), DeepCTR)
