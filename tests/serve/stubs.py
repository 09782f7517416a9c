"""A scorer that encodes as any does and computes next to nothing, and a server around it."""

import contextlib
import threading
import time
import types
from types import SimpleNamespace

import httpx
import numpy as np
import polars as pl
import uvicorn

from din_jax.data.buckets import Buckets
from din_jax.data.numbers import NumberTransform
from din_jax.data.schema import (
    BehaviorField,
    Field,
    NumericBehaviorField,
    NumericField,
    Schema,
    Sequence,
    Table,
)
from din_jax.data.transform import Transform
from din_jax.data.vocabularies import Fitted
from din_jax.export.encoding import Encoder
from din_jax.serve.app import Limits, Server
from din_jax.serve.batching import Batcher
from din_jax.serve.monitoring import Monitor
from din_jax.serve.scorer import Scorer
from din_jax.serve.versions import Versions

SCHEMA = Schema(
    tables=(Table("item", 11), Table("tag", 4), Table("age", 3)),
    fields=(
        Field("age", "age", "user"),
        Field("item", "item", "ad"),
        Field("tags", "tag", "ad", multi_hot=True),
    ),
    sequences=(
        Sequence(
            "views",
            (
                BehaviorField("item", "item", ad="item"),
                BehaviorField("tags", "tag", ad="tags", multi_hot=True),
            ),
            times=True,
            numbers=(NumericBehaviorField("price", ad="price"),),
        ),
    ),
    numbers=(NumericField("price", "ad"), NumericField("hour", "context")),
)
REQUEST = {
    "user": {"age": "old"},
    "context": {"hour": 12.5},
    "behaviors": {
        "views": {
            "item": [3, 4],
            "tags": [["red"], []],
            "price": [1.0, None],
            "time": [100, 200],
        }
    },
    "candidates": {
        "item": [1, 5, 2, 99],
        "tags": [["red", "blue"], [], None, ["pink"]],
        "price": [1, 2.5, None, 4],
    },
    "time": 1000,
}
IDS = {
    "item": list(range(1, 11)),
    "tag": ["blue", "green", "red"],
    "age": ["old", "young"],
}
MOST_TAGS = 4  # of an ad


def probabilities(items):
    """What the stub gives: 1 / (1 + row) of each item; rows are ids here, 0 for unknown ones."""
    return [1 / (1 + (item if 1 <= item <= 10 else 0)) for item in items]


class StubScorer(Scorer):
    """A scorer without a model.

    `delay` is what a call takes in seconds; it waits for `gate` too. `calls` has the number of
    requests of each call. If it `fails`, item 10 can't be scored, and item 9 has no finite score.
    """

    def __init__(
        self,
        name="stub",
        delay=0.0,
        fails=False,
        schema=SCHEMA,
        vocabularies=IDS,
        counts=None,
        titles=None,
    ):
        tables = {
            table: Fitted(pl.Series(ids), np.ones(len(ids), np.int64), 0)
            for table, ids in vocabularies.items()
        }
        numbers = {number.name: NumberTransform("none") for number in schema.numbers}
        self.encoder = Encoder(Transform(schema, tables, numbers), schema, 3, ages=True)
        config = {"model": {"name": "din"}}
        manifest = {"activation_weights": ["views"], "config": config}
        self.artifact = SimpleNamespace(
            name=name,
            manifest=manifest,
            probe={"request": REQUEST},
            transform=self.encoder.transform,
            titles=titles or {},
        )
        self.notes = []
        self.max_candidates = 4
        (history,) = schema.sequences
        self._behaviors = Buckets((history.name, f"{history.name}.tags"), ((3, 6),))
        self._ads_capacity = {"tags": MOST_TAGS}
        self.delay, self.fails = delay, fails
        self.gate, self.calls = threading.Event(), []
        self.gate.set()

    def score_encoded(self, requests):
        self.calls.append(len(requests))
        time.sleep(self.delay)
        self.gate.wait()
        scored = []
        for user, ads in requests:
            rows = ads.arrays["item"]
            if self.fails and 10 in rows:
                raise ValueError("a secret of the inside")
            weights = {
                name: np.ones((len(rows), given), np.float32)
                for name, (_, given) in user.chosen.items()
            }
            probability = 1 / (1 + rows.astype(np.float64))
            if self.fails:
                probability[rows == 9] = np.nan
            scored.append(types.SimpleNamespace(probability=probability, weights=weights))
        return scored


def stub_server(tmp_path, scorer=None, *, token=None, rollback=True, batcher=(), **limits):
    """A server of one version, "v1"."""
    folder = tmp_path / "models"
    (folder / "v1").mkdir(parents=True, exist_ok=True)
    scorer = scorer or StubScorer()
    monitor = Monitor("stub")
    versions = Versions(folder, lambda path, current: scorer, monitor.event)
    limits = Limits(**({"timeout_ms": 20_000} | limits))
    merged = Batcher(on_batch=monitor.batch.observe, **dict(batcher))
    return Server("stub", versions, merged, monitor, limits, token=token, rollback=rollback)


@contextlib.contextmanager
def listening(app):
    """The address of an app that is served in a thread; it is stopped as SIGTERM stops it."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.002)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def client(tmp_path, *arguments, **options):
    """A client of a stub server."""
    app = stub_server(tmp_path, *arguments, **options).app
    with listening(app) as address, httpx.Client(base_url=address, timeout=30) as one:
        yield one
