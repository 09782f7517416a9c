"""Time and memory of `planted --shape industrial`, for two sizes with the same catalogue.

    python benchmarks/prepare_industrial.py
    python benchmarks/prepare_industrial.py --samples 10000000,100000000 --folder /large

Each size is prepared in a separate process. The last line is JSON: `ratio_peak` is the peak memory
of the largest size over that of the smallest, `ratio_samples` the ratio of their samples.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from din_jax.prepare import industrial

CATALOGUE = {"goods": 100_000, "shops": 1_000, "categories": 316}


def child(samples: int, out: str) -> None:
    """Prepares a store and prints the seconds and the process's peak memory."""
    begin = time.perf_counter()
    industrial.prepare(out, samples=samples, **CATALOGUE)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6)}))


def main() -> None:
    """Measures the sizes one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", default="1000000,10000000")
    parser.add_argument("--folder", default=None, help="folder for temporary stores")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(int(arguments.child[0]), arguments.child[1])
        return
    figures: dict[int, dict[str, float]] = {}
    for samples in map(int, arguments.samples.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            out = Path(folder) / "store"
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(samples), str(out)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            )
            figures[samples] = json.loads(done.stdout.splitlines()[-1])
            stored = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
        print(
            f"{samples:>13,} training samples: {figures[samples]['seconds']:>7.1f} s, "
            f"peak {figures[samples]['peak_mb']:>5} MB, store {stored / 1e6:,.0f} MB",
            flush=True,
        )
    smallest, largest = min(figures), max(figures)
    result: dict[str, float] = {}
    for samples, measured in figures.items():
        result |= {f"{name}_{samples}": value for name, value in measured.items()}
    ratio = figures[largest]["peak_mb"] / figures[smallest]["peak_mb"]
    result |= {"ratio_samples": largest / smallest, "ratio_peak": round(ratio, 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
