"""Time and memory of `python -m din_jax.prepare movielens` on files with the shape of ml-20m.

    python benchmarks/prepare_movielens.py [--ratings 20000263]

Writes a `ratings.csv` and a `movies.csv` to a temporary folder, with as many users and rated films
as ml-20m. Films differ in popularity and users in activity, and several ratings of a user have the
same timestamp. Prepares the files in a child process. The last line is JSON: `seconds` is the
child's wall time, including its start-up, `peak_mb` its peak resident memory.
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

RATINGS = 20_000_263
USERS = 138_493
FILMS = 26_744  # films with ratings
GENRES = 19
PAGE = 1.5  # ratings of a user per timestamp: 77 % share a timestamp, as in ml-1m


def write(folder: str, count: int, seed: int = 0) -> None:
    """Writes the two files, sorted by user and film as ml-20m is; no user rates a film twice."""
    rng = np.random.default_rng(seed)
    users, films = USERS * count // RATINGS, min(FILMS, count // 10)
    activity = np.cumsum(0.2 + rng.lognormal(0, 1.2, users))  # ml-20m: at least 20 ratings
    rank = np.arange(films)
    popularity = np.cumsum(np.exp(-5 * rank / films) / (50 + rank))
    # One rating of each film, then ratings by popularity.
    first = np.searchsorted(activity, rng.random(films) * activity[-1]) * films + rank
    pair = np.empty(0, np.int64)
    while len(pair) < count:
        user, film = (
            np.searchsorted(weight, rng.random(count) * weight[-1])
            for weight in (activity, popularity)
        )
        pair = np.setdiff1d(np.concatenate([pair, user * films + film]), first)
    pair = np.sort(np.concatenate([first, rng.choice(pair, count - films, replace=False)]))
    user, film = pair // films, pair % films
    pages = np.ceil(np.bincount(user)[user] / PAGE).astype(np.int64)
    pl.DataFrame(
        {
            "userId": 1 + user,
            "movieId": 1 + 5 * film,
            "rating": rng.choice(np.arange(1, 11) / 2, size=count),
            "timestamp": 800_000_000 + 3000 * user + 60 * rng.integers(0, pages),
        }
    ).write_csv(f"{folder}/ratings.csv")
    with open(f"{folder}/movies.csv", "w") as file:
        file.write("movieId,title,genres\n")
        for i in range(films):
            names = rng.choice(GENRES, size=rng.integers(1, 5), replace=False)
            genres = "|".join(f"Genre {name}" for name in names)
            file.write(f'{1 + 5 * i},"Film {i}, The (1999)",{genres}\n')


def main() -> None:
    """Writes the files, prepares them, and prints the time and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratings", type=int, default=RATINGS, help="rows (default: as ml-20m)")
    arguments = parser.parse_args()
    if arguments.ratings < 10_000:
        parser.error("--ratings: expected 10000 or more")
    with tempfile.TemporaryDirectory() as folder:
        # In a separate process: a child's peak memory includes that of this process at the fork.
        writer = multiprocessing.get_context("spawn").Process(
            target=write, args=(folder, arguments.ratings)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            sys.exit("the files could not be written")
        size = (Path(folder) / "ratings.csv").stat().st_size
        begin = time.perf_counter()
        command = [sys.executable, "-m", "din_jax.prepare", "movielens", "--ratings"]
        command += [f"{folder}/ratings.csv", "--movies", f"{folder}/movies.csv"]
        child = subprocess.Popen([*command, "--out", f"{folder}/store"])
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            sys.exit("the preparation failed")
        store = sum(p.stat().st_size for p in Path(folder, "store").rglob("*") if p.is_file())
    figures = {
        "ratings": arguments.ratings,
        "seconds": round(seconds, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
    }
    table = {
        "ratings.csv, MB": round(size / 1e6),
        "store, MB": round(store / 1e6),
        "wall time, s": figures["seconds"],
        "processor time, s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak memory, MB": figures["peak_mb"],
        "cores": os.cpu_count(),
    }
    print()
    for name, value in table.items():
        print(f"{name:<28}{value:>10,}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
