"""Time of a train step as the table of goods grows, with sparse updates and with dense Optax.

    python benchmarks/table_growth.py
    python benchmarks/table_growth.py --optimizer adam --lazy catch_up --no-dense
    python benchmarks/table_growth.py --rows 1000000,100000000 --optimizer rowwise_adagrad \
        --no-dense --checkpoint /tmp/large

DIN with Dice (activation unit 80-40, MLP 80-40), goods and categories of width 16, histories of 9
on average, and mini-batch aware regularisation, on batches in memory. Sizes are measured in turns,
so that other load on the machine affects all of them equally. The last line is JSON: `ms_ROWS` is
the median time of a step, `ratio_LARGEST_over_SMALLEST` their ratio, `dense_ms_ROWS` the time with
dense Optax. With `--checkpoint` the largest state is also saved and restored. `peak_over_tables` is
the process's peak memory over the bytes of all tables and their optimizer state.

With `--lazy catch_up` sparse updates have the result of dense ones (`din_jax.optim.catch_up`).
`lazy_ms_ROWS` is the time of lazy ones, in turns with them; `settle_s_LARGEST` is how long all rows
of the largest tables take to catch up.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.config import default_config
from din_jax.data.packing import Batch, Behaviors
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.distributed.cpu import keep_freed_memory
from din_jax.models.registry import build_model
from din_jax.optim.build import build_optimizer
from din_jax.optim.regularizer import Regularizer
from din_jax.step.settle import settle
from din_jax.step.state import init_state
from din_jax.step.train import train_step

CATEGORIES = 801
MEAN_HISTORY = 9
BATCHES = 16  # different batches, used in turn
CAPACITY = 1.1  # capacity of the packed axis over its mean length


def schema_of(rows: int) -> Schema:
    """A schema with goods and categories, in the ad and in the history."""
    fields = ("item", "category")
    return Schema(
        (Table("item", rows), Table("category", CATEGORIES)),
        tuple(Field(name, name, "ad") for name in fields),
        (Sequence("history", tuple(BehaviorField(name, name, ad=name) for name in fields)),),
    )


def make_batches(rows: int, size: int, seed: int = 0) -> list[Batch]:
    """Makes batches of random goods, whose popularity is a power law of their rank."""
    rng = np.random.default_rng(seed)
    capacity = int(size * MEAN_HISTORY * CAPACITY)

    def goods(count: int) -> np.ndarray:
        # The density of ranks is proportional to (rank + 50)^-0.9; ranks are spread over the table.
        u = rng.random(count)
        low, high = 50**0.1, (rows + 50) ** 0.1
        rank = ((low + u * (high - low)) ** 10 - 50).astype(np.int64).clip(0, rows - 2)
        return (rank * 7_368_787 % (rows - 1) + 1).astype(np.int32)

    batches = []
    for _ in range(BATCHES):
        length = rng.geometric(1 / MEAN_HISTORY, size)
        length = np.diff(np.minimum(np.concatenate([[0], np.cumsum(length)]), capacity))
        segment_ids = np.full(capacity, size, np.int32)
        segment_ids[: length.sum()] = np.repeat(np.arange(size), length)
        ad, visited = goods(size), goods(capacity)
        batches.append(
            Batch(
                label=rng.integers(0, 2, size).astype(np.float32),
                weight=np.ones(size, np.float32),
                user=np.zeros(size, np.int32),
                fields={"item": ad, "category": ad % CATEGORIES},
                sequences={
                    "history": Behaviors(
                        {"item": visited, "category": visited % CATEGORIES}, segment_ids
                    )
                },
            )
        )
    return batches


class Trial:
    """A model with a table of `rows` goods, and its train step."""

    def __init__(self, rows: int, optimizer: str, batch_size: int, *, lazy: bool | str):
        self.rows = rows
        config = default_config()
        config.model.embedding_dim = 16
        config.model.hidden = config.model.attention.hidden = (80, 40)
        config.optimizer.name, config.optimizer.lazy = optimizer, lazy
        config.optimizer.decay_samples = 1_000_000
        config.regularizer.name = "mba"
        self.config, self.schema = config, schema_of(rows)
        model = build_model(self.schema, config.model)
        transform = build_optimizer(config.optimizer, config.regularizer, batch_size, model.tables)
        self.batches = make_batches(rows, batch_size)
        counts = {name: jnp.ones(spec.rows) for name, spec in model.tables.items()}
        self.step = train_step(model, transform, Regularizer(counts=counts))
        self.settle = settle(transform)
        self.init = lambda: init_state(model, transform, self.batches[0], 0, lazy=bool(lazy))
        begin = time.perf_counter()
        self.state = jax.block_until_ready(self.init())
        self.init_s = time.perf_counter() - begin
        self.times: list[float] = []
        self.steps_taken = 0

    def take(self, steps: int, *, timed: bool) -> None:
        """Takes `steps` steps."""
        for _ in range(steps):
            batch = self.batches[self.steps_taken % BATCHES]
            begin = time.perf_counter()
            self.state, loss = self.step(self.state, batch)
            loss.block_until_ready()
            jax.block_until_ready(self.state.tables)
            if timed:
                self.times.append(time.perf_counter() - begin)
            self.steps_taken += 1

    def settle_s(self) -> float:
        """The time in which all rows catch up, in seconds."""
        self.state = self.settle(self.state)  # compiles
        self.take(BATCHES, timed=False)
        begin = time.perf_counter()
        self.state = jax.block_until_ready(self.settle(self.state))
        return time.perf_counter() - begin

    def ms(self) -> float:
        """The median time of a step, in milliseconds."""
        return round(1e3 * statistics.median(self.times), 3)

    def bytes(self) -> int:
        """The size of the tables and the optimizer's state."""
        leaves = jax.tree.leaves((self.state.tables, self.state.opt_state))
        return sum(leaf.nbytes for leaf in leaves)


def peak_bytes() -> int:
    """The process's peak memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def short(rows: int) -> str:
    """63001 → "63k"."""
    for size, letter in ((1_000_000, "m"), (1000, "k")):
        if rows >= size:
            return f"{rows // size}{letter}"
    return str(rows)


def measure(
    sizes: list[int], arguments: argparse.Namespace, updates: dict[str, bool | str]
) -> dict[str, float]:
    """Times steps for each size and each of the updates {name of the figure: lazy}, in turns."""
    dense = not any(updates.values())
    rounds, steps = (3, 2) if dense else (arguments.rounds, 20)
    named = [
        (name, Trial(k, arguments.optimizer, arguments.batch, lazy=lazy))
        for k in sizes
        for name, lazy in updates.items()
    ]
    trials = [trial for _, trial in named]
    for trial in trials:
        trial.take(3, timed=False)
    for _ in range(rounds):
        for trial in trials:
            trial.take(steps, timed=True)
    figures = {f"{name}_{short(trial.rows)}": trial.ms() for name, trial in named}
    for name, trial in named:
        print(f"{name:<8} {trial.rows:>13,} rows: {trial.ms():>10.3f} ms per step", flush=True)
    if not dense:
        largest = trials[-1]
        figures[f"init_s_{short(largest.rows)}"] = round(largest.init_s, 1)
        if arguments.lazy == "catch_up":
            figures[f"settle_s_{short(largest.rows)}"] = round(largest.settle_s(), 2)
        size = sum(trial.bytes() for trial in trials)
        figures["tables_mb"] = round(size / 1e6)
        if arguments.checkpoint:
            figures |= save_and_restore(trials, Path(arguments.checkpoint))
        figures["peak_mb"] = round(peak_bytes() / 1e6)
        figures["peak_over_tables"] = round(peak_bytes() / size, 3)
    return figures


def save_and_restore(trials: list[Trial], folder: Path) -> dict[str, float]:
    """Saves the largest trial's state, frees it, restores it, and takes a step."""
    largest = trials[-1]
    before = peak_bytes()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), largest.state
    )
    meta = {
        "config": compatibility.as_json(largest.config),
        "schema": largest.schema.to_json(),
        "batches": {},
        "best": None,
    }
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        checkpoints = Checkpoints(workdir)
        begin = time.perf_counter()
        checkpoints.save("last", largest.state, meta)
        saved = time.perf_counter()
        after_save = peak_bytes()
        largest.state = None
        largest.state, _ = checkpoints.restore("last", like)
        restored = time.perf_counter()
    largest.take(1, timed=False)
    return {
        "peak_mb_before_save": round(before / 1e6),
        "peak_mb_after_save": round(after_save / 1e6),
        "peak_mb_after_restore": round(peak_bytes() / 1e6),
        "save_s": round(saved - begin, 1),
        "restore_s": round(restored - saved, 1),
    }


def main() -> None:
    """Measures the sizes with sparse updates, then with dense Optax."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="63001,1000000,10000000", help="sizes, ascending")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--lazy", choices=("true", "catch_up"), default="true")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10, help="of 20 steps for each size")
    parser.add_argument("--no-dense", action="store_true", help="do not measure dense Optax")
    parser.add_argument("--checkpoint", help="folder for a temporary checkpoint of the largest")
    arguments = parser.parse_args()
    keep_freed_memory()
    sizes = sorted(int(k) for k in arguments.rows.split(","))
    catch_up = arguments.lazy == "catch_up"
    updates = {"lazy_ms": True, "ms": "catch_up"} if catch_up else {"ms": True}
    figures = measure(sizes, arguments, updates)
    low, high = short(sizes[0]), short(sizes[-1])
    figures[f"ratio_{high}_over_{low}"] = round(figures[f"ms_{high}"] / figures[f"ms_{low}"], 3)
    if not arguments.no_dense:
        figures |= measure(sizes, arguments, {"dense_ms": False})
        figures[f"dense_over_rows_{high}"] = round(
            figures[f"dense_ms_{high}"] / figures[f"ms_{high}"], 1
        )
    print(json.dumps(figures | {"batch": arguments.batch, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
