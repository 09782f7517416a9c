import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from din_jax.data.buckets import Buckets


@settings(max_examples=60, deadline=None)
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


def test_lengths_above_the_largest_bucket_are_refused():
    buckets = Buckets.fit(["views"], np.array([[3], [5]]), [20])
    assert buckets.smallest([20]) == {"views": 24}
    with pytest.raises(ValueError, match=r"lengths \(25,\) of \('views',\) exceed \(24,\)"):
        buckets.smallest([25])


def test_without_packed_axes_there_is_one_empty_bucket():
    buckets = Buckets.fit([], np.empty((4, 0)), [])
    assert buckets.smallest([]) == {}
