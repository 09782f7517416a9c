import dataclasses

import jax
import numpy as np
import pytest
from batch_contents import bucket, expected, unpacked
from small_stores import RAGGED, write_ragged

from din_jax.data import columns as columns_module
from din_jax.data.packing import AGE_BUCKETS, age_bucket
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.errors import DinError

TIMED = dataclasses.replace(
    RAGGED, sequences=(dataclasses.replace(RAGGED.sequences[0], times=True),)
)
# The first sample has no history, so that its time may be any.
TIMES = {"samples/time": [-5, 8, 40], "events/history.time": [2, 8, 30, 30]}


def test_buckets_are_those_of_whole_numbers():
    near_powers = [2**k + d for k in range(38) for d in range(-3, 4) if 2**k + d >= 0]
    ages = np.array([0, *near_powers, 253_402_300_799 * 2])
    buckets = age_bucket(ages)
    assert buckets.dtype == np.int32
    assert buckets.tolist() == [bucket(age) for age in ages.tolist()]
    assert max(buckets) == AGE_BUCKETS - 1
    # A history of another time, as in an experiment that permutes histories.
    assert age_bucket(np.array([-1, -(2**40)])).tolist() == [0, 0]


@pytest.mark.parametrize("max_history", [0, 1, 3])
def test_batches_carry_the_ages_of_their_behaviours(rich, max_history):
    store, samples = rich
    options = {"max_history": max_history, "shuffle": False, "steps_per_call": 1}
    source = BatchSource(store, "train", 7, ages=True, **options)
    batches = [source[i] for i in range(len(source))]
    in_batches = [s for batch in batches for s in unpacked(batch)]
    assert in_batches == [expected(s, max_history, ages=True) for s in samples[:60]]
    assert len({e["age"] for s in in_batches for e in s["likes"]}) > 10
    for batch in batches:
        for sequence in batch.sequences.values():
            assert sequence.age.dtype == np.int32
            assert not sequence.age[sequence.segment_ids == 7].any()  # padding
    # All else is that of batches without ages, which have no further array.
    without = BatchSource(store, "train", 7, **options)
    leaves = jax.tree.leaves(without[0])
    assert len(leaves) == len(jax.tree.leaves(batches[0])) - 2
    sequences = {k: s._replace(age=None) for k, s in batches[0].sequences.items()}
    others = jax.tree.leaves(batches[0]._replace(sequences=sequences))
    jax.tree.map(np.testing.assert_array_equal, others, leaves)


def test_several_devices_and_steps_have_the_ages_of_one(rich):
    store, samples = rich
    options = {"ages": True, "seed": 2, "steps_per_call": 3}
    one = BatchSource(store, "train", 4, **options)
    two = BatchSource(store, "train", 4, shards=Shards(2, range(2)), **options)
    second = BatchSource(store, "train", 4, shards=Shards(2, range(1, 2)), **options)
    for i in range(len(one)):
        of_batch = [expected(samples[j], ages=True) for j in one.samples_of(i)]
        assert unpacked(one[i]) == of_batch
        of_device = [unpacked(jax.tree.map(lambda leaf, m=m: leaf[m], two[i])) for m in (0, 1)]
        assert of_device[0] + of_device[1] == of_batch
        assert unpacked(jax.tree.map(lambda leaf: leaf[0], second[i])) == of_device[1]


def test_ages_need_times_of_every_sequence(planted_store):
    with pytest.raises(
        DinError, match=r"the store has no times of: history; config.model.attention.age=True"
    ):
        BatchSource(Store(planted_store), "train", 8, ages=True)


def test_the_fingerprint_of_batches_with_ages_is_another(rich):
    fingerprints = [BatchSource(rich[0], "train", 8, ages=a).fingerprint for a in (False, True)]
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.parametrize("dtype", [np.int64, np.int8])
def test_times_of_any_integers_are_written_and_read(tmp_path, dtype):
    write_ragged(tmp_path / "s", TIMED, **{k: np.array(v, dtype) for k, v in TIMES.items()})
    store = Store(tmp_path / "s")
    assert store.schema == TIMED
    for name, values in TIMES.items():
        assert store.column(name).tolist() == values
    batch = BatchSource(store, "train+validation", 2, ages=True, shuffle=False)[0]
    assert batch.sequences["history"].age[:2].tolist() == [bucket(8 - 2), bucket(0)]


def test_a_store_without_times_is_written_as_before_there_were_times(tmp_path):
    write_ragged(tmp_path / "s")
    assert "times" not in (tmp_path / "s/schema.json").read_text()
    assert not Store(tmp_path / "s").schema.sequences[0].times


@pytest.mark.parametrize(
    ("schema", "columns", "message"),
    [
        (RAGGED, TIMES, "does not know: events/history.time, samples/time"),
        (TIMED, {}, "missing: events/history.time, samples/time"),
        (TIMED, TIMES | {"events/history.time": [2, 8, 30]}, "has 3 entries, expected 4"),
        (TIMED, TIMES | {"samples/time": [0, 9]}, "has 2 entries, expected 3"),
        (TIMED, TIMES | {"samples/time": [0.0, 9.0, 50.0]}, "holds float64, expected integers"),
        (
            TIMED,  # milliseconds
            TIMES | {"samples/time": [0, 9, 1_650_812_741_436]},
            "from 0 to 1650812741436, expected seconds, -253402300799 to 253402300799",
        ),
        (
            TIMED,
            TIMES | {"samples/time": [0, 7, 40]},
            r"samples/time\[1\] is 7, before .*its history, events/history.time\[1\], 8",
        ),
        (
            TIMED,
            TIMES | {"samples/time": [0, 9, 29]},
            r"samples/time\[2\] is 29, before .*its history, events/history.time\[3\], 30",
        ),
    ],
)
@pytest.mark.parametrize("at_once", [2, 1 << 20])
def test_times_that_cannot_be_are_refused(tmp_path, monkeypatch, schema, columns, message, at_once):
    monkeypatch.setattr(columns_module, "CHUNK", at_once)
    with pytest.raises(DinError, match=message):
        write_ragged(tmp_path / "s", schema, **columns)
