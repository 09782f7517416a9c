import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from din_jax import pipeline
from din_jax.errors import DinError
from din_jax.pipeline import BatchSource, Ladder, Packer, batches
from din_jax.store import Store


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
            places = np.flatnonzero(sequence.segment_ids == i)
            assert (sequence.segment_ids <= size).all()
            sample[name] = [
                {
                    field: of(ids, t) if hasattr(ids, "values") else int(ids[t])
                    for field, ids in sequence.fields.items()
                }
                for t in places
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
    ("batch_size", "at_once"), [(1, 1), (1, 2048), (7, 7), (7, 22), (7, 2048), (60, 8), (100, 2048)]
)
def test_batches_hold_the_samples_of_the_store(rich, batch_size, at_once, max_history, monkeypatch):
    monkeypatch.setattr(pipeline, "_SAMPLES_AT_ONCE", at_once)
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


@pytest.mark.parametrize("alike", [2, 3])
def test_neighbours_that_are_alike_have_the_same_shapes(rich, alike, monkeypatch):
    monkeypatch.setattr(pipeline, "_SAMPLES_AT_ONCE", 16)
    alone = BatchSource(rich[0], "train+validation", 4, epochs=2)
    source = BatchSource(rich[0], "train+validation", 4, epochs=2, alike=alike)
    assert source.batches_per_epoch == 19
    found = list(batches(source))
    assert [unpacked(batch) for batch in found] == [unpacked(batch) for batch in batches(alone)]
    shapes = [[leaf.shape for leaf in jax.tree.leaves(batch)] for batch in found]
    rungs = set()
    for i in range(len(source)):
        epoch, place = divmod(i, 19)
        end = epoch * 19 + min(19, place - place % alike + alike)
        assert source.next_group(i) == end
        assert shapes[i] == shapes[end - 1]
        rungs.add(tuple(shapes[i]))
    assert len(rungs) > 1


def test_the_last_batch_is_filled_up_with_weight_zero(rich):
    source = BatchSource(rich[0], "train", 32, shuffle=False)
    assert source[1].weight.sum() == 60 - 32
    for sequence in source[1].sequences.values():
        assert set(sequence.segment_ids.tolist()) <= {*range(28), 32}


def test_capacities_are_rungs_of_one_ladder(rich):
    source = BatchSource(rich[0], "train", 8, epochs=40)
    axes = source.ladder.axes
    assert axes == ("genres", "views", "likes", "views.genres")
    for i in range(len(source)):
        batch = source[i]
        capacities = (
            len(batch.fields["genres"].values),
            len(batch.sequences["views"].segment_ids),
            len(batch.sequences["likes"].segment_ids),
            len(batch.sequences["views"].fields["genres"].values),
        )
        assert capacities in source.ladder.rungs


@given(st.data())
def test_the_ladder_holds_the_worst_batch_and_picks_the_lowest_rung(data):
    axes = data.draw(st.integers(1, 3))
    numbers = st.integers(0, 500)
    totals = np.array(
        data.draw(
            st.lists(st.lists(numbers, min_size=axes, max_size=axes), min_size=1, max_size=20)
        )
    )
    extra = np.array(data.draw(st.lists(numbers, min_size=axes, max_size=axes)))
    worst = totals.max(axis=0) + extra
    ladder = Ladder.fit([f"a{i}" for i in range(axes)], totals, worst.tolist())
    rungs = np.array(ladder.rungs)
    assert (np.diff(rungs, axis=0) >= 0).all()
    assert len({tuple(r) for r in ladder.rungs}) == len(ladder.rungs)
    assert (rungs[-1] >= worst).all()
    assert (rungs[-1] < worst + 8 + 8 * (worst == 0)).all(), "no larger than the worst case"
    for total in [*totals, worst]:
        chosen = np.array(list(ladder.lowest(total.tolist()).values()))
        assert (chosen >= total).all()
        lower = [r for r in rungs if (r <= chosen).all() and (r != chosen).any()]
        assert not any((r >= total).all() for r in lower)


def test_the_top_rung_holds_the_longest_histories_together(rich):
    source = BatchSource(rich[0], "train", 8)
    lengths = Packer(rich[0]).lengths(np.arange(60))
    longest = np.argsort(lengths[:, 1])[-8:]
    capacity = source.ladder.lowest(lengths[longest].sum(axis=0))
    (batch,) = source.packer.pack([longest], 8, [capacity])
    assert (batch.sequences["views"].segment_ids < 8).sum() == lengths[longest, 1].sum()


@pytest.mark.parametrize("at_once", [8, 24, 2048])  # an epoch has 8 batches: 1, 3, 8 a stretch
def test_an_iterator_begins_where_it_is_told(rich, at_once, monkeypatch):
    monkeypatch.setattr(pipeline, "_SAMPLES_AT_ONCE", at_once)
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
