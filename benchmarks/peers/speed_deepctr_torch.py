"""Times DeepCTR-Torch's DIN in training and prediction, with its `fit` and `predict`.

    DIR/bin/python benchmarks/peers/speed_deepctr_torch.py --samples amazon.npz --dim 64

Runs in the environment of `install.sh deepctr_torch DIR`. The last line is JSON (see `timing.py`).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import torch
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.layers.activation import Dice
from deepctr_torch.models import DIN
from samples import Samples
from timing import LEARNING_RATES, UNITS, main, parser, ready


class DeepCTRTorch:
    """The model and the training samples, in full batches."""

    def __init__(self, arguments: argparse.Namespace):
        torch.set_num_threads(arguments.threads)
        samples = Samples(arguments.samples, [], 0)
        self._batch = arguments.batch
        train = samples.train.whole_batches(self._batch)
        self._inputs, self._label = train.inputs, train.label.astype(np.float32)
        self._model = DIN(
            samples.columns(arguments.dim, SparseFeat, VarLenSparseFeat),
            samples.histories,
            dnn_hidden_units=UNITS,
            dnn_activation="sigmoid",
            att_hidden_size=UNITS,
            att_activation=arguments.activation,
            att_weight_normalization=False,
            l2_reg_embedding=0,
        )
        if arguments.activation == "dice":  # the library can't build an MLP with Dice
            self._model.dnn.activation_layers = torch.nn.ModuleList(Dice(units) for units in UNITS)
        optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[arguments.optimizer]
        self._model.compile(
            optimizer(self._model.parameters(), lr=LEARNING_RATES[arguments.optimizer]),
            "binary_crossentropy",
        )

    def _ticked(self, tick: Callable[[], None], run: Callable[[], object]) -> None:
        """Calls `run`, which calls `tick` in every step."""
        # A hook of the module: the library calls its callbacks only once per epoch.
        hook = self._model.register_forward_pre_hook(lambda *_: tick())
        try:
            run()
        finally:
            hook.remove()

    def fit(self, tick: Callable[[], None]) -> None:
        """Trains with `fit` on the arrays, shuffled."""
        self._ticked(
            tick,
            lambda: self._model.fit(
                self._inputs, self._label, batch_size=self._batch, epochs=10**6, verbose=0
            ),
        )

    def step(self) -> Callable[[], None]:
        """Makes a train step like that of `fit`, on tensors."""
        count = min(ready(self._batch), len(self._label) // self._batch) * self._batch
        columns = [self._inputs[name][:count] for name in self._model.feature_index]
        inputs = np.concatenate([x.reshape(count, -1) for x in columns], axis=1).astype(np.float32)
        batch = itertools.cycle(
            list(
                zip(
                    torch.from_numpy(inputs).split(self._batch),
                    torch.from_numpy(self._label[:count]).split(self._batch),
                    strict=True,
                )
            )
        )
        model, optimizer = self._model.train(), self._model.optim

        def step() -> None:
            x, y = next(batch)
            predicted = model(x).squeeze(-1)
            optimizer.zero_grad()
            loss = model.loss_func(predicted, y, reduction="sum")
            loss.backward()
            optimizer.step()
            loss.item()

        return step

    def predict(self, tick: Callable[[], None]) -> None:
        """Predicts the training samples with `predict`, repeatedly."""

        def run() -> None:
            while True:
                self._model.predict(self._inputs, self._batch)

        self._ticked(tick, run)


if __name__ == "__main__":
    main(parser(__doc__), ("deepctr-torch", "torch"), DeepCTRTorch)
