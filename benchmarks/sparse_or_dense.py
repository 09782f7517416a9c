"""When a sparse update of a table is faster than a dense one: the threshold `SPARSE_ABOVE`.

    python benchmarks/sparse_or_dense.py

Times the train step of table_growth.py with sparse and with dense updates of the table of goods, in
turns, for several ratios K / N. The last line is JSON: `dense_over_sparse` by K / N.
"""

import argparse
import json
import os

from table_growth import Trial

from din_jax.distributed.cpu import keep_freed_memory
from din_jax.nn import present_rows


def main() -> None:
    """Measures both updates for each ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratios", default="1,2,4,8,16", help="K / N")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--rounds", type=int, default=10, help="of 20 steps for each update")
    arguments = parser.parse_args()
    keep_freed_memory()
    default = present_rows.SPARSE_ABOVE
    dense_over_sparse = {}
    for ratio in (float(r) for r in arguments.ratios.split(",")):
        trials = {}
        for kind, above in (("sparse", 0), ("dense", 10**12)):
            present_rows.SPARSE_ABOVE = above
            first = Trial(1000, arguments.optimizer, arguments.batch, lazy=True).batches[0]
            ids = len(first.label) + len(first.sequences["history"].segment_ids)
            trials[kind] = Trial(int(ratio * ids), arguments.optimizer, arguments.batch, lazy=True)
            assert ("item" in trials[kind].state.scratch) == (kind == "sparse")
            trials[kind].take(3, timed=False)
        for _ in range(arguments.rounds):
            for trial in trials.values():
                trial.take(20, timed=True)
        sparse, dense = trials["sparse"].ms(), trials["dense"].ms()
        dense_over_sparse[f"{ratio:g}"] = round(dense / sparse, 3)
        print(f"K/N {ratio:>5g}: sparse {sparse:.3f} ms, dense {dense:.3f} ms", flush=True)
    figures = {"dense_over_sparse": dense_over_sparse, "rule": default}
    print(json.dumps(figures | {"batch": arguments.batch, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
