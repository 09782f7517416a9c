"""A log with every kind of input, and runs of random weights on it, without training."""

import jax
import numpy as np
import polars as pl
from runs import tiny_config

from din_jax.checkpoint import compatibility
from din_jax.prepare import log
from din_jax.training.run import open_run

SPEC = """[impressions]
path = "impressions.parquet"
label = "click"
user = "user"
item = "item"
time = "time"
time_unit = "s"
[impressions.ad]
price = {numeric = "log1p"}
[impressions.context]
hour = {table = "hour"}
[items]
path = "items.csv"
item = "item"
[items.columns]
tags = {separator = "|"}
[users]
path = "users.csv"
user = "user"
[users.columns]
age = {table = "age"}
likes = {table = "tags", separator = "|"}
[tables]
age.buckets = 4
[split]
by = "time"
validation = 0.2
test = 0.2
"""


def write_log(folder, rows=3000, seed=0):
    """Writes the log's tables and spec to a folder; returns the impressions."""
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "time": 1_500_000_000 + np.sort(rng.choice(10**6, rows, replace=False)),
            "user": rng.integers(60, size=rows),
            "item": [f"i{k}" for k in rng.integers(40, size=rows)],
            "price": rng.lognormal(size=rows),
            "hour": rng.integers(24, size=rows),
            "place": [{"x": int(k)} for k in rng.integers(9, size=rows)],
            "click": rng.integers(2, size=rows),
        }
    )
    frame.write_parquet(folder / "impressions.parquet")
    tags = ["|".join(f"t{t}" for t in range(k % 4)) for k in range(60)]
    items = pl.DataFrame({"item": [f"i{k}" for k in range(40)], "tags": tags[:40]})
    users = pl.DataFrame({"user": range(60), "age": rng.integers(18, 70, 60), "likes": tags})
    items.write_csv(folder / "items.csv")
    users.write_csv(folder / "users.csv")
    (folder / "spec.toml").write_text(SPEC)
    return frame


def prepare_log(folder, **options):
    """Writes the log and its store, FOLDER/store."""
    frame = write_log(folder, **options)
    log.prepare(folder / "spec.toml", folder / "store")
    return frame


def random_run(store, workdir, seed=0, **keys):
    """Saves a state of random weights as the last checkpoint of a run; returns its config."""
    config = tiny_config(store, **{"model.attention.age": True, "optimizer.lazy": False, **keys})
    run = open_run(config)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if not np.issubdtype(leaf.dtype, np.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        x = rng.standard_normal(leaf.shape) * 0.5
        is_variance = "variance" in jax.tree_util.keystr(path)
        return (np.abs(x) + 0.3 if is_variance else x).astype(leaf.dtype)

    shapes = run.state_shapes()
    state = jax.tree_util.tree_map_with_path(draw, shapes)
    state = jax.tree.map(jax.device_put, state)
    meta = compatibility.describe(config, run.store.schema, run.source)
    run.checkpoints(workdir).save("last", state, meta | {"best": None})
    return config
