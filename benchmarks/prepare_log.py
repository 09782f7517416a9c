"""Time and memory of `python -m din_jax.prepare log` on a log like Taobao's UserBehavior.

    python benchmarks/prepare_log.py --folder /large [--rows 100000000]
    python benchmarks/prepare_log.py --folder /large --rows 1000000 --generate_only

Writes `UserBehavior.csv` to the folder: a CSV without a header, of user, item, category, behaviour
(pv, fav, cart or buy) and time in seconds, over nine days. A hundred million rows have a million
users, as in the real file; rows of a user stand together, in order of time. Of four million items,
item x in order of popularity is taken with a probability proportional to 1 / (1000 + x); a quarter
of the rows repeat an item of the rows just before. Each item has one of 10,000 categories.

Then prepares it in a child process. The last line is JSON: `seconds` is the child's wall time,
including its start-up, `peak_gib` its peak resident memory.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

ROOT = Path(__file__).parent.parent
FILE = "UserBehavior.csv"
ROWS_PER_USER = 100
ITEMS = 4_000_000
CATEGORIES = 10_000
BEGIN, END = 1_511_539_200, 1_512_316_800  # 25 November to 3 December 2017, in China
BEHAVIORS = ("pv", "cart", "fav", "buy")
SHARES = (0.896, 0.055, 0.029, 0.020)
REPEATS = 0.25
_BLOCK = 1_000_000  # rows


def zipf(rng: np.random.Generator, size: int, values: int, shift: float) -> np.ndarray:
    """int64 [size] ranks from 0 on, with a probability about proportional to 1 / (shift + rank)."""
    rank = shift * ((values + shift) / shift) ** rng.random(size) - shift
    return np.minimum(rank.astype(np.int64), values - 1)


def shuffled(number: np.ndarray, values: int) -> np.ndarray:
    """A permutation of 0 to values − 1, so that popular items do not have the smallest ids."""
    return number * 2_654_435_761 % values


def users_of(rows: int) -> int:
    """How many users some rows have."""
    return max(1, rows // ROWS_PER_USER)


def block(
    rng: np.random.Generator, rows: int, first_user: int, category_of: np.ndarray
) -> pl.DataFrame:
    """Rows of some users, numbered from `first_user` on."""
    users = users_of(rows)
    activity = rng.lognormal(0, 0.8, users)
    length = 1 + rng.multinomial(rows - users, activity / activity.sum())
    user = np.repeat(np.arange(users), length)
    # Sorted by user and time, as single numbers.
    seconds = END - BEGIN
    at = np.sort(user * seconds + rng.integers(seconds, size=rows)) - user * seconds
    item = zipf(rng, rows, ITEMS, shift=1000)
    before = np.arange(rows) - rng.integers(1, 4, rows)
    repeats = (rng.random(rows) < REPEATS) & (before >= 0) & (user[before] == user)
    item = shuffled(np.where(repeats, item[before], item), ITEMS)
    kinds = pl.Series(BEHAVIORS, dtype=pl.Categorical)
    kind = np.searchsorted(np.cumsum(SHARES), rng.random(rows), "right").clip(max=3)
    return pl.DataFrame(
        {
            "user": 1 + first_user + user,
            "item": 1 + item,
            "category": category_of[item],
            "behavior": kinds[kind],
            "time": BEGIN + at,
        }
    )


def write(path: Path, rows: int, seed: int = 0) -> None:
    """Writes the file, a block of users at a time."""
    rng = np.random.default_rng(seed)
    category_of = 1 + zipf(rng, ITEMS, CATEGORIES, shift=50)  # few are large
    first_user = 0
    with path.open("wb") as file:
        for begin in range(0, rows, _BLOCK):
            size = min(_BLOCK, rows - begin)
            block(rng, size, first_user, category_of).write_csv(file, include_header=False)
            first_user += users_of(size)


def prepare(spec: Path, folder: Path, out: Path) -> tuple[float, float]:
    """Prepares the file in a child process: (seconds, its peak resident memory in GiB)."""
    command = [sys.executable, "-m", "din_jax.prepare", "log", "--spec", str(spec)]
    command += ["--data", str(folder), "--out", str(out)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    begin = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit("the preparation failed")
    return time.perf_counter() - begin, usage.ru_maxrss / 2**20


def main() -> None:
    """Writes the file, prepares it, and prints the time and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="where the file is written")
    parser.add_argument("--spec", type=Path, default=ROOT / "configs/data/taobao_userbehavior.toml")
    parser.add_argument("--out", type=Path, help="the store, which is kept (default: it is not)")
    parser.add_argument("--generate_only", action="store_true", help="write the file, and stop")
    arguments = parser.parse_args()
    if arguments.rows < 1:
        parser.error("--rows: expected 1 or more")
    if not arguments.generate_only and not arguments.spec.is_file():
        parser.error(f"--spec: no file {arguments.spec}; name the spec of {FILE}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / FILE
    # In a separate process: a child's peak memory includes that of this process at the fork.
    begin = time.perf_counter()
    writer = multiprocessing.get_context("spawn").Process(target=write, args=(path, arguments.rows))
    writer.start()
    writer.join()
    if writer.exitcode:
        sys.exit("the file could not be written")
    seconds = time.perf_counter() - begin
    size = path.stat().st_size / 1e9
    print(f"{path}: {arguments.rows:,} rows, {size:.2f} GB, written in {seconds:.1f} s", flush=True)
    if arguments.generate_only:
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        out = arguments.out or Path(temporary) / "store"
        seconds, peak = prepare(arguments.spec, arguments.folder, out)
    figures = {
        "rows": arguments.rows,
        "seconds": round(seconds, 1),
        "rows_per_second": round(arguments.rows / seconds),
        "peak_gib": round(peak, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
