import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from din_jax.data.length_balance import balance_lengths


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_batches_are_length_balanced(data):
    groups, batches, size = (data.draw(st.integers(1, most)) for most in (3, 5, 40))
    row = st.lists(
        st.integers(0, 100) | st.just(7), min_size=batches * size, max_size=batches * size
    )
    lengths = np.array(data.draw(st.lists(row, min_size=groups, max_size=groups)))
    positions = balance_lengths(lengths, batches)
    for group, of_group in zip(lengths, positions, strict=True):
        assert sorted(of_group) == list(range(batches * size))
        of_batches = of_group.reshape(batches, size)
        assert (np.diff(of_batches) > 0).all()
        totals = group[of_batches].sum(axis=1)
        assert totals.max() - totals.min() <= group.max() - group.min()


def test_the_batch_with_the_smallest_total_gets_the_longest_sample():
    lengths = np.array([[5, 9, 2, 7, 3, 4]])  # 9 and 7, then 4 and 5, then 2 and 3
    np.testing.assert_array_equal(balance_lengths(lengths, 2), [[1, 2, 5, 0, 3, 4]])


@pytest.mark.parametrize(("batches", "size"), [(8, 32), (64, 32), (2, 128)])
def test_length_balanced_batches_hardly_differ(batches, size):
    lengths = np.random.default_rng(0).geometric(1 / 9, (20, batches * size)).clip(max=100)

    def over_mean(order):
        of_batches = np.take_along_axis(lengths, order, axis=1).reshape(20, batches, size)
        totals = of_batches.sum(axis=2)
        return (totals.max(axis=1) - totals.mean(axis=1)).mean()

    as_drawn = np.tile(np.arange(batches * size), (20, 1))
    assert over_mean(balance_lengths(lengths, batches)) < over_mean(as_drawn) / 6
