"""Trains a library's DIN on din_jax's samples, and scores it with din_jax's metrics.

A `Peer` makes models, and `main` parses the flags, trains, and prints JSON. Validation is scored
after each epoch. The setting and the epoch with the best user-weighted AUC there are chosen, and
only then is test scored, once per seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from samples import Samples, Split

from din_jax.errors import DinError
from din_jax.metrics import auc, log_loss, user_auc

# The metrics of the last line. With several seeds they are means.
METRICS = ("user_weighted_auc", "auc", "log_loss")


class Setting(NamedTuple):
    """The hyper-parameters of a trial: Adam's rate, dropout of hidden units, L2 of embeddings."""

    learning_rate: float
    dropout: float
    l2: float


class Model(Protocol):
    """A library's compiled model."""

    parameters: int

    def fit(self, split: str) -> None:
        """Trains for one epoch on "train", or on "both" it and validation."""

    def predict(self, split: str) -> np.ndarray:
        """Predicts probabilities of "validation" or "test", [N]."""

    def plateau(self) -> None:
        """Is called after an epoch that was no new best, before the next: may lower the rate."""

    def weights(self) -> Any:
        """Copies the weights."""

    def restore(self, weights: Any) -> None:
        """Sets the weights to a copy."""


class Peer(Protocol):
    """A library with the samples."""

    def model(self, setting: Setting, seed: int) -> Model:
        """Makes a model with initial weights."""


class Trained(NamedTuple):
    """A model after an epoch.

    Attributes:
      weights: the weights.
      curve: the user-weighted AUC on validation after each epoch so far; the last one is the best.
    """

    weights: Any
    curve: list[float]

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return len(self.curve)

    @property
    def validation(self) -> float:
        """The user-weighted AUC on validation."""
        return self.curve[-1]


def by_user(split: Split, scores: np.ndarray) -> float:
    """The user-weighted AUC (Eq. 10) of scores, weighted by impressions."""
    return user_auc(split.user, split.label, scores).weighted("impressions")


def epoch_of(model: Model, split: str, epoch: int) -> None:
    """Trains for one epoch and prints how long it took."""
    begin = time.perf_counter()
    model.fit(split)
    print(f"epoch {epoch}: {time.perf_counter() - begin:.0f} s", flush=True)


def run_trial(
    peer: Peer, samples: Samples, setting: Setting, seed: int, epochs: int, patience: int
) -> tuple[Trained | None, dict[str, Any]]:
    """Trains with one setting.

    Args:
      epochs: the maximum number of epochs.
      patience: the number of epochs in a row without a new best that ends the trial; 0: never.

    Returns:
      The best epoch on validation, or None if the first epoch diverged; and the trial's results for
      the last line.
    """
    begin = time.perf_counter()
    model = peer.model(setting, seed)
    best: Trained | None = None
    curve: list[float] = []
    for epoch in range(1, epochs + 1):
        epoch_of(model, "train", epoch)
        scores = model.predict("validation")
        if not np.isfinite(scores).all():
            print("diverged", flush=True)
            break
        curve.append(by_user(samples.validation, scores))
        print(f"validation user_weighted_auc {curve[-1]:.4f}", flush=True)
        if best is None or curve[-1] > best.validation:
            best = Trained(model.weights(), curve.copy())
        elif patience and epoch - best.epochs >= patience:
            break
        else:
            model.plateau()
    seconds = round(time.perf_counter() - begin)
    return best, setting._asdict() | {"validation": curve, "seconds": seconds}


def refit(model: Model, curve: Sequence[float]) -> None:
    """Trains on train and validation as a trial with this curve was trained on train."""
    for epoch, value in enumerate(curve, 1):
        epoch_of(model, "both", epoch)
        if value <= max(curve[: epoch - 1], default=-np.inf):
            model.plateau()


def measure(
    peer: Peer, samples: Samples, settings: Sequence[Setting], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Runs a trial of each setting, and scores test once per seed.

    Raises:
      DinError: every trial diverged.
    """
    begin = time.perf_counter()
    best: Trained | None = None
    chosen, trials = settings[0], []
    for setting in settings:
        print(
            "---", *(f"{name} {value:g}" for name, value in setting._asdict().items()), flush=True
        )
        trained, trial = run_trial(
            peer, samples, setting, arguments.seed, arguments.epochs, arguments.patience
        )
        trials.append(trial)
        print(json.dumps(trial), flush=True)  # what is known if a later trial is interrupted
        if trained is not None and (best is None or trained.validation > best.validation):
            best, chosen = trained, setting
    if best is None:
        raise DinError("every trial diverged; use a lower --lr")
    print(f"--- {chosen}, {best.epochs} epochs", flush=True)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    scored = []
    for seed in seeds:
        model = peer.model(chosen, seed)
        if arguments.refit:
            refit(model, best.curve)
        else:
            model.restore(best.weights)
        scored.append({"seed": seed} | score(samples.test, model.predict("test")))
        print(json.dumps(scored[-1]), flush=True)
    return {
        **{name: float(np.mean([of_seed[name] for of_seed in scored])) for name in METRICS},
        "chosen": chosen._asdict() | {"epochs": best.epochs},
        "seeds": scored,
        "trials": trials,
        "fit": "train+validation" if arguments.refit else "train",
        "batch": arguments.batch,
        "dim": arguments.dim,
        "samples": [len(s.label) for s in (samples.train, samples.validation, samples.test)],
        "max_history": samples.max_history,
        "parameters": model.parameters,
        "seconds": round(time.perf_counter() - begin),
    }


def score(split: Split, scores: np.ndarray) -> dict[str, float]:
    """Computes the metrics of scores."""
    values = by_user(split, scores), auc(split.label, scores), log_loss(split.label, scores)
    return dict(zip(METRICS, values, strict=True))


def parser(doc: str, l2: float) -> argparse.ArgumentParser:
    """Makes the flags that all peers share.

    Args:
      doc: the script's docstring.
      l2: the library's default.
    """
    flags = argparse.ArgumentParser(description=doc.partition("\n")[0])
    flags.add_argument("--samples", required=True, type=Path, help="file of export_samples.py")
    flags.add_argument("--epochs", type=int, default=3, help="most epochs of a trial (default: 3)")
    flags.add_argument(
        "--patience",
        type=int,
        default=0,
        help="epochs in a row without a new best on validation that end a trial (default: 0, "
        "never)",
    )
    flags.add_argument("--seed", type=int, default=0, help="of the trials (default: 0)")
    flags.add_argument(
        "--seeds", type=int, default=1, help="to --refit with, from --seed on (default: 1)"
    )
    flags.add_argument("--lr", type=float, default=0.001, help="Adam's (default: 0.001)")
    flags.add_argument("--dropout", type=float, default=0.0, help="of hidden units (default: 0)")
    flags.add_argument("--l2", type=float, default=l2, help=f"of embeddings (default: {l2:g})")
    flags.add_argument("--batch", type=int, default=256)
    flags.add_argument("--dim", type=int, default=32, help="embedding width (default: 32)")
    flags.add_argument("--extra-fields", nargs="*", default=[], help="optional fields to use")
    flags.add_argument(
        "--search",
        action="store_true",
        help="trials on validation, instead of --lr, --dropout and --l2",
    )
    flags.add_argument("--trials", type=int, help="only the first of --search (default: all)")
    flags.add_argument(
        "--refit",
        action="store_true",
        help="train on train and validation for the chosen number of epochs, and score the last "
        "weights",
    )
    flags.add_argument("--limit", type=int, default=0, help="samples of each split; 0: all")
    return flags


def main(
    flags: argparse.ArgumentParser,
    searched: Sequence[Setting],
    libraries: Sequence[str],
    make: Callable[[Samples, argparse.Namespace], Peer],
) -> None:
    """Parses the flags, trains, and prints the result as a line of JSON.

    Args:
      flags: the result of `parser`.
      searched: the settings of `--search`.
      libraries: the libraries whose versions are printed.
      make: makes the peer.
    """
    arguments = flags.parse_args()
    try:
        for name, least in (("epochs", 1), ("patience", 0), ("seeds", 1), ("trials", 1)):
            if (value := getattr(arguments, name)) is not None and value < least:
                raise DinError(f"--{name} {getattr(arguments, name)}: expected at least {least}")
        if arguments.seeds > 1 and not arguments.refit:
            raise DinError(
                f"--seeds {arguments.seeds}: only --refit trains with several seeds; add it"
            )
        one = Setting(arguments.lr, arguments.dropout, arguments.l2)
        samples = Samples(arguments.samples, arguments.extra_fields, arguments.limit)
        result = measure(
            make(samples, arguments),
            samples,
            searched[: arguments.trials] if arguments.search else [one],
            arguments,
        )
    except DinError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result | {"versions": {name: version(name) for name in libraries}}))
