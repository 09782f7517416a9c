"""Times user-weighted AUC at the size of the full Amazon Electronics test split.

    python benchmarks/metrics.py

192,403 users have one positive and one negative each. The last line is JSON:
`user_weighted_auc_s` is the median of the repeats.
"""

import json
import os
import statistics
import time

import numpy as np

from din_jax.metrics import user_auc


def main() -> None:
    """Times the metric, and checks it by counting pairs."""
    rng = np.random.default_rng(0)
    users = 192_403
    user = rng.permutation(np.repeat(np.arange(users), 2))
    order = np.argsort(user, kind="stable")
    label = np.empty(2 * users, np.int64)
    label[order] = np.tile([1, 0], users)
    score = rng.random(2 * users).astype(np.float32)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        value = user_auc(user, label, score).weighted("impressions")
        seconds.append(time.perf_counter() - begin)
    positive, negative = score[order][::2], score[order][1::2]
    expected = np.mean((positive > negative) + 0.5 * (positive == negative))
    figures = {
        "user_weighted_auc_s": round(statistics.median(seconds), 4),
        "error": abs(float(value - expected)),
        "users": users,
        "rows": 2 * users,
        "cores": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
