"""Each model's own part finds a signal that lies in it alone, where base does not.

The data sets are small and so is the training: base could learn these signals too in the end, as
any MLP can, but from more samples and by more steps. `test_own_parts` is shorter.
"""

import itertools

import numpy as np
import polars as pl
import pytest
from runs import small_config

from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store_writer import StoreWriter
from din_jax.training.loop import train

USERS, PER_USER = 400, 50
SPLITS = np.array([30, 8, 12])  # impressions a user in train, validation, test


def write(path, schema, columns, vocabularies):
    """A store of columns [USERS, PER_USER] (events as they are); a user's last ones are test."""
    stops = [0, *np.cumsum(SPLITS).tolist()]
    with StoreWriter(path, schema) as writer:
        for name, values in columns.items():
            if values.ndim == 2:
                parts = [values[:, a:b].reshape(-1) for a, b in itertools.pairwise(stops)]
                values = np.concatenate(parts)
            writer.append(name, values)
        for table, rows in vocabularies.items():
            ids = pl.Series("id", np.arange(1, rows))
            writer.vocabulary(table, ids, np.ones(rows - 1, np.int64))
        names = ("train", "validation", "test")
        bounds = [USERS * stop for stop in stops]
        writer.finish({n: (bounds[i], bounds[i + 1]) for i, n in enumerate(names)}, {})


def common_columns(rng, score):
    """Labels of a score, and users."""
    label = rng.random(score.shape) < 1 / (1 + np.exp(-score))
    users = np.repeat(np.arange(USERS)[:, None], PER_USER, axis=1)
    return {"samples/label": label.astype(np.uint8), "samples/user": users.astype(np.uint16)}


@pytest.fixture(scope="module")
def crosses(tmp_path_factory):
    """A click depends on (good visited, good shown), a coin for each of 60 · 60 pairs."""
    path = tmp_path_factory.mktemp("crosses") / "store"
    rng = np.random.default_rng(0)
    goods, visits = 60, 3
    coin = 3 * rng.choice([-1.0, 1.0], (goods, goods))
    visited = rng.integers(goods, size=(USERS, visits))
    shown = rng.integers(goods, size=(USERS, PER_USER))
    score = coin[visited[:, None, :], shown[:, :, None]].sum(axis=2)
    begin = visits * np.repeat(np.arange(USERS)[:, None], PER_USER, axis=1)
    schema = Schema(
        (Table("goods", goods + 1),),
        (Field("goods", "goods", "ad"),),
        (Sequence("history", (BehaviorField("goods", "goods", "goods"),)),),
    )
    columns = common_columns(rng, score) | {
        "fields/goods": (shown + 1).astype(np.uint8),
        "events/history/goods": (visited + 1).astype(np.uint8).reshape(-1),
        "sequences/history.start": begin.astype(np.uint16),
        "sequences/history.end": (begin + visits).astype(np.uint16),
    }
    write(path, schema, columns, {"goods": goods + 1})
    return path


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """A click depends on Σ_{i<j} ⟨v_i, v_j⟩ of the hidden vectors of four fields' ids."""
    path = tmp_path_factory.mktemp("products") / "store"
    rng = np.random.default_rng(1)
    rows, rank, names = 60, 4, ("place", "hour", "shop", "goods")
    hidden = rng.standard_normal((len(names), rows, rank))
    ids = rng.integers(rows, size=(len(names), USERS, PER_USER))
    vectors = [of_field[at] for of_field, at in zip(hidden, ids, strict=True)]
    score = sum((v * w).sum(axis=-1) for v, w in itertools.combinations(vectors, 2))
    schema = Schema(
        tuple(Table(name, rows + 1) for name in names),
        tuple(Field(name, name, "context") for name in names),
        (),
    )
    columns = common_columns(rng, score)
    for name, at in zip(names, ids, strict=True):
        columns[f"fields/{name}"] = (at + 1).astype(np.uint8)
    write(path, schema, columns, dict.fromkeys(names, rows + 1))
    return path


def auc_of(store, name, folder):
    config = small_config(
        store,
        **{
            "model.name": name,
            "model.activation": "prelu",
            "model.hidden": (32, 16),
            "model.embedding_dim": 8,
            "model.embedding_stddev": 0.1,
            "optimizer.learning_rate": 0.01,
            "train.batch_size": 128,
            "train.epochs": 4,
        },
    )
    return train(config, folder).metrics["auc"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "data"), [(["wide_deep"], "crosses"), (["pnn", "deepfm"], "products")]
)
def test_own_part_gains_where_the_signal_is(names, data, request, tmp_path):
    store = request.getfixturevalue(data)
    base = auc_of(store, "base", tmp_path / "base")
    for name in names:
        assert auc_of(store, name, tmp_path / name) - base >= 0.05
