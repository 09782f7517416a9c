"""Times DeepCTR's DIN on requests of one user and many candidates, with Keras' predict functions.

    DIR/bin/python benchmarks/peers/serve_deepctr.py --candidates 200 --history 50 --dim 18

Runs in the environment of `install.sh deepctr DIR`. The network is that of `benchmarks/serving.py`:
60,000 goods and 800 categories, an activation unit of 36 units with Dice, an MLP of 200 and 80. The
library has no user's side: the user is copied for each candidate, and these copies are counted. A
request begins with rows of ids. The last line is JSON, of requests a second, one or four in a call,
whichever is faster:

- `predict` and `predict_on_batch`, Keras' own functions;
- `function`: the model as a `tf.function`, the least that a server can do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # DeepCTR does not support Keras 3
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from deepctr.feature_column import SparseFeat, VarLenSparseFeat
from deepctr.models import DIN

ROWS = {"goods": 60_001, "category": 801}


def make_model(dim: int, history: int) -> Any:
    """DIN with random weights."""
    fields = {name: SparseFeat(name, rows, embedding_dim=dim) for name, rows in ROWS.items()}
    histories = [
        VarLenSparseFeat(
            SparseFeat(f"hist_{name}", rows, embedding_dim=dim, embedding_name=name),
            maxlen=history,
            length_name="length",
        )
        for name, rows in ROWS.items()
    ]
    return DIN(
        [*fields.values(), *histories],
        list(fields),
        dnn_hidden_units=(200, 80),
        dnn_activation="dice",
        att_hidden_size=(36,),
        att_activation="dice",
    )


def make_request(candidates: int, history: int, seed: int) -> dict[str, np.ndarray]:
    """The rows of one request: candidates, and the behaviours of one user."""
    rng = np.random.default_rng(seed)
    request = {}
    for name, rows in ROWS.items():
        request[name] = rng.integers(1, rows, candidates).astype(np.int32)
        request[f"hist_{name}"] = rng.integers(1, rows, history).astype(np.int32)
    return request


def tile(requests: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The model's inputs: each candidate with a copy of its user."""
    parts: dict[str, list[np.ndarray]] = {"length": []}
    for request in requests:
        candidates = len(request["goods"])
        parts["length"].append(np.full(candidates, len(request["hist_goods"]), np.int32))
        for name, values in request.items():
            copies = (candidates, 1)
            part = np.tile(values, copies) if name.startswith("hist_") else values
            parts.setdefault(name, []).append(part)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def rate(call: Callable[[dict[str, np.ndarray]], Any], arguments: argparse.Namespace) -> float:
    """Requests a second."""
    rates = []
    for merged in (1, 4):
        requests = [
            make_request(arguments.candidates, arguments.history, seed) for seed in range(merged)
        ]
        call(tile(requests))
        done, begin = 0, time.perf_counter()
        while time.perf_counter() < begin + arguments.seconds:
            call(tile(requests))
            done += merged
        rates.append(done / (time.perf_counter() - begin))
    return max(rates)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--dim", type=int, default=18, help="of the vector of each of two fields")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    arguments = parser.parse_args()
    model = make_model(arguments.dim, arguments.history)
    rows = 4 * arguments.candidates
    function = tf.function(lambda inputs: model(inputs, training=False))
    ways = {
        "predict": lambda inputs: model.predict(inputs, batch_size=rows, verbose=0),
        "predict_on_batch": model.predict_on_batch,
        "function": lambda inputs: function(
            {name: tf.constant(values) for name, values in inputs.items()}
        ).numpy(),
    }
    print(json.dumps({name: round(rate(call, arguments), 1) for name, call in ways.items()}))


if __name__ == "__main__":
    main()
