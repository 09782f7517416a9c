"""Compares train states that are placed on different devices."""

import jax
import numpy as np

from din_jax.distributed.devices import is_sharded


def unsharded(leaf, wanted):
    """The array as it is on one device: blocks end to end, without padding."""
    values = np.asarray(leaf)
    if is_sharded(leaf):
        values = values.reshape(-1, *values.shape[2:])
        assert not values[len(wanted) :].any(), "padding is zero"
        values = values[: len(wanted)]
    return values


def assert_same_state(one, many, rtol):
    keys = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(one)]
    for key, a, b in zip(keys, jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        a = np.asarray(a)
        b = unsharded(b, a)
        size = np.linalg.norm(a.astype(np.float64))
        assert np.linalg.norm(a.astype(np.float64) - b) <= rtol * size, key


def assert_replicas_equal(state):
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not is_sharded(leaf):
            copies = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
            assert len(set(copies)) == 1, jax.tree_util.keystr(path)


def saved(state):
    return state.replace(scratch={})
