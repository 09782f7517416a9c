import os
import tempfile

# JAX on CPU can abort with several host devices and few threads.
os.environ.setdefault("NPROC", "32")
# One compilation cache for the run: workers, and the commands that tests start, share programs. Set
# JAX_COMPILATION_CACHE_DIR to a folder of yours to keep them for the next run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="din_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import numpy as np
import polars as pl
import pytest

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.prepare import planted

jax.config.update("jax_num_cpu_devices", 8)
# A missing axis is a bug, not a broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")


# Folders whose long tests take many short steps of many programs.
COMPILING = ("checkpoint", "distributed", "faults", "step")


def pytest_configure(config):
    """The default suite compiles without most of XLA's optimizations, in half the time.

    The long tests that train, and the commands of `.ci/run`, compile as users do.
    """
    if config.option.markexpr == "not long":
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def _quick_compilation(request):
    """As in the default suite, also for the long tests that mostly compile."""
    quick = jax.config.read("jax_disable_most_optimizations")
    if quick or request.path.parent.name not in COMPILING:
        yield
        return
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]


def pytest_collection_modifyitems(items):
    """The folders that take longest come first, so that two processes end together."""
    first = ("training", "distributed", "checkpoint", "step", "report")
    items.sort(key=lambda item: item.path.parent.name not in first)  # stable


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory):
    """A small planted data set."""
    path = tmp_path_factory.mktemp("planted") / "store"
    planted.prepare(path, users=300)
    return path


RICH_SCHEMA = Schema(
    tables=(Table("film", 50), Table("genre", 8), Table("age", 4), Table("hour", 5)),
    fields=(
        Field("age", "age", "user"),
        Field("film", "film", "ad"),
        Field("genres", "genre", "ad", multi_hot=True),
        Field("hour", "hour", "context"),
    ),
    sequences=(
        Sequence(
            "views",
            (
                BehaviorField("film", "film", ad="film"),
                BehaviorField("genres", "genre", ad="genres", multi_hot=True),
            ),
            times=True,
        ),
        Sequence("likes", (BehaviorField("film", "film", ad="film"),), times=True),
    ),
)


@pytest.fixture(scope="session")
def rich(tmp_path_factory):
    """A store with every kind of column, and the same data as plain Python lists.

    Returns (store, samples): each sample is a dict of its label, user and fields, and of its
    sequences as lists of behaviours.
    """
    rng, time_rng = np.random.default_rng(5), np.random.default_rng(6)
    users, count = 17, 90
    events, begin = {}, {}
    for name in ("views", "likes"):
        length = rng.integers(0, 9, users)
        begin[name] = np.concatenate([[0], np.cumsum(length)])
        events[name] = [
            {
                "film": int(rng.integers(1, 50)),
                "genres": rng.integers(1, 8, rng.integers(4)).tolist(),
                "time": time,
            }
            for time in np.cumsum(time_rng.integers(0, 40_000, int(length.sum()))).tolist()
        ]
    samples = []
    for _ in range(count):
        user = int(rng.integers(users))
        sample = {
            "label": int(rng.integers(2)),
            "user": user,
            "age": int(rng.integers(4)),
            "film": int(rng.integers(50)),
            "genres": rng.integers(1, 8, rng.integers(4)).tolist(),
            "hour": int(rng.integers(5)),
        }
        for name in events:
            first, last = begin[name][user], begin[name][user + 1]
            stop = int(rng.integers(first, last + 1))
            sample[name] = events[name][first:stop]
            sample[f"{name}.range"] = (int(first), stop)
        # From the time of its last behaviour to a century later.
        last = max((sample[name][-1]["time"] for name in events if sample[name]), default=0)
        sample["time"] = last + int(2 ** time_rng.uniform(0, 31.6)) - 1
        samples.append(sample)

    def ragged(lists):
        values = np.array([v for one in lists for v in one], np.uint8)
        return values, np.cumsum([0, *map(len, lists)]).astype(np.uint16)

    path = tmp_path_factory.mktemp("rich") / "store"
    with StoreWriter(path, RICH_SCHEMA) as writer:
        for name in ("label", "user"):
            writer.append(f"samples/{name}", np.array([s[name] for s in samples], np.uint8))
        writer.append("samples/time", np.array([s["time"] for s in samples]))
        for name in ("age", "film", "hour"):
            writer.append(f"fields/{name}", np.array([s[name] for s in samples], np.uint8))
        values, offsets = ragged([s["genres"] for s in samples])
        writer.append("fields/genres", values)
        writer.append("fields/genres.offsets", offsets)
        for name, all_events in events.items():
            for i, end in enumerate(("start", "end")):
                at = np.array([s[f"{name}.range"][i] for s in samples], np.uint16)
                writer.append(f"sequences/{name}.{end}", at)
            writer.append(
                f"events/{name}/film", np.array([e["film"] for e in all_events], np.uint8)
            )
            writer.append(f"events/{name}.time", np.array([e["time"] for e in all_events]))
        values, offsets = ragged([e["genres"] for e in events["views"]])
        writer.append("events/views/genres", values)
        writer.append("events/views/genres.offsets", offsets)
        for table in RICH_SCHEMA.tables:
            ids = pl.Series("id", range(100, 99 + table.rows))
            writer.vocabulary(table.name, ids, np.arange(table.rows - 1))
        writer.finish({"train": (0, 60), "validation": (60, 75), "test": (75, 90)}, {})
    return Store(path), samples
