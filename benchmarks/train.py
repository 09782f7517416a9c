"""How fast DIN trains and scores: end to end, as `train.py` does it, and on ready batches.

    python benchmarks/train.py --dim 64 --batch 1024 --optimizer adam

Activation unit 80-40, MLP 80-40. Without `--store` the data is that of `make_samples.py`, made when
it is missing: of the shape of Amazon Electronics, histories of 9 on average. The last line is JSON:

    samples_per_s        training as train.py's: store, Grain, steps; the median of its own figures,
                         which leave out compiling, evaluating and saving
    step_samples_per_s   the same step on batches that are ready in memory
    input_wait           share of the time that training waits for a batch
    infer_samples_per_s  scoring train, end to end; with_metrics_samples_per_s: with its metrics
    compile_s, shapes    compiling the step for the shapes of the first batches, and how many
    peak_mb              the process' largest memory, up to the end of the training
    matmul_share         the step's matrix products a second, over the rate of one of 2048 x 2048
    copy_share           bytes that XLA counts for the step a second, over the rate of a copy
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from din_jax import cli
from din_jax.config import default_config
from din_jax.data.packing import Batch
from din_jax.errors import DinError, Interrupted
from din_jax.step.state import TrainState
from din_jax.training.loop import train
from din_jax.training.run import Run, open_run

STORE = "data/speed/history-9"
READY_SAMPLES = 32_768  # in batches that are ready in memory


def config_of(arguments: argparse.Namespace) -> ConfigDict:
    """The config that the flags `add_flags` adds describe; the default store is made if missing."""
    if arguments.store == STORE and not Path(STORE).exists():
        from make_samples import make  # with Polars, which would be in the peak

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
    """A run's train step on ready batches, taken in turn; of small ones several in a call."""

    def __init__(self, run: Run):
        self.step: Any = run.step()
        self.take = run.steps()
        self.state = run.init()
        source = run.source
        batches = min(source.batches_per_epoch, max(8, READY_SAMPLES // source.batch_size))
        self.ready, begin = [], 0
        while begin < batches:
            end = source.next_group(begin)
            self.ready.append([source[i] for i in range(begin, end)])
            begin = end
        self.samples = [sum(int(batch.weight.sum()) for batch in call) for call in self.ready]
        started = time.perf_counter()
        self.of_shape = {shape_of(call[0]): call for call in self.ready}
        for call in self.of_shape.values():
            self.state, _ = self.take(self.state, call)
        jax.block_until_ready(self.state)
        self.compile_s = time.perf_counter() - started

    @property
    def samples_a_step(self) -> float:
        """The mean."""
        return sum(self.samples) / sum(map(len, self.ready))

    def samples_per_s(self, seconds: float) -> float:
        """Takes steps for so long."""
        taken, begin, waiting = 0, time.perf_counter(), None
        for call, samples in itertools.cycle(zip(self.ready, self.samples, strict=True)):
            if waiting is not None:  # one call in flight, as in training
                jax.block_until_ready(waiting)
            self.state, waiting = self.take(self.state, call)
            taken += samples
            if time.perf_counter() - begin > seconds:
                break
        jax.block_until_ready(self.state)
        return taken / (time.perf_counter() - begin)

    def mean_over_batches(self, of_batch: Callable[[Batch], float]) -> float:
        """The mean of what depends on a batch's shape."""
        found = {shape: of_batch(call[0]) for shape, call in self.of_shape.items()}
        return statistics.mean(found[shape_of(call[0])] for call in self.ready)

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


def train_end_to_end(config: ConfigDict, seconds: float) -> list[dict[str, float]]:
    """What train.py logs of a run that is stopped after so long, without the first figures."""
    config = config.copy_and_resolve_references()
    config.train.epochs = 1_000_000
    with tempfile.TemporaryDirectory() as workdir:
        log = Path(workdir) / "metrics.jsonl"
        threading.Thread(target=_interrupt, args=(log, seconds), daemon=True).start()
        with contextlib.suppress(Interrupted):
            train(config, workdir, test=False)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"][1:]


def _interrupt(log: Path, seconds: float) -> None:
    """Stops training as Ctrl-C does, so long after its first log line and not before its third."""
    while not log.exists() or not log.stat().st_size:
        time.sleep(0.1)
    time.sleep(seconds)
    while log.read_text().count('"train"') < 3:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


def scoring(run: Run, state: TrainState, seconds: float) -> dict[str, float]:
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
    """Bytes a second read and written by a copy of 134 MB, which fits no cache but is kept."""
    x = jnp.zeros(1 << 25)
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
    logged = train_end_to_end(config, arguments.seconds / 2)
    peak = peak_mb()
    run = open_run(config)
    steps = Steps(run)
    product_rates = [product_rate()]
    # In turns, so that what else the machine does falls on both.
    alone = [steps.samples_per_s(arguments.seconds / 2)]
    logged += train_end_to_end(config, arguments.seconds / 2)
    alone.append(steps.samples_per_s(arguments.seconds / 2))
    product_rates.append(product_rate())
    scored = scoring(run, steps.state, arguments.seconds / 2)
    step_rate = statistics.mean(alone)
    steps_per_s = step_rate / steps.samples_a_step
    products = steps.product_flops() * steps_per_s
    return {
        "samples_per_s": round(statistics.median(line["samples_per_s"] for line in logged)),
        "step_samples_per_s": round(step_rate),
        "input_wait": round(statistics.median(line["input_wait"] for line in logged), 4),
        **scored,
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
