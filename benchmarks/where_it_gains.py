"""Where one model gains over another: AUC by length of history, and by what of the ad is in it.

    python benchmarks/where_it_gains.py "runs/amazon-recommended/Base-*" \
        "runs/amazon-recommended/DIN-?"

Each pattern names runs of one model, of as many seeds; their scores of a split are averaged. The
samples of the split are grouped by the length of their history (as far as the runs use it), and by
how often each field of the ad is in it. The last line is JSON: of each group the share of the
samples and both AUCs.
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax import cli
from din_jax.baselines.columns import Values
from din_jax.baselines.histories import InHistories
from din_jax.data.packing import Packer
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.metrics import auc
from din_jax.training.run import Run
from din_jax.training.trained import load_run

_LENGTH_GROUPS = 4  # of about equal numbers of samples


def scores(pattern: str, store: str, split: str) -> tuple[Run, npt.NDArray[np.float64]]:
    """A run of the pattern, and the mean of the runs' click probabilities."""
    workdirs = sorted(glob.glob(pattern))
    if not workdirs:
        raise DinError(f"no run is named {pattern}; quote the pattern, and train the runs first")
    probabilities = []
    for workdir in workdirs:
        run, state = load_run(workdir, store=store)
        probabilities.append(run.probabilities(state, split))
    print(f"{pattern}: {len(workdirs)} runs", flush=True)
    return run, np.mean(probabilities, axis=0)


def groups(
    store: Store, split: str, max_history: int
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Names groups of the split's samples, and says which samples are in each."""
    schema = store.schema
    packer = Packer(store, max_history=max_history)
    part = store.split(split)
    samples = np.arange(part.start, part.stop)
    users = np.unique(store.column("samples/user"), return_inverse=True)[1].astype(np.int64)
    fields = {field.name: field for field in schema.fields}
    for sequence in schema.sequences:
        start, end = packer.history(sequence.name, samples)
        length = (end - start).astype(np.int64)
        edges = np.unique(np.quantile(length, np.linspace(0, 1, _LENGTH_GROUPS + 1)[1:]))
        group = np.searchsorted(edges, length)
        for i in range(len(edges)):
            inside = group == i
            if inside.any():
                span = f"{length[inside].min()} to {length[inside].max()}"
                yield f"{sequence.name}: {span} behaviours", inside
        for behavior in sequence.fields:
            values = Values.of_field(store, fields[behavior.ad])
            found = InHistories(packer, sequence.name, behavior, values, users, part)
            count = next(iter(found.columns(samples))).values
            name = f"{behavior.ad} in {sequence.name}"
            yield f"{name}: not", count == 0
            yield f"{name}: once", count == 1
            yield f"{name}: twice or more", count > 1


def main() -> None:
    """Scores both models' runs, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="runs of the model to compare with: a pattern of folders")
    parser.add_argument("other", help="runs of the model that may gain")
    parser.add_argument("--store", default="", help="path of the store, if it has moved")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()
    base_run, base = scores(arguments.base, arguments.store, arguments.split)
    run, other = scores(arguments.other, arguments.store, arguments.split)
    if base_run.store.fingerprint != run.store.fingerprint:
        raise DinError(
            f"{arguments.base} was trained on {base_run.store.path}, {arguments.other} on "
            f"{run.store.path}: give runs of one store"
        )
    part = run.store.split(arguments.split)
    labels = run.store.column("samples/label")[part.start : part.stop]
    grouped = groups(run.store, arguments.split, run.config.data.max_history)
    result: dict[str, Any] = {}
    print("| group | share of the samples | base | other | difference |")
    print("| --- | --- | --- | --- | --- |")
    for name, inside in [("all", np.ones(len(labels), bool)), *grouped]:
        if len(set(labels[inside])) < 2:
            continue
        share = float(inside.mean())
        before, after = (auc(labels[inside], scored[inside]) for scored in (base, other))
        print(f"| {name} | {share:.1%} | {before:.4f} | {after:.4f} | {after - before:+.4f} |")
        result[name] = {"share": share, "base": before, "other": after}
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
