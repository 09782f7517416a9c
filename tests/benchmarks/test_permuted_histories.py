"""Histories permuted between users, sample by sample."""

from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_user_gets_the_last_history_of_another(rich, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import permuted_histories

    store = rich[0]
    changed = permuted_histories.permuted(store, "train", seed=0)
    users = store.column("samples/user")
    train = store.split("train")
    for sequence in ("views", "likes"):
        names = [f"sequences/{sequence}.{end}" for end in ("start", "end")]
        before, after = (
            np.stack([np.array(of.column(name)) for name in names], axis=1)
            for of in (store, changed)
        )
        np.testing.assert_array_equal(before[train.stop :], after[train.stop :])
        last = {users[i]: tuple(before[i]) for i in train}  # the last one stays
        given = {}
        for i in train:
            given.setdefault(users[i], set()).add(tuple(after[i]))
        assert all(len(histories) == 1 for histories in given.values())
        assert sorted(min(h) for h in given.values()) == sorted(last.values())
        for user, (history,) in given.items():
            takers = [u for u in given if given[u] == {history}]
            givers = [u for u in last if last[u] == history]
            assert givers != [user] or takers != [user], "nobody keeps their own"
    assert store.column("samples/label") is changed.column("samples/label")
