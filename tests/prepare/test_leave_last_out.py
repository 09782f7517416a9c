"""The last interaction of each user is test, the one before it validation."""

import numpy as np

from din_jax.prepare.leave_last_out import leave_last_out


def by_loops(user, time):
    split = [0] * len(user)
    for u in set(user.tolist()):
        rows = sorted((r for r in range(len(user)) if user[r] == u), key=lambda r: time[r])
        if len(rows) >= 3:
            split[rows[-1]], split[rows[-2]] = 2, 1
    return split


def test_against_plain_loops():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 60, 400):
        for dtype in (np.int64, np.float32, np.uint8):
            user = rng.integers(1 + n // 4, size=n)
            time = rng.integers(6, size=n).astype(dtype)  # many ties
            split = leave_last_out(user, time)
            assert split.tolist() == by_loops(user, time)
            assert split.dtype == np.int8


def test_ties_are_in_the_order_of_the_file_and_users_with_two_train():
    user = np.array([4, 1, 4, 4, 1, 4])
    assert leave_last_out(user, np.array([-7, 0, -7, -7, 0, -9])).tolist() == [0, 0, 1, 2, 0, 0]


def test_no_interactions():
    assert leave_last_out(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []
