import numpy as np
import pytest
from batch_contents import expected, unpacked

from din_jax.data.packing import Packer


def lengths_of(sample, max_history):
    """By the sample itself, in the order of `Packer.axes`."""
    sample = expected(sample, max_history)
    nested = sum(len(e["genres"]) for e in sample["views"])
    return [len(sample["genres"]), len(sample["views"]), len(sample["likes"]), nested]


@pytest.mark.parametrize("max_history", [0, 1, 3])
def test_packed_groups_hold_their_samples(rich, max_history):
    """In any order, several groups at once, each with capacities of its own."""
    store, samples = rich
    packer = Packer(store, max_history)
    assert packer.axes == ("genres", "views", "likes", "views.genres")
    groups = np.split(np.random.default_rng(0).permutation(90)[:17], [5, 11, 11])
    capacities = []
    for extra, group in enumerate(groups):
        lengths = packer.lengths(group)
        by_hand = [lengths_of(samples[i], max_history) for i in group]
        assert lengths.tolist() == by_hand
        totals = lengths.sum(axis=0) + extra
        capacities.append(dict(zip(packer.axes, totals.tolist(), strict=True)))
    batches = packer.pack(groups, 6, capacities)
    for batch, group, capacity in zip(batches, groups, capacities, strict=True):
        assert unpacked(batch) == [expected(samples[i], max_history) for i in group]
        assert batch.weight.tolist() == [1] * len(group) + [0] * (6 - len(group))
        views, likes = batch.sequences["views"], batch.sequences["likes"]
        assert len(batch.fields["genres"].values) == capacity["genres"]
        assert len(views.segment_ids) == capacity["views"]
        assert len(likes.segment_ids) == capacity["likes"]
        assert len(views.fields["genres"].values) == capacity["views.genres"]
        # Padding comes last, with the segment id past the last segment.
        real = len(np.flatnonzero(likes.segment_ids < 6))
        assert likes.segment_ids[real:].tolist() == [6] * (capacity["likes"] - real)
