"""What each choice of design brings to a train step: the step without it, over the step with it.

    python benchmarks/ablations.py --dim 64 --batch 1024

    padded        histories in [B, longest of the batch] places in place of one after the other
    concatenated  the activation unit's first layer on its inputs' concatenation, not split
    dense         Optax on whole tables, in place of the rows of the batch
    in_one_go     eight steps compiled into one, in place of one a call

The same batches, ready in memory; variants take turns, so that what else the machine does falls on
all alike. The last line is JSON: `ms` a step of each, and `over_ours`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from din_jax import cli
from din_jax.data.packing import Batch
from din_jax.errors import DinError
from din_jax.models import din
from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.mlp import MLP
from din_jax.step.train import train_steps
from din_jax.training.run import open_run
from train import add_flags, config_of

BATCHES = 16  # of one shape
IN_ONE_GO = 8  # steps


class Concatenated(ActivationUnit):
    """The activation unit as an MLP on its concatenated inputs."""

    @nn.compact
    def __call__(self, behaviors: Any, ad: Any, segment_ids: Any, mask: Any, *, train: bool) -> Any:
        """Weights of behaviours, as `ActivationUnit` gives them."""
        own = jnp.take(ad, segment_ids, axis=0, mode="clip", indices_are_sorted=True)
        parts = [own, behaviors, own - behaviors, own * behaviors]
        mlp = MLP(self.hidden, 1, self.activation)
        weights = mlp(jnp.concatenate(parts, axis=1), mask, train=train)[:, 0]
        return jnp.where(mask, weights, 0)


class Variant:
    """A train step, its state, and batches that it takes in turn."""

    def __init__(self, config: ConfigDict, batches: list[Batch], *, in_one_go: bool = False):
        run = open_run(config)
        self.state = run.init()
        self.steps = IN_ONE_GO if in_one_go else 1
        self.calls = [batches[i : i + self.steps] for i in range(0, len(batches), self.steps)]
        self.take_steps = train_steps(
            run.model, run.optimizer, run.regularizer, steps_per_call=self.steps
        )
        self.times: list[float] = []

    def take(self, seconds: float, *, timed: bool) -> None:
        """Takes steps for so long, all batches once at least."""
        begin, taken = time.perf_counter(), 0
        while not taken or time.perf_counter() - begin < seconds:
            for call in self.calls:
                self.state, losses = self.take_steps(self.state, call)
                jax.block_until_ready((self.state, losses))
                taken += self.steps
        if timed:
            self.times.append((time.perf_counter() - begin) / taken)


def padded(batch: Batch, longest: int) -> Batch:
    """The batch with as many places as [B, longest] has; the steps' work is that of padding."""
    size = len(batch.label)

    def filled(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full(size * longest, fill, values.dtype)
        out[: len(values)] = values
        return out

    sequences = {
        name: of._replace(
            fields={field: filled(ids, 0) for field, ids in of.fields.items()},
            segment_ids=filled(of.segment_ids, size),
        )
        for name, of in batch.sequences.items()
    }
    return batch._replace(sequences=sequences)


def variants(arguments: argparse.Namespace) -> dict[str, Variant]:
    """Ours, and ours without one choice each."""
    config = config_of(arguments)
    run = open_run(config)
    source, schema = run.source, run.store.schema
    fields = [f for sequence in schema.sequences for f in sequence.fields]
    if [s.name for s in schema.sequences] != ["history"] or any(f.multi_hot for f in fields):
        raise DinError(
            f"{config.data.store}: expected one sequence, 'history', of one-hot fields, as "
            "make_samples.py makes it"
        )
    drawn = [source[i] for i in range(min(len(source), 8 * BATCHES))]
    shape = len(drawn[0].sequences["history"].segment_ids)
    batches = [b for b in drawn if len(b.sequences["history"].segment_ids) == shape][:BATCHES]
    batches = batches[: len(batches) // IN_ONE_GO * IN_ONE_GO] or batches * IN_ONE_GO
    longest = max(
        int(np.bincount(b.sequences["history"].segment_ids)[: len(b.label)].max()) for b in batches
    )
    found = {
        "ours": Variant(config, batches),
        "padded": Variant(config, [padded(b, longest) for b in batches]),
        "in_one_go": Variant(config, batches, in_one_go=True),
    }
    dense = config.copy_and_resolve_references()
    dense.optimizer.lazy = False
    found["dense"] = Variant(dense, batches)
    din.ActivationUnit = Concatenated  # type: ignore[misc]
    found["concatenated"] = Variant(config, batches)
    found["concatenated"].take(0, timed=False)  # traced with it
    din.ActivationUnit = ActivationUnit  # type: ignore[misc]
    return found


def main() -> None:
    """Measures the variants in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    parser.add_argument("--seconds", type=float, default=2, help="of a variant in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise DinError(f"--rounds {arguments.rounds}: expected at least 1")
    found = variants(arguments)
    for variant in found.values():
        variant.take(0, timed=False)
    for _ in range(arguments.rounds):
        for variant in found.values():
            variant.take(arguments.seconds, timed=True)
    ms = {name: 1e3 * statistics.median(v.times) for name, v in found.items()}
    for name, value in ms.items():
        print(f"{name:<14}{value:>10.3f} ms a step, {value / ms['ours']:.2f} times ours")
    figures = {
        "ms": {name: round(value, 3) for name, value in ms.items()},
        "over_ours": {name: round(value / ms["ours"], 2) for name, value in ms.items()},
    }
    print(json.dumps(figures | vars(arguments) | {"cores": os.cpu_count()}))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
