"""What histories are worth to trained models: scores with each user's own, and with another user's.

    python benchmarks/permuted_histories.py runs/table3-amazon-paper/*-0

Every user's samples get the history that another user's last sample of the split has. Where all of
a user's samples have one history, as in the test split of Amazon, histories are permuted between
users and nothing else changes. A model that is additive in the history, logistic regression, then
keeps its user-weighted AUC (Eq. 10): the history moves all scores of a user alike. What another
model loses is what it makes of the history.
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
    """The store with the histories of a split permuted between users."""
    samples = store.split(split)
    at = slice(samples.start, samples.stop)
    users, of_sample = np.unique(store.column("samples/user")[at], return_inverse=True)
    last = np.zeros(len(users), np.int64)
    last[of_sample] = np.arange(len(of_sample))
    # A cycle through all users in random order: nobody keeps their own.
    order = np.random.default_rng(seed).permutation(len(users))
    giver = np.empty(len(users), np.int64)
    giver[order] = np.roll(order, 1)
    columns = {}
    for sequence in store.schema.sequences:
        for end in ("start", "end"):
            name = f"sequences/{sequence.name}.{end}"
            columns[name] = store.column(name).copy()
            columns[name][at] = store.column(name)[at][last[giver[of_sample]]]
    return store.with_columns(columns)


def main() -> None:
    """Scores each run's split twice, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path, help="folders of trained runs")
    parser.add_argument("--store", default="", help="where the store is, if it has moved")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = {}
    print("| run | user_weighted_auc | with another user's history | difference |")
    print("| --- | --- | --- | --- |")
    for workdir in arguments.workdirs:
        run = reopen(workdir, arguments.store)
        kind = final_kind(run, workdir)
        state, _ = run.checkpoints(workdir).restore(kind, run.state_shapes())
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
