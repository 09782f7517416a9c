"""How long it takes to open a store that is verified: the first time, the next time, in full.

    python benchmarks/verify_store.py --gigabytes 4

The store has histories of two fields with times, made at random, and is deleted afterwards. The
pages of its files are dropped from memory before the first opening, so that it reads the disk.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from din_jax import BehaviorField, Field, Schema, Sequence, Store, StoreWriter, Table
from din_jax.data import verification

_SAMPLES = 1 << 20  # that are written at a time
_BYTES = 61  # a sample, with its 3 behaviours
_SCHEMA = Schema(
    tables=(Table("item", 1_000_000), Table("shop", 50_000)),
    fields=(Field("item", "item", "ad"), Field("shop", "shop", "ad")),
    sequences=(
        Sequence(
            "history",
            (BehaviorField("item", "item", ad="item"), BehaviorField("shop", "shop", ad="shop")),
            times=True,
        ),
    ),
)


def write(path: Path, samples: int) -> None:
    """Writes a store of this many samples, each with three behaviours of its own."""
    random = np.random.default_rng(0)
    with StoreWriter(path, _SCHEMA) as writer:
        for begin in range(0, samples, _SAMPLES):
            numbers = np.arange(begin, min(begin + _SAMPLES, samples))
            n = len(numbers)
            writer.append("samples/label", random.integers(2, size=n, dtype=np.uint8))
            writer.append("samples/user", (numbers // 4).astype(np.uint32))
            writer.append("samples/time", numbers + 10)
            writer.append("fields/item", random.integers(1_000_000, size=n, dtype=np.uint32))
            writer.append("fields/shop", random.integers(50_000, size=n, dtype=np.uint16))
            for name, size in (("item", 1_000_000), ("shop", 50_000)):
                dtype = np.min_scalar_type(size)
                values = random.integers(size, size=3 * n, dtype=dtype)
                writer.append(f"events/history/{name}", values)
            writer.append("events/history.time", np.repeat(numbers, 3))
            writer.append("sequences/history.start", (3 * numbers).astype(np.uint32))
            writer.append("sequences/history.end", (3 * numbers + 3).astype(np.uint32))
        for table in _SCHEMA.tables:
            ids = pl.Series(range(table.rows - 1))
            writer.vocabulary(table.name, ids, np.ones(table.rows - 1, np.int64))
        splits = {"train": (0, samples - 2), "validation": (samples - 2, samples - 1)}
        writer.finish(splits | {"test": (samples - 1, samples)}, {})


def drop_from_memory(folder: Path) -> None:
    """Asks the operating system to forget the pages of all files."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main() -> None:
    """Writes the store, opens it three times, and prints the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        begin = time.perf_counter()
        write(path, int(arguments.gigabytes * 1e9 / _BYTES))
        written = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e9
        time.sleep(verification.RECENT_NS / 1e9)  # what changed a moment ago is not remembered
        drop_from_memory(path)
        print(f"{size:.2f} GB, written in {written:.1f} s")
        for name, how in (
            ("first", "once"),
            ("next", "once"),
            ("in full", "full"),
            ("not", "none"),
        ):
            begin = time.perf_counter()
            Store(path, verify=how)
            seconds = time.perf_counter() - begin
            print(f"opened, verified {name}: {seconds:.3f} s, {seconds / size:.3f} s a GB")


if __name__ == "__main__":
    main()
