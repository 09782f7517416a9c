"""The effect of design choices on a train step: the time without each choice over that with it.

    python benchmarks/ablations.py --dim 64 --batch 1024

    padded        histories padded to [B, longest of the batch] instead of packed
    concatenated  the activation unit's first layer on the concatenation of its inputs, not split
    dense         dense Optax updates of the tables instead of sparse updates
    in_one_go     eight steps per call instead of one

All variants use the same batches in memory. They are run in turns, so that other load on the
machine affects all of them equally. The last line is JSON: `ms` per step, and `over_ours`.
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

BATCHES = 16  # batches of equal shapes
IN_ONE_GO = 8  # steps per call of the variant "in_one_go"


class Concatenated(ActivationUnit):
    """An activation unit that applies an MLP to its concatenated inputs."""

    @nn.compact
    def __call__(
        self, behaviors: Any, ad: Any, segment_ids: Any, mask: Any, *, codes: Any, train: bool
    ) -> Any:
        """Computes the weights of behaviours, see `ActivationUnit`; without codes."""
        assert not codes
        ads = jnp.take(ad, segment_ids, axis=0, mode="clip", indices_are_sorted=True)
        inputs = [ads, behaviors, ads - behaviors, ads * behaviors]
        mlp = MLP(self.hidden, 1, self.activation)
        weights = mlp(jnp.concatenate(inputs, axis=1), mask, train=train)[:, 0]
        return jnp.where(mask, weights, 0)


class Variant:
    """A train step, its state and its batches."""

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
        """Takes steps on all batches at least once, and until `seconds` have passed."""
        begin, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() - begin < seconds:
            for call in self.calls:
                self.state, losses = self.take_steps(self.state, call)
                jax.block_until_ready((self.state, losses))
                steps += self.steps
        if timed:
            self.times.append((time.perf_counter() - begin) / steps)


def padded(batch: Batch, longest: int) -> Batch:
    """The batch with its packed axes padded to B · longest, at the cost of padded histories."""
    size = len(batch.label)

    def pad(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full(size * longest, fill, values.dtype)
        out[: len(values)] = values
        return out

    sequences = {
        name: sequence._replace(
            fields={field: pad(ids, 0) for field, ids in sequence.fields.items()},
            segment_ids=pad(sequence.segment_ids, size),
        )
        for name, sequence in batch.sequences.items()
    }
    return batch._replace(sequences=sequences)


def variants(arguments: argparse.Namespace) -> dict[str, Variant]:
    """Our step, and variants that each lack one design choice."""
    config = config_of(arguments)
    run = open_run(config)
    source, schema = run.source, run.store.schema
    fields = [f for sequence in schema.sequences for f in sequence.fields]
    if [s.name for s in schema.sequences] != ["history"] or any(f.multi_hot for f in fields):
        raise DinError(
            f"{config.data.store}: expected one sequence, 'history', of one-hot fields; make a "
            "store with make_samples.py"
        )
    first = [source[i] for i in range(min(len(source), 8 * BATCHES))]
    capacity = len(first[0].sequences["history"].segment_ids)
    batches = [b for b in first if len(b.sequences["history"].segment_ids) == capacity][:BATCHES]
    batches = batches[: len(batches) // IN_ONE_GO * IN_ONE_GO] or batches * IN_ONE_GO
    longest = max(
        int(np.bincount(b.sequences["history"].segment_ids)[: len(b.label)].max()) for b in batches
    )
    by_name = {
        "ours": Variant(config, batches),
        "padded": Variant(config, [padded(b, longest) for b in batches]),
        "in_one_go": Variant(config, batches, in_one_go=True),
    }
    dense = config.copy_and_resolve_references()
    dense.optimizer.lazy = False
    by_name["dense"] = Variant(dense, batches)
    din.ActivationUnit = Concatenated  # type: ignore[misc]
    by_name["concatenated"] = Variant(config, batches)
    by_name["concatenated"].take(0, timed=False)  # traces the step with `Concatenated`
    din.ActivationUnit = ActivationUnit  # type: ignore[misc]
    return by_name


def main() -> None:
    """Measures the variants in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    parser.add_argument("--seconds", type=float, default=2, help="per variant and round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise DinError(f"--rounds {arguments.rounds}: expected at least 1")
    by_name = variants(arguments)
    for variant in by_name.values():
        variant.take(0, timed=False)
    for _ in range(arguments.rounds):
        for variant in by_name.values():
            variant.take(arguments.seconds, timed=True)
    ms = {name: 1e3 * statistics.median(v.times) for name, v in by_name.items()}
    for name, value in ms.items():
        print(f"{name:<14}{value:>10.3f} ms per step, {value / ms['ours']:.2f} times ours")
    results = {
        "ms": {name: round(value, 3) for name, value in ms.items()},
        "over_ours": {name: round(value / ms["ours"], 2) for name, value in ms.items()},
    }
    print(json.dumps(results | vars(arguments) | {"cores": os.cpu_count()}))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
