import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from din_jax.data import source as source_module
from din_jax.data.buckets import Buckets
from din_jax.data.length_balance import balance_lengths
from din_jax.data.loader import batches
from din_jax.data.packing import Packer
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.errors import DinError


def unpacked(batch):
    """The samples of a batch as plain Python values, padding left out."""
    size, found = len(batch.label), []

    def of(packed, segment):
        return packed.values[packed.segment_ids == segment].tolist()

    for i in np.flatnonzero(batch.weight):
        sample = {"label": int(batch.label[i]), "user": int(batch.user[i])}
        for name, ids in batch.fields.items():
            sample[name] = of(ids, i) if hasattr(ids, "values") else int(ids[i])
        for name, sequence in batch.sequences.items():
            positions = np.flatnonzero(sequence.segment_ids == i)
            assert (sequence.segment_ids <= size).all()
            sample[name] = [
                {
                    field: of(ids, t) if hasattr(ids, "values") else int(ids[t])
                    for field, ids in sequence.fields.items()
                }
                for t in positions
            ]
        found.append(sample)
    return found


def expected(sample, max_history=0):
    """What a batch should hold of a sample of the `rich` fixture."""
    keys = ("label", "user", "age", "film", "genres", "hour")
    views = sample["views"][-max_history:] if max_history else sample["views"]
    likes = sample["likes"][-max_history:] if max_history else sample["likes"]
    return {k: sample[k] for k in keys} | {
        "views": views,
        "likes": [{"film": e["film"]} for e in likes],
    }


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
    found = [s for i in range(len(source)) for s in unpacked(source[i])]
    assert found == [expected(s, max_history) for s in samples[:60]]


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
def test_batches_of_one_call_exchange_samples_and_have_the_same_shapes(rich, steps, monkeypatch):
    monkeypatch.setattr(source_module, "_CHUNK_SAMPLES", 16)
    store, samples = rich
    alone = BatchSource(store, "train+validation", 4, epochs=2)
    source = BatchSource(store, "train+validation", 4, epochs=2, steps_per_call=steps)
    assert source.batches_per_epoch == 19
    found = list(batches(source))
    shapes = [[leaf.shape for leaf in jax.tree.leaves(batch)] for batch in found]
    begin, exchanged, shapes_met = 0, 0, set()
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
            assert unpacked(found[i]) == [expected(samples[sample]) for sample in of_batch]
        shapes_met.add(tuple(shapes[begin]))
        begin = end
    assert len(shapes_met) > 1 and exchanged > 0


@given(st.data())
def test_batches_are_length_balanced(data):
    groups, batches, size = (data.draw(st.integers(1, most)) for most in (3, 5, 40))
    row = st.lists(
        st.integers(0, 100) | st.just(7), min_size=batches * size, max_size=batches * size
    )
    sizes = np.array(data.draw(st.lists(row, min_size=groups, max_size=groups)))
    positions = balance_lengths(sizes, batches)
    for group, of_group in zip(sizes, positions, strict=True):
        assert sorted(of_group) == list(range(batches * size))
        of_batches = of_group.reshape(batches, size)
        assert (np.diff(of_batches) > 0).all()
        totals = group[of_batches].sum(axis=1)
        assert totals.max() - totals.min() <= group.max() - group.min()


def test_the_batch_with_the_smallest_total_gets_the_longest_sample():
    sizes = np.array([[5, 9, 2, 7, 3, 4]])  # 9 and 7, then 4 and 5, then 2 and 3
    np.testing.assert_array_equal(balance_lengths(sizes, 2), [[1, 2, 5, 0, 3, 4]])


@pytest.mark.parametrize(("batches", "size"), [(8, 32), (64, 32), (2, 128)])
def test_length_balanced_batches_hardly_differ(batches, size):
    lengths = np.random.default_rng(0).geometric(1 / 9, (20, batches * size)).clip(max=100)

    def over_mean(order):
        of_batches = np.take_along_axis(lengths, order, axis=1).reshape(20, batches, size)
        totals = of_batches.sum(axis=2)
        return (totals.max(axis=1) - totals.mean(axis=1)).mean()

    as_drawn = np.tile(np.arange(batches * size), (20, 1))
    assert over_mean(balance_lengths(lengths, batches)) < over_mean(as_drawn) / 6


def test_batches_of_one_sample_stay_in_their_order(rich):
    one = BatchSource(rich[0], "train", 1, seed=5)
    many = BatchSource(rich[0], "train", 1, seed=5, steps_per_call=16)
    assert [many.samples_of(i) for i in range(60)] == [one.samples_of(i) for i in range(60)]


def test_several_devices_train_on_the_batches_of_one(rich):
    one = BatchSource(rich[0], "train", 4, steps_per_call=3)
    two = BatchSource(rich[0], "train", 4, steps_per_call=3, shards=Shards(2, range(2)))
    assert (one.next_group(3), two.next_group(3)) == (6, 4)  # one shape would be more padding
    for i in range(len(one)):
        np.testing.assert_array_equal(two.samples_of(i), one.samples_of(i))
        np.testing.assert_array_equal(two[i].user.ravel(), one[i].user)


def test_the_last_batch_is_filled_up_with_weight_zero(rich):
    source = BatchSource(rich[0], "train", 32, shuffle=False)
    assert source[1].weight.sum() == 60 - 32
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


@given(st.data())
def test_buckets_hold_the_longest_batch_and_the_smallest_is_chosen(data):
    axes = data.draw(st.integers(1, 3))
    numbers = st.integers(0, 500)
    totals = np.array(
        data.draw(
            st.lists(st.lists(numbers, min_size=axes, max_size=axes), min_size=1, max_size=20)
        )
    )
    extra = np.array(data.draw(st.lists(numbers, min_size=axes, max_size=axes)))
    longest = totals.max(axis=0) + extra
    buckets = Buckets.fit([f"a{i}" for i in range(axes)], totals, longest.tolist())
    sizes = np.array(buckets.sizes)
    assert (np.diff(sizes, axis=0) >= 0).all()
    assert len({tuple(r) for r in buckets.sizes}) == len(buckets.sizes)
    assert (sizes[-1] >= longest).all()
    assert (sizes[-1] < longest + 8 + 8 * (longest == 0)).all(), "no larger than the longest case"
    for total in [*totals, longest]:
        chosen = np.array(list(buckets.smallest(total.tolist()).values()))
        assert (chosen >= total).all()
        lower = [r for r in sizes if (r <= chosen).all() and (r != chosen).any()]
        assert not any((r >= total).all() for r in lower)


def test_the_last_bucket_holds_the_longest_histories_together(rich):
    source = BatchSource(rich[0], "train", 8)
    lengths = Packer(rich[0]).lengths(np.arange(60))
    longest = np.argsort(lengths[:, 1])[-8:]
    capacity = source.buckets.smallest(lengths[longest].sum(axis=0))
    (batch,) = source.packer.pack([longest], 8, [capacity])
    assert (batch.sequences["views"].segment_ids < 8).sum() == lengths[longest, 1].sum()


@pytest.mark.parametrize("chunk_samples", [8, 24, 2048])  # an epoch has 8 batches: 1, 3, 8 a chunk
def test_an_iterator_begins_where_it_is_told(rich, chunk_samples, monkeypatch):
    monkeypatch.setattr(source_module, "_CHUNK_SAMPLES", chunk_samples)
    source = BatchSource(rich[0], "train", 8, epochs=2)
    whole = [unpacked(source[i]) for i in range(len(source))]
    for start in range(len(source) + 1):
        assert [unpacked(b) for b in batches(source, start)] == whole[start:]


def test_the_fingerprint_tells_runs_apart(rich, planted_store):
    def fingerprint(store=rich[0], split="train", batch_size=8, **options):
        return BatchSource(store, split, batch_size, **options).fingerprint

    others = [
        fingerprint(store=Store(planted_store)),
        fingerprint(split="test"),
        fingerprint(batch_size=9),
        fingerprint(seed=1),
        fingerprint(max_history=2),
    ]
    assert fingerprint() == fingerprint()
    assert fingerprint() not in others


def test_a_split_that_is_not_there_is_named(rich):
    with pytest.raises(DinError, match=r"no split 'tset'; .* has: train, validation, test"):
        BatchSource(rich[0], "tset", 8)
