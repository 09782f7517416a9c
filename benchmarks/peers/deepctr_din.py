"""Trains DeepCTR's DIN on din_jax's samples, and scores it with din_jax's metrics.

    DIR/bin/python benchmarks/peers/deepctr_din.py --samples amazon.npz --epochs 3 --seed 0

Runs in the environment of `install.sh deepctr DIR`, on a file of `export_samples.py`.
Hyper-parameters without a flag have DeepCTR's defaults. Validation is scored after each epoch, and
test once, with the weights of the epoch with the best user-weighted AUC on validation. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # DeepCTR does not support Keras 3
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from deepctr.feature_column import SparseFeat, VarLenSparseFeat
from deepctr.models import DIN
from samples import Samples, Split

from din_jax.errors import DinError
from din_jax.metrics import auc, log_loss, user_auc

# As many trials as `python -m din_jax.report table3 --protocol tuned` has per line.
LEARNING_RATES = (0.0003, 0.001, 0.003)
DROPOUTS = (0.0, 0.3)


class Trained(NamedTuple):
    """The weights after an epoch, the epoch, and their user-weighted AUC on validation."""

    weights: list[np.ndarray]
    epoch: int
    validation: float


def build(samples: Samples, arguments: argparse.Namespace, rate: float, dropout: float) -> Any:
    """Compiles the library's model. Its random seeds are the defaults plus `--seed`."""
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(arguments.seed)
    columns = samples.columns(
        arguments.dim,
        SparseFeat,
        VarLenSparseFeat,
        embeddings_initializer=tf.keras.initializers.RandomNormal(
            0.0, 0.0001, seed=2020 + arguments.seed
        ),
    )
    model = DIN(columns, samples.histories, dnn_dropout=dropout, seed=1024 + arguments.seed)
    model.compile(tf.keras.optimizers.Adam(rate), "binary_crossentropy")
    return model


def probabilities(model: Any, split: Split) -> np.ndarray:
    """The model's predictions, [N]."""
    return model.predict(split.inputs, batch_size=4096, verbose=0).ravel()


def epochs(model: Any, split: Split, arguments: argparse.Namespace, count: int) -> Iterator[int]:
    """Trains for `count` epochs, and yields 1, 2, … after each epoch."""
    label = split.label.astype(np.float32)
    for epoch in range(1, count + 1):
        begin = time.perf_counter()
        history = model.fit(split.inputs, label, batch_size=arguments.batch, epochs=1, verbose=0)
        loss = history.history["loss"][0]
        print(f"epoch {epoch}: loss {loss:.4f}, {time.perf_counter() - begin:.0f} s", flush=True)
        yield epoch


def run_trial(
    samples: Samples, arguments: argparse.Namespace, rate: float, dropout: float
) -> tuple[Trained | None, dict[str, Any]]:
    """Trains with one setting.

    Returns:
      The best epoch on validation, or None if the first epoch diverged; and the trial's results for
      the last line.
    """
    print(f"--- learning_rate {rate:g}, dropout {dropout:g}", flush=True)
    begin = time.perf_counter()
    model = build(samples, arguments, rate, dropout)
    best, curve = None, []
    for epoch in epochs(model, samples.train, arguments, arguments.epochs):
        scores = probabilities(model, samples.validation)
        if not np.isfinite(scores).all():
            print("diverged", flush=True)
            break
        by_user = user_auc(samples.validation.user, samples.validation.label, scores)
        curve.append(by_user.weighted("impressions"))
        print(f"validation user_weighted_auc {curve[-1]:.4f}", flush=True)
        if best is None or curve[-1] > best.validation:
            best = Trained(model.get_weights(), epoch, curve[-1])
    return best, {
        "learning_rate": rate,
        "dropout": dropout,
        "validation": curve,
        "seconds": round(time.perf_counter() - begin),
    }


def measure(samples: Samples, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the trials that the flags ask for, and scores test once.

    Raises:
      DinError: every trial diverged.
    """
    begin = time.perf_counter()
    settings = (
        list(itertools.product(LEARNING_RATES, DROPOUTS))
        if arguments.search
        else [(arguments.lr, arguments.dropout)]
    )
    best, chosen, trials = None, settings[0], []
    for setting in settings:
        trained, trial = run_trial(samples, arguments, *setting)
        trials.append(trial)
        if trained is not None and (best is None or trained.validation > best.validation):
            best, chosen = trained, setting
    if best is None:
        raise DinError("every trial diverged; use a lower --lr")
    model = build(samples, arguments, *chosen)
    if arguments.refit:
        print(f"--- train and validation, {best.epoch} epochs", flush=True)
        both = samples.train.joined(samples.validation)
        for _ in epochs(model, both, arguments, best.epoch):
            pass
    else:
        model.set_weights(best.weights)
    test = samples.test
    scores = probabilities(model, test)
    return {
        "user_weighted_auc": user_auc(test.user, test.label, scores).weighted("impressions"),
        "auc": auc(test.label, scores),
        "log_loss": log_loss(test.label, scores),
        "chosen": {"learning_rate": chosen[0], "dropout": chosen[1], "epochs": best.epoch},
        "trials": trials,
        "fit": "train+validation" if arguments.refit else "train",
        "seed": arguments.seed,
        "batch": arguments.batch,
        "dim": arguments.dim,
        "samples": [len(s.label) for s in (samples.train, samples.validation, test)],
        "max_history": samples.max_history,
        "parameters": model.count_params(),
        "versions": {name: version(name) for name in ("deepctr", "tensorflow-cpu", "tf_keras")},
        "seconds": round(time.perf_counter() - begin),
    }


def main() -> None:
    """Parses the flags and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", required=True, type=Path, help="file of export_samples.py")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a trial (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.001, help="Adam's (default: 0.001)")
    parser.add_argument("--dropout", type=float, default=0.0, help="dnn_dropout (default: 0)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=32, help="embedding width (default: 32)")
    parser.add_argument("--extra-fields", nargs="*", default=[], help="optional fields to use")
    parser.add_argument(
        "--search",
        action="store_true",
        help="six trials on validation, instead of --lr and --dropout",
    )
    parser.add_argument(
        "--refit",
        action="store_true",
        help="train on train and validation for the chosen number of epochs, and score the last "
        "weights",
    )
    parser.add_argument("--limit", type=int, default=0, help="samples of each split; 0: all")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        sys.exit(f"error: --epochs {arguments.epochs}: expected at least 1")
    try:
        samples = Samples(arguments.samples, arguments.extra_fields, arguments.limit)
        print(json.dumps(measure(samples, arguments)))
    except DinError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
