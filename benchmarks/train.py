"""How fast DIN trains and scores: end to end, as `train.py` does it, and on ready batches.

    python benchmarks/train.py --dim 64 --batch 1024 --optimizer adam

Activation unit 80-40, MLP 80-40. Without `--store` the data is that of `make_samples.py`, made when
it is missing: of the shape of Amazon Electronics, histories of 9 on average. The last line is JSON:

    samples_per_s        training as train.py's: store, Grain, steps; the median of its own figures
    step_samples_per_s   the same step on batches that are ready in memory
    input_wait           share of the time that training waits for a batch
    infer_samples_per_s  scoring train, end to end; with_metrics_samples_per_s: with its metrics
    compile_s, shapes    compiling the step for the shapes of the first batches, and how many
    peak_mb              the process' largest memory, all of the above included
    matmul_share         the step's matrix products a second, over the rate of one of 2048 x 2048
    copy_share           bytes that XLA counts for the step a second, over the rate of a copy
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from din_jax import cli  # isort: skip  # before any thread: see there

import jax
import jax.numpy as jnp
import numpy as np
from make_samples import make
from ml_collections import ConfigDict

from din_jax import training
from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.pipeline import Batch
from din_jax.step import TrainState

STORE = "data/speed/history-9"
READY_SAMPLES = 32_768  # in batches that are ready in memory


def config_of(arguments: argparse.Namespace) -> ConfigDict:
    """The config that the flags `add_flags` adds describe; the default store is made if missing."""
    if arguments.store == STORE and not Path(STORE).exists():
        make(STORE, mean_history=9)
    c = default_config()
    c.data.store = arguments.store
    c.data.max_history = 100
    c.model.embedding_dim = arguments.dim
    c.model.hidden = c.model.attention.hidden = (80, 40)
    c.model.attention.difference = True  # as other libraries have it
    c.optimizer.learning_rate = 0.001
    c.optimizer.decay_samples = 1_000_000
    c.train.batch_size = c.eval.batch_size = arguments.batch
    return c


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that benchmarks on a store share."""
    parser.add_argument("--store", default=STORE)
    parser.add_argument("--dim", type=int, default=64, help="of goods, and of categories")
    parser.add_argument("--batch", type=int, default=1024)


class Steps:
    """A run's train step on ready batches, taken in turn."""

    def __init__(self, run: training.Run):
        self.step: Any = run.step()
        self.state = run.init()
        count = min(len(run.source), max(8, READY_SAMPLES // run.source.batch_size))
        self.ready = [run.source[i] for i in range(count)]
        self.samples = [int(batch.weight.sum()) for batch in self.ready]
        begin = time.perf_counter()
        self.of_shape = {shape_of(batch): batch for batch in self.ready}
        for batch in self.of_shape.values():
            self._take(batch)
        self.compile_s = time.perf_counter() - begin

    def samples_per_s(self, seconds: float) -> float:
        """Takes steps for so long."""
        taken, begin, waiting = 0, time.perf_counter(), None
        for batch, samples in itertools.cycle(zip(self.ready, self.samples, strict=True)):
            # One step in flight, as in training.
            self.state, loss = self.step(self.state, batch)
            if waiting is not None:
                jax.block_until_ready(waiting)
            waiting, taken = loss, taken + samples
            if time.perf_counter() - begin > seconds:
                break
        jax.block_until_ready(self.state)
        return taken / (time.perf_counter() - begin)

    def _take(self, batch: Batch) -> None:
        self.state, loss = self.step(self.state, batch)
        jax.block_until_ready((self.state, loss))

    def mean_over_batches(self, of_batch: Callable[[Batch], float]) -> float:
        """The mean of what depends on a batch's shape."""
        found = {shape: of_batch(batch) for shape, batch in self.of_shape.items()}
        return statistics.mean(found[shape_of(batch)] for batch in self.ready)

    def product_flops(self) -> float:
        """Operations of a step's matrix products, padding included."""

        def of_batch(batch: Batch) -> float:
            return _product_flops(jax.make_jaxpr(self.step)(self.state, batch).jaxpr)

        return self.mean_over_batches(of_batch)

    def bytes_accessed(self) -> float:
        """What XLA counts for a step."""

        def of_batch(batch: Batch) -> float:
            lowered = self.step.func.lower(self.state, batch, **self.step.keywords)
            return lowered.compile().cost_analysis()["bytes accessed"]

        return self.mean_over_batches(of_batch)


def shape_of(batch: Batch) -> tuple[tuple[int, ...], ...]:
    """The shapes of a batch's arrays: a step is compiled once for each."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _product_flops(jaxpr: Any) -> float:
    """2 · M · N · K of every product in a jaxpr and those inside it."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            k = np.prod([shape[axis] for axis in contracted])
            total += 2 * k * np.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += _product_flops(inner)
    return float(total)


def train_end_to_end(config: ConfigDict, seconds: float, samples_per_s: float) -> dict[str, float]:
    """What train.py logs of a run that lasts about so long: medians, without the first figures."""
    config = config.copy_and_resolve_references()
    samples = training.open_run(config).source.samples
    config.train.epochs = 2 + int(seconds * samples_per_s / len(samples))
    with tempfile.TemporaryDirectory() as workdir:
        training.train(config, workdir, test=False)
        lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    logged = [line for line in map(json.loads, lines) if line["split"] == "train"][1:]
    return {
        key: statistics.median(line[key] for line in logged)
        for key in ("samples_per_s", "input_wait")
    }


def scoring(run: training.Run, state: TrainState, seconds: float) -> dict[str, float]:
    """Samples a second of scoring the train split, without and with its metrics."""
    evaluator = run.evaluator("train")
    evaluator.metrics(evaluator.probabilities(state))
    scored, both = [], []
    begin = time.perf_counter()
    while len(scored) < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        probabilities = evaluator.probabilities(state)
        scored.append(time.perf_counter() - start)
        evaluator.metrics(probabilities)
        both.append(time.perf_counter() - start)
    count = len(evaluator.labels)
    return {
        "infer_samples_per_s": round(count / statistics.median(scored)),
        "with_metrics_samples_per_s": round(count / statistics.median(both)),
    }


def _seconds_of(call: Callable[[], Any], times: int) -> float:
    jax.block_until_ready(call())
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def product_rate() -> float:
    """Operations a second of a matrix product, 2048 x 2048 in float32."""
    x = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    return 2 * 2048**3 / _seconds_of(lambda: product(x, x), 7)


def copy_rate() -> float:
    """Bytes a second read and written by a copy of 256 MB."""
    x = jnp.zeros(1 << 26)
    copy = jax.jit(jnp.copy)
    return 2 * x.nbytes / _seconds_of(lambda: copy(x), 7)


def peak_mb() -> int:
    """The largest memory that the process has held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of one configuration."""
    config = config_of(arguments)
    config.data.max_history = arguments.max_history
    config.model.activation = arguments.activation
    config.optimizer.name = arguments.optimizer
    config.optimizer.lazy = not arguments.dense
    config.regularizer.name = "mba" if arguments.mba else "none"
    run = training.open_run(config)
    steps = Steps(run)
    product_rates = [product_rate()]
    # In turns, so that what else the machine does falls on both.
    alone = [steps.samples_per_s(arguments.seconds / 2)]
    trained = train_end_to_end(config, arguments.seconds, alone[0])
    alone.append(steps.samples_per_s(arguments.seconds / 2))
    product_rates.append(product_rate())
    figures = trained | scoring(run, steps.state, arguments.seconds / 2)
    peak = peak_mb()
    step_rate = statistics.mean(alone)
    steps_per_s = step_rate / statistics.mean(steps.samples)
    products = steps.product_flops() * steps_per_s
    return {
        "samples_per_s": round(figures["samples_per_s"]),
        "step_samples_per_s": round(step_rate),
        "input_wait": round(figures["input_wait"], 4),
        "infer_samples_per_s": figures["infer_samples_per_s"],
        "with_metrics_samples_per_s": figures["with_metrics_samples_per_s"],
        "ms_a_step": round(1e3 / steps_per_s, 3),
        "compile_s": round(steps.compile_s, 1),
        "shapes": len(steps.of_shape),
        "peak_mb": peak,
        "matmul_share": round(products / statistics.mean(product_rates), 3),
        "matmul_gflops": round(statistics.mean(product_rates) / 1e9),
        "copy_share": round(steps.bytes_accessed() * steps_per_s / copy_rate(), 3),
    }


def main() -> None:
    """Measures the configuration that the flags name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--activation", default="dice")
    parser.add_argument("--mba", action="store_true", help="with mini-batch aware decay")
    parser.add_argument("--dense", action="store_true", help="dense Optax, tables as a whole")
    parser.add_argument("--max-history", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    arguments = parser.parse_args()
    if arguments.seconds <= 0:
        raise DinError(f"--seconds {arguments.seconds}: expected more than 0")
    figures = measure(arguments)
    print(json.dumps(figures | vars(arguments) | {"cores": os.cpu_count()}))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
