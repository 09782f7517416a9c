"""Times the input pipeline without a model: samples per second from Grain.

    python benchmarks/pipeline.py --store STORE [--batch 1024]

The last line is JSON; `samples_per_s` is the median of the repeats.
"""

import argparse
import json
import os
import statistics
import time

from din_jax.data.loader import batches
from din_jax.data.source import BatchSource
from din_jax.data.store import Store


def main() -> None:
    """Times full passes over the training split."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    store = Store(arguments.store)
    epochs = max(1, 1_000_000 // len(store.split("train")))
    rates = []
    for seed in range(arguments.repeats):
        source = BatchSource(store, "train", arguments.batch, seed=seed, epochs=epochs)
        begin = time.perf_counter()
        samples = behaviors = capacity = 0
        for batch in batches(source):
            samples += int((batch.weight > 0).sum())
            for sequence in batch.sequences.values():
                behaviors += int((sequence.segment_ids < arguments.batch).sum())
                capacity += len(sequence.segment_ids)
        rates.append(samples / (time.perf_counter() - begin))
        print(f"pass {seed + 1}: {rates[-1]:,.0f} samples/s")
    figures = {
        "samples_per_s": round(statistics.median(rates)),
        "padding_share": round(1 - behaviors / max(capacity, 1), 4),
        "mean_history": round(behaviors / samples, 2),
        "buckets": len(source.buckets.sizes),
        "batch": arguments.batch,
        "cores": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
