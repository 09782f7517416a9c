"""Several devices give what one gives: states, losses, scores."""

import jax
import numpy as np
import pytest
from runs import small_config

from din_jax import models, optim
from din_jax.devices import Placement, choose, is_sharded
from din_jax.pipeline import Packer
from din_jax.regularizers import Regularizer
from din_jax.step import init_state, score_step, state_shapes, train_step
from din_jax.store import Store

STEPS = 20
SHARE = 8  # samples a device, at most


def placement_of(count, *sharded):
    return Placement(tuple(jax.devices()[:count]), frozenset(sharded))


def whole(leaf, wanted):
    """The array as it is on one device: blocks end to end, without padding."""
    found = np.asarray(leaf)
    if is_sharded(leaf):
        found = found.reshape(-1, *found.shape[2:])
        assert not found[len(wanted) :].any(), "padding is zero"
        found = found[: len(wanted)]
    return found


def groups_of(store, rng, count):
    """Samples for each device, with repeats: different numbers of them, and for one device none."""
    sizes = rng.integers(SHARE // 2, SHARE + 1, count)
    if count > 1:
        sizes[rng.integers(count)] = 0
    repeated = rng.integers(0, len(store.split("train")), 4)
    others = rng.integers(0, len(store.split("train")), (count, SHARE))
    return [
        rng.permutation(np.concatenate([repeated, own]))[:size]
        for size, own in zip(sizes, others, strict=True)
    ]


def batch_pairs(store, rng, count):
    """Batches of the same samples packed for one device, and for `count`; of one shape each."""
    packer = Packer(store, max_history=4)
    groups = [groups_of(store, rng, count) for _ in range(STEPS)]
    totals = np.array([[packer.lengths(g).sum(axis=0) for g in of_batch] for of_batch in groups])
    shared = dict(zip(packer.axes, totals.max(axis=(0, 1)) + 8, strict=True))
    alone = dict(zip(packer.axes, totals.sum(axis=1).max(axis=0) + 8, strict=True))
    for of_batch in groups:
        shares = [packer.pack(group, SHARE, shared) for group in of_batch]
        yield (
            packer.pack(np.concatenate(of_batch), SHARE * count, alone),
            shares[0] if count == 1 else jax.tree.map(lambda *x: np.stack(x), *shares),
        )


class Trained:
    """A model that takes steps on some devices."""

    def __init__(self, store, config, placement, batch):
        self.placement = placement
        self.model = models.build(store.schema, config.model, placement.axis)
        self.optimizer = optim.build(
            config.optimizer,
            config.regularizer,
            64,
            self.model.tables,
            placement.axis,
            placement.sharded,
        )
        rng = np.random.default_rng(3)
        counts = {
            name: rng.integers(0, 5, spec.rows).astype(np.float32)
            for name, spec in self.model.tables.items()
        }
        self.regularizer = Regularizer(
            counts=counts if config.regularizer.name == "mba" else {},
            dropout=0.5 if config.regularizer.name == "dropout" else 0.0,
        )
        lazy = config.optimizer.lazy
        self.state = init_state(
            self.model, self.optimizer, batch, 1, lazy=lazy, placement=placement
        )
        self.shapes = state_shapes(
            self.model, self.optimizer, batch, lazy=lazy, placement=placement
        )
        self.step = train_step(self.model, self.optimizer, self.regularizer, placement)
        self.score = score_step(self.model, self.regularizer, placement)

    def take(self, batch):
        self.state, loss = self.step(self.state, batch)
        jax.block_until_ready((self.state, loss))
        return float(loss)


def assert_same_state(one, many, rtol):
    keys = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(one)]
    for key, a, b in zip(keys, jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        a = np.asarray(a)
        b = whole(b, a)
        size = np.linalg.norm(a.astype(np.float64))
        assert np.linalg.norm(a.astype(np.float64) - b) <= rtol * size, key


def assert_replicas_equal(state):
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not is_sharded(leaf):
            copies = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
            assert len(set(copies)) == 1, jax.tree_util.keystr(path)


def trained(state):
    return state.replace(opt_state=(), scratch={}, step=())


def saved(state):
    return state.replace(scratch={})


SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.5}
ADAM = {"optimizer.name": "adam", "optimizer.learning_rate": 0.01}
MBA = {"regularizer.name": "mba", "regularizer.rate": 0.1}
CLIP = {"optimizer.clip_norm": 0.05}
CASES = {
    "din-adam-mba": (
        (2, 8),
        ("replicated", "sharded"),
        {"model.name": "din", "model.activation": "dice", **ADAM, **MBA, **CLIP},
    ),
    "din-sgd-mba": (
        (4,),
        ("replicated", "sharded"),
        {"model.name": "din", "model.activation": "dice", **SGD, **MBA, **CLIP},
    ),
    "base-sgd": (
        (2, 8),
        ("sharded,category=replicated",),
        {"model.name": "base", "model.activation": "dice", **SGD, **CLIP},
    ),
    "base-adam-dense": (
        (4,),
        ("replicated", "sharded"),
        {
            "model.name": "base",
            "model.activation": "prelu",
            "optimizer.lazy": False,
            **ADAM,
            **CLIP,
        },
    ),
    "base-adagrad-dropout": (
        (4,),
        ("sharded",),
        {
            "model.name": "base",
            "model.activation": "dice",
            "optimizer.name": "adagrad",
            "optimizer.learning_rate": 0.05,
            "regularizer.name": "dropout",
        },
    ),
}


@pytest.mark.parametrize(
    ("case", "count", "placement"),
    [
        (case, m, p)
        for case, (counts, placements, _) in CASES.items()
        for m in counts
        for p in placements
    ],
)
def test_many_devices_are_one(planted_store, case, count, placement):
    config = small_config(planted_store, **CASES[case][2])
    config.model.hidden = config.model.attention.hidden = (8,)
    config.model.embedding_dim = 4
    store, rng = Store(planted_store), np.random.default_rng(count)
    pairs = list(batch_pairs(store, rng, count))
    tables = models.build(store.schema, config.model).tables
    one = Trained(store, config, placement_of(1), pairs[0][0])
    many = Trained(store, config, choose(count, placement, tables), pairs[0][1])
    by_rows = {"item"} if config.optimizer.lazy else set()
    assert many.state.scratch.keys() == by_rows, "tables go both ways"
    assert_same_state(saved(one.state), saved(many.state), rtol=0)
    for single, stacked in pairs:
        assert many.take(stacked) == pytest.approx(one.take(single), rel=1e-5)
        assert_replicas_equal(many.state)
    assert_same_state(trained(one.state), trained(many.state), rtol=1e-5)
    assert_same_state(saved(one.state), saved(many.state), rtol=1e-4)  # and the optimizer's
    z = np.asarray(many.score(many.state, stacked))[stacked.weight.reshape(-1) > 0]
    expected = np.asarray(one.score(one.state, single))[single.weight > 0]
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
