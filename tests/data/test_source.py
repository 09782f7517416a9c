import jax
import numpy as np
import pytest
from batch_contents import expected, unpacked

from din_jax.data import source as source_module
from din_jax.data.packing import Packer
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.errors import DinError


@pytest.mark.parametrize("max_history", [0, 1, 3])
@pytest.mark.parametrize(
    ("batch_size", "chunk_samples"),
    [(1, 1), (1, 2048), (7, 7), (7, 22), (7, 2048), (60, 8), (100, 2048)],
)
def test_batches_hold_the_samples_of_the_store(
    rich, batch_size, chunk_samples, max_history, monkeypatch
):
    monkeypatch.setattr(source_module, "_CHUNK_SAMPLES", chunk_samples)
    store, samples = rich
    source = BatchSource(store, "train", batch_size, max_history=max_history, shuffle=False)
    in_batches = [s for i in range(len(source)) for s in unpacked(source[i])]
    assert in_batches == [expected(s, max_history) for s in samples[:60]]


def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(rich):
    store, samples = rich
    source = BatchSource(store, "train+validation", 8, seed=3, epochs=3)
    assert len(source) == 3 * 10
    epochs = [
        [s for i in range(10) for s in unpacked(source[epoch * 10 + i])] for epoch in range(3)
    ]

    def as_set(epoch):
        return sorted(map(repr, epoch))

    assert as_set(epochs[0]) == sorted(repr(expected(s)) for s in samples[:75])
    assert as_set(epochs[0]) == as_set(epochs[1]) == as_set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    again = BatchSource(store, "train+validation", 8, seed=3, epochs=3)
    assert unpacked(again[17]) == unpacked(source[17])
    other = BatchSource(store, "train+validation", 8, seed=4, epochs=3)
    assert unpacked(other[17]) != unpacked(source[17])


@pytest.mark.parametrize("steps", [2, 3])
def test_batches_of_one_call_exchange_samples_and_have_equal_shapes(rich, steps, monkeypatch):
    monkeypatch.setattr(source_module, "_CHUNK_SAMPLES", 16)
    store, samples = rich
    alone = BatchSource(store, "train+validation", 4, epochs=2)
    source = BatchSource(store, "train+validation", 4, epochs=2, steps_per_call=steps)
    assert source.batches_per_epoch == 19
    batches = [source[i] for i in range(len(source))]
    shapes = [[leaf.shape for leaf in jax.tree.leaves(batch)] for batch in batches]
    begin, exchanged, distinct_shapes = 0, 0, set()
    while begin < len(source):
        epoch, position = divmod(begin, 19)
        end = source.next_group(begin)
        assert end == epoch * 19 + min(19, position + steps)
        of_group = [source.samples_of(i) for i in range(begin, end)]
        in_order = np.concatenate([alone.samples_of(i) for i in range(begin, end)])
        assert sorted(np.concatenate(of_group)) == sorted(in_order)
        exchanged += not np.array_equal(np.concatenate(of_group), in_order)
        for i, of_batch in zip(range(begin, end), of_group, strict=True):
            assert source.next_group(i) == end
            assert shapes[i] == shapes[begin]
            assert unpacked(batches[i]) == [expected(samples[sample]) for sample in of_batch]
        distinct_shapes.add(tuple(shapes[begin]))
        begin = end
    assert len(distinct_shapes) > 1 and exchanged > 0


def test_batches_of_one_sample_stay_in_their_order(rich):
    one = BatchSource(rich[0], "train", 1, seed=5)
    many = BatchSource(rich[0], "train", 1, seed=5, steps_per_call=16)
    assert [many.samples_of(i) for i in range(60)] == [one.samples_of(i) for i in range(60)]


def test_several_devices_train_on_the_batches_of_one(rich):
    one = BatchSource(rich[0], "train", 4, steps_per_call=3)
    two = BatchSource(rich[0], "train", 4, steps_per_call=3, shards=Shards(2, range(2)))
    # On several devices, equal shapes of a call's batches would need more padding.
    assert (one.next_group(3), two.next_group(3)) == (6, 4)
    for i in range(len(one)):
        np.testing.assert_array_equal(two.samples_of(i), one.samples_of(i))
        np.testing.assert_array_equal(two[i].user.ravel(), one[i].user)


def test_the_last_batch_is_filled_up_with_weight_zero(rich):
    source = BatchSource(rich[0], "train", 32, shuffle=False)
    assert source[1].weight.sum() == source.real_samples(1) == 60 - 32
    for sequence in source[1].sequences.values():
        assert set(sequence.segment_ids.tolist()) <= {*range(28), 32}


def test_capacities_are_those_of_one_bucket(rich):
    source = BatchSource(rich[0], "train", 8, epochs=40)
    axes = source.buckets.axes
    assert axes == ("genres", "views", "likes", "views.genres")
    for i in range(len(source)):
        batch = source[i]
        capacities = (
            len(batch.fields["genres"].values),
            len(batch.sequences["views"].segment_ids),
            len(batch.sequences["likes"].segment_ids),
            len(batch.sequences["views"].fields["genres"].values),
        )
        assert capacities in source.buckets.sizes


def test_the_last_bucket_holds_the_longest_histories_together(rich):
    source = BatchSource(rich[0], "train", 8)
    lengths = Packer(rich[0]).lengths(np.arange(60))
    longest = np.argsort(lengths[:, 1])[-8:]
    capacity = source.buckets.smallest(lengths[longest].sum(axis=0))
    (batch,) = source.packer.pack([longest], 8, [capacity])
    assert (batch.sequences["views"].segment_ids < 8).sum() == lengths[longest, 1].sum()


def test_the_fingerprint_tells_runs_apart(rich, planted_store):
    def fingerprint(store=rich[0], split="train", batch_size=8, **options):
        return BatchSource(store, split, batch_size, **options).fingerprint

    others = [
        fingerprint(store=Store(planted_store)),
        fingerprint(split="test"),
        fingerprint(batch_size=9),
        fingerprint(seed=1),
        fingerprint(max_history=2),
        fingerprint(steps_per_call=2),
    ]
    assert fingerprint() == fingerprint()
    assert fingerprint() not in others


def test_a_split_that_is_not_there_is_named(rich):
    with pytest.raises(DinError, match=r"no split 'tset'; .* has: train, validation, test"):
        BatchSource(rich[0], "tset", 8)
