"""Training time per sample, for stores with different numbers of samples.

    python benchmarks/store_sizes.py --samples 100000,1000000,10000000

Makes missing stores in `data/speed` by `make_samples.py`. Trains on the stores in turns, like
`train.py`, and prints the medians. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from make_samples import make

from din_jax import cli
from din_jax.errors import DinError
from train import add_flags, config_of, train_end_to_end


def main() -> None:
    """Measures all sizes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_flags(parser)
    parser.add_argument("--samples", default="100000,1000000,10000000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="per training")
    arguments = parser.parse_args()
    try:
        sizes = [int(size) for size in arguments.samples.split(",")]
    except ValueError:
        raise DinError(
            f"--samples {arguments.samples}: expected whole numbers, such as 100000,1000000"
        ) from None
    if arguments.rounds < 1 or arguments.seconds <= 0:
        raise DinError(
            f"--rounds {arguments.rounds} --seconds {arguments.seconds}: expected more than 0"
        )
    configs = {}
    for size in sizes:
        store = Path(f"data/speed/samples-{size}")
        if not store.exists():
            make(store, mean_history=9, samples=size)
        arguments.store = str(store)
        configs[size] = config_of(arguments)
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(arguments.rounds):
        for size, config in configs.items():
            logged = train_end_to_end(config, arguments.seconds)
            rates[size].append(statistics.median(line["samples_per_s"] for line in logged))
    medians = {size: statistics.median(size_rates) for size, size_rates in rates.items()}
    for size, rate in medians.items():
        print(
            f"{size:>12,} samples in the store: {rate:,.0f} samples/s, {1e6 / rate:.2f} µs/sample"
        )
    print(
        json.dumps(
            {
                "samples_per_s": {size: round(rate) for size, rate in medians.items()},
                "cost_over_smallest": round(medians[min(sizes)] / medians[max(sizes)], 3),
                "dim": arguments.dim,
                "batch": arguments.batch,
            }
        )
    )


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
