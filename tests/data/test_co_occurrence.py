"""Vectors by co-occurrence, against a dense factorization in float64."""

import numpy as np
import polars as pl
import pytest

from din_jax.data import co_occurrence
from din_jax.data.packing import Packer
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter

ROWS, USERS = 40, 60


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two histories of goods for each user; goods of one parity belong together."""
    path = tmp_path_factory.mktemp("store") / "store"
    rng = np.random.default_rng(0)
    schema = Schema(
        (Table("item", ROWS), Table("other", 5)),
        (Field("item", "item", "ad"), Field("other", "other", "ad")),
        (
            Sequence(
                "seen",
                (
                    BehaviorField("item", "item", ad="item"),
                    BehaviorField("other", "other", ad="other"),
                ),
            ),
            Sequence("liked", (BehaviorField("item", "item", ad="item"),)),
        ),
    )
    with StoreWriter(path, schema) as writer:
        samples = 3 * USERS  # the last of them is of validation
        user = np.repeat(np.arange(USERS), 3)
        writer.append("samples/label", rng.integers(0, 2, samples).astype(np.uint8))
        writer.append("samples/user", user.astype(np.uint8))
        writer.append("fields/item", rng.integers(1, ROWS, samples).astype(np.uint32))
        writer.append("fields/other", np.ones(samples, np.uint32))
        for name, longest in (("seen", 12), ("liked", 5)):
            lengths = rng.integers(0, longest, USERS)
            start = np.repeat(np.cumsum(lengths) - lengths, 3)
            share = np.tile([0.4, 0.9, 1.0], USERS)
            end = start + np.round(share * np.repeat(lengths, 3)).astype(np.int64)
            writer.append(f"sequences/{name}.start", start.astype(np.uint32))
            writer.append(f"sequences/{name}.end", end.astype(np.uint32))
            of_event = np.repeat(np.arange(USERS), lengths)
            ids = 2 * rng.integers(0, ROWS // 2, len(of_event)) + of_event % 2
            writer.append(f"events/{name}/item", ids.astype(np.uint32))
            if name == "seen":
                writer.append("events/seen/other", (ids % 5).astype(np.uint32))
        for table in schema.tables:
            ids = pl.Series(np.arange(table.rows - 1))
            writer.vocabulary(table.name, ids, np.ones(table.rows - 1, np.int64))
        train = int(0.9 * samples)
        writer.finish(
            {"train": (0, train), "validation": (train, samples), "test": (samples, samples)}, {}
        )
    return Store(path)


def dense_gram(store, max_history, dim, recent):
    """V Vᵀ of the formula, by loops and a whole singular value decomposition."""
    counts = np.zeros((ROWS, ROWS))
    samples, user = store.split("train"), store.column("samples/user")
    for name in ("seen", "liked"):
        ends = {}
        for sample in samples:
            start = int(store.column(f"sequences/{name}.start")[sample])
            end = int(store.column(f"sequences/{name}.end")[sample])
            ends.setdefault(int(user[sample]), []).append((end, start))
        ids = store.column(f"events/{name}/item")
        for windows in ends.values():
            end, start = max(windows)
            if max_history:
                start = max(start, end - max_history)
            basket = set(ids[max(start, end - recent) : end].tolist()) - {0}
            for i in basket:
                for j in basket - {i}:
                    counts[i, j] += 1
    total, of_row = counts.sum(), counts.sum(axis=1)
    ppmi = np.zeros_like(counts)
    for i, j in np.argwhere(counts):
        ppmi[i, j] = max(0.0, np.log(counts[i, j] * total / (of_row[i] * of_row[j])))
    left, singular, _ = np.linalg.svd(ppmi)
    vectors = left[:, :dim] * np.sqrt(singular[:dim])
    return vectors @ vectors.T


@pytest.mark.parametrize(("max_history", "recent"), [(0, 50), (3, 50), (0, 4)])
def test_vectors_are_those_of_a_dense_factorization(store, monkeypatch, max_history, recent):
    monkeypatch.setattr(co_occurrence.latest_histories, "__defaults__", (recent,))
    monkeypatch.setattr(co_occurrence, "cached", lambda store, folder, key, compute: compute())
    dim = 8
    rows, vectors = co_occurrence.co_occurrence_vectors(
        Packer(store, max_history), "train", "item", dim
    )
    assert vectors.shape == (len(rows), dim)
    assert vectors.std() == pytest.approx(1, rel=1e-4)
    assert rows.dtype == np.int32
    assert 0 not in rows
    expected = dense_gram(store, max_history, dim, recent)[np.ix_(rows, rows)]
    found = vectors.astype(np.float64) @ vectors.T
    scale = (expected * found).sum() / (found**2).sum()  # their standard deviation is 1
    np.testing.assert_allclose(scale * found, expected, atol=0.02 * np.abs(expected).max())


def test_a_small_table_has_none(store):
    rows, vectors = co_occurrence.co_occurrence_vectors(Packer(store, 0), "train", "other", 2)
    assert (rows.shape, vectors.shape) == ((0,), (0, 2))


def test_the_ids_of_most_users_have_vectors(store, monkeypatch):
    monkeypatch.setattr(co_occurrence, "cached", lambda store, folder, key, compute: compute())
    everything, _ = co_occurrence.co_occurrence_vectors(Packer(store, 0), "train", "item", 4)
    monkeypatch.setattr(co_occurrence, "_MOST_IDS", 20)
    rows, _ = co_occurrence.co_occurrence_vectors(Packer(store, 0), "train", "item", 4)
    assert len(rows) == 20 < len(everything)
    assert np.isin(rows, everything).all()


def test_every_nth_user_counts_where_there_are_too_many_pairs():
    entries = np.array([user * 100 + i for user in range(6) for i in (0, 3, 7)])
    users, ids = co_occurrence.baskets(entries, 100)
    assert users.tolist() == np.repeat(range(6), 2).tolist()
    assert ids.tolist() == [3, 7] * 6
    users, _ = co_occurrence.baskets(entries, 100, most_pairs=8)  # of 24
    assert users.tolist() == [0, 0, 3, 3]
