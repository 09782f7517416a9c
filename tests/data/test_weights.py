"""Sample weights from the store to batches."""

import json

import jax
import numpy as np
import pytest
from batch_contents import expected, unpacked
from small_stores import RAGGED, RAGGED_COLUMNS, SCHEMA, write, write_ragged
from weighted_stores import with_weights

from din_jax.data.schema import Schema
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.data.store_writer import StoreWriter
from din_jax.errors import DinError

WEIGHTED = Schema(RAGGED.tables, RAGGED.fields, RAGGED.sequences, weighted=True)


def written(path, weights):
    write_ragged(path, WEIGHTED, **{"samples/weight": weights})
    return Store(path)


def description(path):
    return json.loads((path / "schema.json").read_text())


def test_a_store_has_weights_if_its_schema_says_so(tmp_path):
    weights = np.float32([0.25, 0, 3])
    store = written(tmp_path / "weighted", weights)
    assert store.schema == WEIGHTED
    assert store.schema.without(["tag"]).weighted
    assert store.column("samples/weight").tolist() == weights.tolist()
    other = written(tmp_path / "other", weights[::-1])
    write_ragged(tmp_path / "none")
    assert len({store.fingerprint, other.fingerprint, Store(tmp_path / "none").fingerprint}) == 3


def test_only_a_store_with_weights_differs_from_those_of_older_versions(tmp_path):
    """Those versions, which would ignore weights, refuse it: its version is another."""
    written(tmp_path / "weighted", np.ones(3, np.float32))
    write(tmp_path / "none")
    none, weighted = (description(tmp_path / name) for name in ("none", "weighted"))
    assert none["version"] == 1 and none["schema"].keys() == {"tables", "fields", "sequences"}
    assert weighted["version"] == 2 and weighted["schema"]["weighted"] is True


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.float32([1, np.nan, 1]), r"weight\[1\] is nan, expected 0, or a number from 1e-20 to"),
        (np.float32([1, 1, -2]), r"weight\[2\] is -2"),
        (np.float32([np.inf, 1, 1]), r"weight\[0\] is inf"),
        (np.float32([1, 1e-30, 1]), r"weight\[1\] is 1e-30"),
        (np.array([1.0, 2, 3]), "holds float64, expected float32"),
        (np.array([1, 2, 3]), "holds int64, expected float32"),
        (np.ones(2, np.float32), "weight has 2 entries, expected 3"),
    ],
)
def test_what_is_no_weight_is_refused(tmp_path, weights, message):
    with pytest.raises(DinError, match=message):
        written(tmp_path / "store", weights)


def test_weights_and_the_schema_agree(tmp_path):
    with pytest.raises(DinError, match="does not know: samples/weight"):
        write_ragged(tmp_path / "a", **{"samples/weight": np.ones(3, np.float32)})
    with pytest.raises(DinError, match="columns missing: samples/weight"):
        write_ragged(tmp_path / "b", WEIGHTED, **RAGGED_COLUMNS)
    with StoreWriter(tmp_path / "c", SCHEMA) as writer:
        writer.append("samples/weight", np.float32([0.1]))
        with pytest.raises(ValueError, match="float64"):  # 0.1 has no exact float32
            writer.append("samples/weight", np.array([0.1]))


@pytest.mark.parametrize("options", [{}, {"steps_per_call": 2, "shards": Shards(2, range(2))}])
def test_batches_carry_weights_and_leave_out_samples_of_weight_0(rich, options):
    plain, samples = rich
    rng = np.random.default_rng(0)
    weights = np.float32(rng.choice([0, 0.25, 1, 7.5], 90))
    store = with_weights(plain, weights)
    kept = np.flatnonzero(weights[:75] > 0)
    source = BatchSource(store, "train+validation", 8, epochs=2, max_history=3, **options)
    assert source.count == len(kept) < 75
    assert source.batches_per_epoch == -(-len(kept) // 8)
    for epoch in range(2):
        seen = []
        for i in range(epoch * source.batches_per_epoch, (epoch + 1) * source.batches_per_epoch):
            batch, chosen = source[i], source.samples_of(i)
            assert source.real_samples(i) == len(chosen) == (batch.weight > 0).sum()
            carried = batch.weight[batch.weight > 0]
            assert carried.tolist() == weights[chosen].tolist()
            local = (
                [batch]
                if not options
                else [jax.tree.map(lambda x, m=m: x[m], batch) for m in (0, 1)]
            )
            contents = [s for one in local for s in unpacked(one)]
            assert contents == [expected(samples[j], 3) for j in chosen]
            seen += chosen.tolist()
        assert sorted(seen) == kept.tolist()
        assert seen != kept.tolist()


def test_scored_batches_know_no_weights(rich):
    weights = np.zeros(90, np.float32)
    weights[::2] = 0.5
    options = {"max_history": 3, "shuffle": False, "steps_per_call": 2}
    plain = BatchSource(rich[0], "train", 8, **options)
    source = BatchSource(with_weights(rich[0], weights), "train", 8, weighted=False, **options)
    assert len(source) == len(plain)
    for i in range(len(plain)):
        jax.tree.map(np.testing.assert_array_equal, source[i], plain[i])


def test_a_split_of_weight_0_trains_nothing(rich):
    weights = np.ones(90, np.float32)
    weights[:60] = 0
    store = with_weights(rich[0], weights)
    with pytest.raises(DinError, match="all samples of the split 'train' have weight 0"):
        BatchSource(store, "train", 8)
    assert BatchSource(store, "train", 8, weighted=False).count == 60
