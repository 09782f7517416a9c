"""Splits interactions so that each user's last one is test and the one before it is validation."""

from __future__ import annotations

import numpy as np

from din_jax.data.store import SPLITS

_FEWEST = len(SPLITS)  # interactions of a user who has any in validation and test


def leave_last_out(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The split of each interaction.

    Interactions of one time are ordered as they are given. Users with fewer than three are in
    training only, so that each user of validation and test has something to learn from.

    Args:
      user: [N] numbers from 0 on.
      time: [N] any numbers that can be ordered.

    Returns:
      int8 [N], indices into `SPLITS`: 0 is train, 1 validation, 2 test.
    """
    split = np.full(len(user), SPLITS.index("train"), np.int8)
    rows = np.flatnonzero((np.bincount(user) >= _FEWEST)[user]) if len(user) else np.arange(0)
    for name in ("test", "validation"):
        last = _last_of_each_user(user[rows], time[rows])
        split[rows[last]] = SPLITS.index(name)
        rows = np.delete(rows, last)
    return split


def _last_of_each_user(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The index of each user's last interaction, found without a sort."""
    users = int(user.max(initial=-1)) + 1
    latest = np.full(users, time.min() if len(time) else 0, time.dtype)
    np.maximum.at(latest, user, time)
    last = np.full(users, -1)
    at_latest = np.flatnonzero(time == latest[user])
    np.maximum.at(last, user[at_latest], at_latest)
    return last[last >= 0]
