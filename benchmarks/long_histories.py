"""Long histories: a train step with and without blocks of behaviours in the activation unit.

    python benchmarks/long_histories.py
    python benchmarks/long_histories.py --batch 1024 --histories 1000 --seconds 0

DIN with Dice (activation unit 80-40, MLP 80-40; goods and categories of width 16) and lazy Adam, on
one batch in memory whose histories have equal lengths. `temp_mb` is XLA's analysis of the compiled
step's memory, without its state and batch. With `--seconds 0` no step is taken, so that steps can
be analysed that do not fit in the machine's memory. Steps with and without blocks are taken in
turns, so that other load on the machine affects both. The last line is JSON, with a suffix
`_HISTORY` for each length:

    at_once_temp_mb, blocks_temp_mb         memory without and with blocks
    at_once_samples_per_s, blocks_…         from the median time of a step
    at_once_us_a_behavior, blocks_…         time per behaviour: constant if the cost is linear
    blocks_time_over_at_once                time with blocks over time without
"""

import argparse
import json
import os
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np
from table_growth import CATEGORIES, schema_of

from din_jax import cli
from din_jax.config import default_config
from din_jax.data.packing import Batch, Behaviors
from din_jax.distributed.cpu import keep_freed_memory
from din_jax.errors import DinError
from din_jax.models.registry import build_model
from din_jax.optim.build import build_optimizer
from din_jax.step.state import init_state
from din_jax.step.train import train_step

GOODS = 63_001


def make_batch(size: int, history: int) -> Batch:
    """A batch of random goods with histories of this length."""
    rng = np.random.default_rng(0)
    ad, visited = (rng.integers(1, GOODS, n).astype(np.int32) for n in (size, size * history))
    return Batch(
        label=rng.integers(0, 2, size).astype(np.float32),
        weight=np.ones(size, np.float32),
        user=np.zeros(size, np.int32),
        fields={"item": ad, "category": ad % CATEGORIES},
        sequences={
            "history": Behaviors(
                {"item": visited, "category": visited % CATEGORIES},
                np.repeat(np.arange(size, dtype=np.int32), history),
            )
        },
    )


class Trial:
    """A compiled train step for histories of one length."""

    def __init__(self, batch: Batch, block: int):
        config = default_config()
        config.model.embedding_dim = 16
        config.model.hidden = config.model.attention.hidden = (80, 40)
        config.model.attention.block = block
        config.optimizer.decay_samples = 1_000_000
        model = build_model(schema_of(GOODS), config.model)
        size = len(batch.label)
        optimizer = build_optimizer(config.optimizer, config.regularizer, size, model.tables)
        step: Any = train_step(model, optimizer)
        self.batch = jax.device_put(batch)
        self.state = init_state(model, optimizer, batch, 0)
        self.keywords = step.keywords
        self.step = step.func.lower(self.state, self.batch, **self.keywords).compile()
        self.temp_bytes = self.step.memory_analysis().temp_size_in_bytes
        self.times: list[float] = []

    def take(self) -> None:
        """Takes a step."""
        begin = time.perf_counter()
        self.state, _ = jax.block_until_ready(self.step(self.state, self.batch, **self.keywords))
        self.times.append(time.perf_counter() - begin)


def measure(size: int, history: int, block: int, seconds: float) -> dict[str, float]:
    """Measures one length of histories."""
    batch = make_batch(size, history)
    trials = {"at_once": Trial(batch, 0), "blocks": Trial(batch, block)}
    figures: dict[str, float] = {
        f"{name}_temp_mb": round(trial.temp_bytes / 1e6) for name, trial in trials.items()
    }
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for trial in trials.values():
            trial.take()
    if seconds:
        # Without the first step of each.
        medians = {name: statistics.median(t.times[1:] or t.times) for name, t in trials.items()}
        for name, step_s in medians.items():
            figures[f"{name}_samples_per_s"] = round(size / step_s)
            figures[f"{name}_us_a_behavior"] = round(1e6 * step_s / (size * history), 3)
        figures["blocks_time_over_at_once"] = round(medians["blocks"] / medians["at_once"], 2)
    return figures


def main() -> None:
    """Measures each length, and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--histories", default="100,300,1000", help="lengths")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--block", type=int, default=1024, help="behaviours per block")
    parser.add_argument("--seconds", type=float, default=20, help="per length")
    arguments = parser.parse_args()
    for flag in ("batch", "block"):
        if getattr(arguments, flag) < 1:
            raise DinError(f"--{flag} {getattr(arguments, flag)}: expected at least 1")
    try:
        histories = [int(length) for length in arguments.histories.split(",")]
    except ValueError:
        histories = [0]
    if min(histories) < 1:
        raise DinError(
            f"--histories {arguments.histories}: expected lengths of at least 1, such as 100,300"
        )
    keep_freed_memory()
    figures = {}
    for history in histories:
        measured = measure(arguments.batch, history, arguments.block, arguments.seconds)
        print(f"histories of {history}: {measured}", flush=True)
        figures |= {f"{name}_{history}": figure for name, figure in measured.items()}
    print(
        json.dumps(
            figures
            | {"batch": arguments.batch, "block": arguments.block}
            | {"cores": os.cpu_count()}
        )
    )


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
