"""Exports the samples of a store as padded arrays, for other libraries.

    python benchmarks/peers/export_samples.py --store data/amazon --max-history 100 \
        --out amazon.npz

The store must have one sequence and no multi-hot field. The arrays of each split S (train,
validation, test), with N samples and histories that are padded at the end to length L, are:

    S/label          [N]     0 or 1
    S/user           [N]     the groups of Eq. 10
    S/fields/NAME    [N]     ids of a field, for every field of the store
    S/history/NAME   [N, L]  ids of the most recent behaviours, oldest first; NAME is the ad field
    S/length         [N]     number of behaviours

Ids are the store's rows plus one: 0 is padding, 1 is row 0, "unknown". `described` is JSON: the
schema, the longest history L and the store's fingerprint.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from din_jax.cli import guarded
from din_jax.data.packing import Packer
from din_jax.data.store import SPLITS, Store
from din_jax.errors import DinError

_COMPARED = 1000  # samples per split that are compared with the store


def exported(store: Store, max_history: int) -> dict[str, np.ndarray]:
    """Makes the arrays of all splits.

    Args:
      store: the store to export.
      max_history: the number of most recent behaviours of a history to export; 0 exports all.

    Raises:
      DinError: the store has a multi-hot or a numeric field, or not exactly one sequence.
    """
    _check(store)
    (sequence,) = store.schema.sequences
    histories = Packer(store, max_history)
    start, end = histories.history(sequence.name, np.arange(len(store)))
    longest = max(1, int((end - start).max(initial=0)))
    described = {
        "schema": store.schema.to_json(),
        "max_history": longest,
        "fingerprint": store.fingerprint,
    }
    arrays = {"described": np.array(json.dumps(described))}
    for split in SPLITS:
        samples = store.split(split)
        rows = slice(samples.start, samples.stop)
        arrays[f"{split}/label"] = store.column("samples/label")[rows]
        arrays[f"{split}/user"] = store.column("samples/user")[rows]
        for field in store.schema.fields:
            ids = store.column(f"fields/{field.name}")[rows]
            arrays[f"{split}/fields/{field.name}"] = ids.astype(np.int32) + 1
        position = start[rows, None] + np.arange(longest)
        mask = position < end[rows, None]
        position[~mask] = 0
        arrays[f"{split}/length"] = mask.sum(axis=1, dtype=np.int32)
        for behavior in sequence.fields:
            events = store.column(f"events/{sequence.name}/{behavior.name}")
            ids = np.zeros(mask.shape, np.int32)
            ids[mask] = events[position[mask]].astype(np.int32) + 1
            arrays[f"{split}/history/{behavior.ad}"] = ids
    return arrays


def compare(arrays: dict[str, np.ndarray], store: Store, max_history: int) -> None:
    """Asserts that some samples of each split, and those with long histories, equal the store's."""
    (sequence,) = store.schema.sequences
    for split in SPLITS:
        samples = store.split(split)
        longest = np.argsort(-arrays[f"{split}/length"], kind="stable")[:10]
        for i in {*range(0, len(samples), len(samples) // _COMPARED + 1), *longest.tolist()}:
            sample = samples[i]
            for name in ("label", "user"):
                assert arrays[f"{split}/{name}"][i] == store.column(f"samples/{name}")[sample]
            for field in store.schema.fields:
                row = arrays[f"{split}/fields/{field.name}"][i] - 1
                assert row == store.column(f"fields/{field.name}")[sample]
            start = int(store.column(f"sequences/{sequence.name}.start")[sample])
            end = int(store.column(f"sequences/{sequence.name}.end")[sample])
            for behavior in sequence.fields:
                rows = store.column(f"events/{sequence.name}/{behavior.name}")[start:end].tolist()
                rows = rows[-max_history:] if max_history else rows
                ids = arrays[f"{split}/history/{behavior.ad}"][i].tolist()
                assert arrays[f"{split}/length"][i] == len(rows)
                assert ids == [row + 1 for row in rows] + [0] * (len(ids) - len(rows))


def write(store: Store, max_history: int, out: Path) -> str:
    """Writes the file of a store, after comparing the arrays with the store.

    Returns:
      A summary of the file.

    Raises:
      DinError: `out` exists, `max_history` is negative, or see `exported`.
    """
    if max_history < 0:
        raise DinError(f"--max-history {max_history}: expected at least 0")
    if out.exists():
        raise DinError(f"{out} exists already; delete it or choose another path")
    arrays = exported(store, max_history)
    compare(arrays, store, max_history)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    longest = json.loads(str(arrays["described"]))["max_history"]
    sizes = ", ".join(f"{len(store.split(split))} {split}" for split in SPLITS)
    return f"{out}: {sizes} samples, histories of up to {longest}"


def _check(store: Store) -> None:
    sequences = store.schema.sequences
    if len(sequences) != 1:
        names = ", ".join(s.name for s in sequences) or "none"
        raise DinError(f"{store.path}: expected one sequence to export, it has: {names}")
    (sequence,) = sequences
    multi_hot = [f.name for f in (*store.schema.fields, *sequence.fields) if f.multi_hot]
    if multi_hot:
        raise DinError(f"{store.path}: multi-hot fields can't be exported: {', '.join(multi_hot)}")
    if store.schema.numbers:
        numbers = ", ".join(number.name for number in store.schema.numbers)
        raise DinError(f"{store.path}: numeric fields can't be exported: {numbers}")
    ads = [behavior.ad for behavior in sequence.fields]
    for ad in ads:
        if ads.count(ad) > 1:
            raise DinError(
                f"{store.path}: two fields of {sequence.name} are compared with {ad!r}, and only "
                "one of them can be exported"
            )


def main() -> None:
    """Writes the file and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", required=True, help="folder of a prepared store")
    parser.add_argument("--max-history", type=int, default=100, help="0: all (default: 100)")
    parser.add_argument("--out", required=True, type=Path, help="file to write, .npz")
    arguments = parser.parse_args()
    print(write(Store(arguments.store), arguments.max_history, arguments.out))


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))
