"""Speed of DIN's training and scoring: end to end, like `train.py`, and on batches in memory.

    python benchmarks/train.py --dim 64 --batch 1024 --optimizer adam

Activation unit 80-40, MLP 80-40. Without `--store` the data is that of `make_samples.py`, which is
made if it is missing: the shape of Amazon Electronics, with histories of 9 on average. The last
line is JSON:

    samples_per_s        training like train.py, with store, Grain and steps: the median of its log,
                         which excludes compiling, evaluating and saving
    step_samples_per_s   the same step on batches in memory
    input_wait           fraction of the time that training waits for a batch
    infer_samples_per_s  scoring the train split, end to end; with_metrics_samples_per_s: and its
                         metrics
    compile_s, shapes    time to compile the step for the first batches; number of their shapes
    peak_mb              the process's peak memory, up to the end of the training
    step_over_paper      with --preset recommended: step_samples_per_s over that of the paper's
                         preset, the median of seven measurements in turns
    matmul_share         FLOPs per second of the step's matrix products, over those of a 2048 x 2048
                         product
    copy_share           bytes per second that XLA counts for the step, over those of a copy
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
READY_SAMPLES = 32_768  # samples in the batches in memory


def config_of(arguments: argparse.Namespace) -> ConfigDict:
    """Makes the config of the flags of `add_flags`; makes the default store if it is missing."""
    if arguments.store == STORE and not Path(STORE).exists():
        from make_samples import make  # imports Polars, which would increase the peak memory

        make(STORE, mean_history=9)
    c = default_config()
    c.data.store = arguments.store
    c.data.max_history = 100
    c.model.preset = arguments.preset
    c.model.embedding_dim = arguments.dim
    c.model.hidden = c.model.attention.hidden = (80, 40)
    c.model.attention.difference = True  # as in other libraries
    c.optimizer.learning_rate = 0.001
    c.optimizer.decay_samples = 1_000_000
    c.train.batch_size = c.eval.batch_size = arguments.batch
    return c


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that benchmarks on a store share."""
    parser.add_argument("--store", default=STORE)
    parser.add_argument("--preset", choices=("paper", "recommended"), default="paper")
    parser.add_argument("--dim", type=int, default=64, help="width of goods, and of categories")
    parser.add_argument("--batch", type=int, default=1024)


class Steps:
    """A run's train step on batches in memory; small batches are trained several per call."""

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
        self.samples = [sum(int((batch.weight > 0).sum()) for batch in call) for call in self.ready]
        started = time.perf_counter()
        self.calls_by_shape = {shape_of(call[0]): call for call in self.ready}
        for call in self.calls_by_shape.values():
            self.state, _ = self.take(self.state, call)
        jax.block_until_ready(self.state)
        self.compile_s = time.perf_counter() - started

    @property
    def samples_per_step(self) -> float:
        """The mean number of samples in a batch."""
        return sum(self.samples) / sum(map(len, self.ready))

    def samples_per_s(self, seconds: float) -> float:
        """Takes steps until `seconds` have passed, and returns their rate."""
        total, begin, in_flight = 0, time.perf_counter(), None
        for call, samples in itertools.cycle(zip(self.ready, self.samples, strict=True)):
            if in_flight is not None:  # one call in flight, as in training
                jax.block_until_ready(in_flight)
            self.state, in_flight = self.take(self.state, call)
            total += samples
            if time.perf_counter() - begin > seconds:
                break
        jax.block_until_ready(self.state)
        return total / (time.perf_counter() - begin)

    def mean_over_batches(self, cost: Callable[[Batch], float]) -> float:
        """The mean of a cost that depends on a batch's shapes."""
        costs = {shape: cost(call[0]) for shape, call in self.calls_by_shape.items()}
        return statistics.mean(costs[shape_of(call[0])] for call in self.ready)

    def product_flops(self) -> float:
        """FLOPs of a step's matrix products, including padding."""

        def cost(batch: Batch) -> float:
            return _product_flops(jax.make_jaxpr(self.step)(self.state, batch).jaxpr)

        return self.mean_over_batches(cost)

    def bytes_accessed(self) -> float:
        """Bytes that XLA counts for a step."""

        def cost(batch: Batch) -> float:
            lowered = self.step.func.lower(self.state, batch, **self.step.keywords)
            return lowered.compile().cost_analysis()["bytes accessed"]

        return self.mean_over_batches(cost)


def shape_of(batch: Batch) -> tuple[tuple[int, ...], ...]:
    """The shapes of a batch's arrays, for which a step is compiled."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _product_flops(jaxpr: Any) -> float:
    """2 · M · N · K of all products in a jaxpr, including nested ones."""
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
    """Trains like train.py for `seconds`; returns its log lines of training, except the first."""
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
    """Sends SIGINT `seconds` after the first log line, but not before the third of training."""
    while not log.exists() or not log.stat().st_size:
        time.sleep(0.1)
    time.sleep(seconds)
    while log.read_text().count('"train"') < 3:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


def scoring(run: Run, state: TrainState, seconds: float) -> dict[str, float]:
    """Samples per second of scoring the train split, without and with its metrics."""
    evaluator = run.evaluator("train")
    evaluator.metrics(evaluator.probabilities(state))
    without_metrics, with_metrics = [], []
    begin = time.perf_counter()
    while len(without_metrics) < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        probabilities = evaluator.probabilities(state)
        without_metrics.append(time.perf_counter() - start)
        evaluator.metrics(probabilities)
        with_metrics.append(time.perf_counter() - start)
    count = len(evaluator.labels)
    return {
        "infer_samples_per_s": round(count / statistics.median(without_metrics)),
        "with_metrics_samples_per_s": round(count / statistics.median(with_metrics)),
    }


def _median_seconds(call: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def product_rate() -> float:
    """FLOPs per second of a matrix product, 2048 x 2048 in float32."""
    x = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    return 2 * 2048**3 / _median_seconds(lambda: product(x, x), 7)


def copy_rate() -> float:
    """Bytes per second that a copy of 134 MB, more than any cache, reads and writes."""
    x = jnp.zeros(1 << 25)
    copy = jax.jit(jnp.copy)
    return 2 * x.nbytes / _median_seconds(lambda: copy(x), 7)


def peak_mb() -> int:
    """The process's peak memory."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures one configuration."""
    config = config_of(arguments)
    config.data.max_history = arguments.max_history
    config.model.activation = arguments.activation
    config.optimizer.name = arguments.optimizer
    if arguments.dense:
        config.optimizer.lazy = False
    if arguments.mba:
        config.regularizer.name = "mba"
    config.train.patience = 0
    logged = train_end_to_end(config, arguments.seconds / 2)
    peak = peak_mb()
    run = open_run(config)
    steps = Steps(run)
    product_rates = [product_rate()]
    # In turns, so that other load on the machine affects both.
    step_rates = [steps.samples_per_s(arguments.seconds / 2)]
    logged += train_end_to_end(config, arguments.seconds / 2)
    step_rates.append(steps.samples_per_s(arguments.seconds / 2))
    product_rates.append(product_rate())
    over_paper = _over_paper(arguments, steps) if arguments.preset != "paper" else {}
    scoring_rates = scoring(run, steps.state, arguments.seconds / 2)
    step_rate = statistics.mean(step_rates)
    steps_per_s = step_rate / steps.samples_per_step
    products = steps.product_flops() * steps_per_s
    return {
        "samples_per_s": round(statistics.median(line["samples_per_s"] for line in logged)),
        "step_samples_per_s": round(step_rate),
        "input_wait": round(statistics.median(line["input_wait"] for line in logged), 4),
        **scoring_rates,
        **over_paper,
        "ms_a_step": round(1e3 / steps_per_s, 3),
        "compile_s": round(steps.compile_s, 1),
        "shapes": len(steps.calls_by_shape),
        "peak_mb": peak,
        "matmul_share": round(products / statistics.mean(product_rates), 3),
        "matmul_gflops": round(statistics.mean(product_rates) / 1e9),
        "copy_share": round(steps.bytes_accessed() * steps_per_s / copy_rate(), 3),
    }


def _over_paper(arguments: argparse.Namespace, steps: Steps) -> dict[str, float]:
    """The preset's samples per second over the paper's, of the step, in turns."""
    config = config_of(argparse.Namespace(**vars(arguments) | {"preset": "paper"}))
    config.data.max_history = arguments.max_history
    config.model.activation = arguments.activation
    config.optimizer.name = arguments.optimizer
    paper = Steps(open_run(config))
    seconds = max(1.0, arguments.seconds / 5)
    ratios = [steps.samples_per_s(seconds) / paper.samples_per_s(seconds) for _ in range(7)]
    return {"step_over_paper": round(statistics.median(ratios), 3)}


def main() -> None:
    """Measures the configuration that the flags describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--activation", default="dice")
    parser.add_argument("--mba", action="store_true", help="mini-batch aware regularisation")
    parser.add_argument("--dense", action="store_true", help="dense Optax updates of the tables")
    parser.add_argument("--max-history", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=10, help="per measurement")
    arguments = parser.parse_args()
    if arguments.seconds <= 0:
        raise DinError(f"--seconds {arguments.seconds}: expected more than 0")
    figures = measure(arguments)
    print(json.dumps(figures | vars(arguments) | {"cores": os.cpu_count()}))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
