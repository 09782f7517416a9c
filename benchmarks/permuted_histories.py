"""What trained models learn from histories: their scores with histories permuted between users.

    python benchmarks/permuted_histories.py runs/table3-amazon-paper/*-0

Every user's samples get the history of another user's last sample in the split. If all samples of a
user have the same history, as in the test split of Amazon, this permutes the histories between
users, and changes nothing else. It does not change the user-weighted AUC (Eq. 10) of a model that
is additive in the history, such as logistic regression, because the history adds the same number to
all scores of a user. The loss of other models measures what they learn from the history.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from din_jax import cli
from din_jax.data.store import Store
from din_jax.training.trained import final_kind, reopen


def permuted(store: Store, split: str, seed: int) -> Store:
    """A copy of the store with the histories of a split permuted between users."""
    samples = store.split(split)
    rows = slice(samples.start, samples.stop)
    users, user_index = np.unique(store.column("samples/user")[rows], return_inverse=True)
    last_sample = np.zeros(len(users), np.int64)
    last_sample[user_index] = np.arange(len(user_index))
    # A cycle through all users in random order: no user keeps the same history.
    order = np.random.default_rng(seed).permutation(len(users))
    source_user = np.empty(len(users), np.int64)
    source_user[order] = np.roll(order, 1)
    columns = {}
    for sequence in store.schema.sequences:
        for end in ("start", "end"):
            name = f"sequences/{sequence.name}.{end}"
            columns[name] = store.column(name).copy()
            columns[name][rows] = store.column(name)[rows][last_sample[source_user[user_index]]]
    return store.with_columns(columns)


def main() -> None:
    """Scores each run's split with both histories, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, help="folders of trained runs")
    parser.add_argument("--store", default="", help="path of the store, if it has moved")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = {}
    print("| run | user_weighted_auc | with another user's history | difference |")
    print("| --- | --- | --- | --- |")
    for workdir in arguments.workdirs:
        run = reopen(workdir, arguments.store)
        kind = final_kind(run, workdir)
        state = run.restore(workdir, kind)
        scores = []
        for store in (run.store, permuted(run.store, arguments.split, arguments.seed)):
            evaluator = run._replace(store=store).evaluator(arguments.split)
            metrics = evaluator.metrics(evaluator.probabilities(state))
            scores.append(metrics["user_weighted_auc"])
        own, other = scores
        print(f"| {workdir.name} | {own:.4f} | {other:.4f} | {other - own:+.4f} |", flush=True)
        result[str(workdir)] = {"own": own, "other": other}
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
