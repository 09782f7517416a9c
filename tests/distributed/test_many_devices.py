"""Several devices take the steps of one."""

import jax
import numpy as np
import pytest
from runs import tiny_config
from states import assert_replicas_equal, assert_same_state, saved, unsharded

from din_jax.data.packing import Packer
from din_jax.data.pretrained import Pretrained, pretrained_files
from din_jax.data.store import Store
from din_jax.distributed.devices import Placement, choose, is_sharded
from din_jax.models.registry import build_model
from din_jax.nn import present_rows as present_rows_module
from din_jax.optim.build import build_optimizer
from din_jax.optim.regularizer import Regularizer
from din_jax.step.average import average
from din_jax.step.pretrained import write_pretrained
from din_jax.step.score import score_step
from din_jax.step.settle import settle
from din_jax.step.state import init_state, row_owners, state_shapes
from din_jax.step.train import train_step

STEPS = 8


LOCAL_BATCH = 8  # samples a device, at most


def placement_of(count, *sharded):
    return Placement(tuple(jax.devices()[:count]), frozenset(sharded))


def groups_of(store, rng, count):
    """Samples for each device, with repeats: different numbers of them, and for one device none."""
    sizes = rng.integers(LOCAL_BATCH // 2, LOCAL_BATCH + 1, count)
    if count > 1:
        sizes[rng.integers(count)] = 0
    repeated = rng.integers(0, len(store.split("train")), 4)
    others = rng.integers(0, len(store.split("train")), (count, LOCAL_BATCH))
    return [
        rng.permutation(np.concatenate([repeated, own]))[:size]
        for size, own in zip(sizes, others, strict=True)
    ]


def batch_pairs(store, rng, count):
    """Batches of the same samples packed for one device, and for `count`; of one shape each."""
    packer = Packer(store, max_history=4)
    groups = [groups_of(store, rng, count) for _ in range(STEPS)]
    totals = np.array([[packer.lengths(g).sum(axis=0) for g in of_batch] for of_batch in groups])
    capacities = dict(zip(packer.axes, totals.max(axis=(0, 1)) + 8, strict=True))
    alone = dict(zip(packer.axes, totals.sum(axis=1).max(axis=0) + 8, strict=True))
    for of_batch in groups:
        local = packer.pack(of_batch, LOCAL_BATCH, [capacities] * count)
        yield (
            packer.pack([np.concatenate(of_batch)], LOCAL_BATCH * count, [alone])[0],
            local[0] if count == 1 else jax.tree.map(lambda *x: np.stack(x), *local),
        )


class Trained:
    """A model that takes steps on some devices."""

    def __init__(self, store, config, placement, batch):
        self.placement = placement
        self.model = build_model(store.schema, config.model, placement.axis)
        self.optimizer = build_optimizer(
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
            dropout=0.5
            if config.regularizer.name == "dropout"
            else config.regularizer.behavior_dropout,
            behaviors_only=config.regularizer.behavior_dropout > 0,
        )
        lazy = config.optimizer.lazy
        drawn = {
            name: Pretrained("drawn", *drawn_vectors(rng, self.model.tables[name]), 0.5, 0.5)
            for name in pretrained_files(config.model.pretrained, self.model.tables)
        }
        self.fixed = {name: (vectors.rows, vectors.vectors) for name, vectors in drawn.items()}
        options = {
            "lazy": lazy,
            "averages": bool(config.train.ema_epochs),
            "fixed": drawn,
            "placement": placement,
        }
        self.state = init_state(self.model, self.optimizer, batch, 1, **options)
        self.state = write_pretrained(self.state, self.fixed, placement)
        every = slice(None)
        self.first = jax.tree.map(lambda leaf: of_rows(leaf, every), self.state.opt_state)
        self.shapes = state_shapes(self.model, self.optimizer, batch, **options)
        self.step = train_step(self.model, self.optimizer, self.regularizer, placement)
        self.score = score_step(self.model, self.regularizer, placement)

    def take(self, batch):
        self.state, loss = self.step(self.state, batch)
        jax.block_until_ready((self.state, loss))
        return float(loss)

    def assert_fixed(self):
        """Fixed rows, and the optimizer's state of them, are to the last bit as they began."""
        owners = row_owners(self.shapes, self.optimizer).opt_state
        trees = (owners, self.first, self.state.opt_state)
        leaves = list(zip(*map(jax.tree.leaves, trees), strict=True))
        for name, (rows, vectors) in self.fixed.items():
            np.testing.assert_array_equal(of_rows(self.state.tables[name], rows), vectors)
            for old, new in ((old, new) for owner, old, new in leaves if owner == name):
                np.testing.assert_array_equal(of_rows(new, rows), old[rows])


def of_rows(leaf, rows):
    """Rows of an array, which may be sharded."""
    values = np.asarray(leaf)
    values = values.reshape(-1, *values.shape[2:]) if is_sharded(leaf) else values
    return values[rows] if values.ndim else values


def drawn_vectors(rng, spec):
    """Half of a table's rows, and vectors for them."""
    rows = np.flatnonzero(rng.random(spec.rows) < 0.5).astype(np.int32)
    return rows, rng.standard_normal((len(rows), spec.dim)).astype(np.float32)


def trained(state):
    return state.replace(opt_state=(), scratch={}, step=())


SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.5}


ADAM = {"optimizer.name": "adam", "optimizer.learning_rate": 0.01}


MBA = {"regularizer.name": "mba", "regularizer.rate": 0.1}


CLIP = {"optimizer.clip_norm": 0.05}


FIXED = {"model.pretrained": "item=drawn,hour=drawn", "model.pretrained_trainable": False}


CASES = {
    "din-adam-mba": (
        (2, 8),
        ("replicated", "sharded"),
        {"model.name": "din", "model.activation": "dice", **ADAM, **MBA, **CLIP, **FIXED},
    ),
    "din-sgd-mba": (
        (4,),
        ("replicated", "sharded"),
        {"model.name": "din", "model.activation": "dice", **SGD, **MBA, **CLIP},
    ),
    "din-adam-catch-up": (
        (4,),
        ("replicated", "sharded"),
        {
            "model.name": "din",
            "model.activation": "dice",
            "optimizer.lazy": "catch_up",
            "regularizer.behavior_dropout": 0.3,
            **ADAM,
            **MBA,
            **CLIP,
            **FIXED,
        },
    ),
    "din-blocks": (
        (4,),
        ("replicated",),
        {"model.name": "din", "model.activation": "dice", "model.attention.block": 5, **SGD},
    ),
    "din-options": (
        (2,),
        ("sharded",),
        {
            "model.preset": "recommended",
            "model.bias_fields": ("item", "hour"),
            # Gradients that nearly cancel, as through a softmax, are no more than rounding errors.
            "model.attention.normalize": "sqrt",
            "model.embedding_stddev": 0.5,
            **SGD,
            **MBA,
            **CLIP,
        },
    ),
    "base-sgd": (
        (2,),
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
            **FIXED,
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
            **FIXED,
        },
    ),
}


FAST = {("din-adam-mba", 2, "sharded")}


@pytest.mark.parametrize(
    ("case", "count", "placement"),
    [
        pytest.param(case, m, p, marks=() if (case, m, p) in FAST else pytest.mark.long)
        for case, (counts, placements, _) in CASES.items()
        for m in counts
        for p in placements
        if (m, p) != (8, "replicated")  # as with 2, and 8 sharded
    ],
)
def test_many_devices_are_one(planted_store, case, count, placement):
    config = tiny_config(planted_store, **CASES[case][2])
    state = train_on_one_and_many(Store(planted_store), config, count, placement)
    sparse = {"item", "item-field-bias"} if config.optimizer.lazy else set()
    sparse &= state.tables.keys()
    assert state.scratch.keys() == sparse, "large tables are updated sparsely, the others densely"


@pytest.mark.long
@pytest.mark.parametrize("sparse_above", [0, 1000])
def test_many_devices_are_one_with_every_kind_of_field(rich, monkeypatch, sparse_above):
    """Several-valued fields, two sequences on one table, tables of fewer rows than devices."""
    monkeypatch.setattr(present_rows_module, "SPARSE_ABOVE", sparse_above)
    keys = {"model.item_bias": "film", "model.activation": "dice", "regularizer.name": "difacto"}
    config = tiny_config(rich[0].path, **keys, **SGD)
    train_on_one_and_many(rich[0], config, 8, "sharded,hour=replicated")


@pytest.mark.long
@pytest.mark.parametrize("name", ["wide_deep", "deepfm"])
def test_many_devices_are_one_for_models_with_tables_beside(rich, name):
    """Weights and crosses, sharded too, with dropout of ids and of pairs."""
    keys = {
        "model.name": name,
        "model.activation": "prelu",
        "model.wide.buckets": 300,
        "model.wide.ad_values": 2,
        "regularizer.name": "dropout",
    }
    config = tiny_config(rich[0].path, **keys, **SGD)
    train_on_one_and_many(rich[0], config, 4, "sharded,hour=replicated")


@pytest.mark.long
@pytest.mark.parametrize("placement", ["replicated", "sharded", "sharded,item=replicated"])
def test_many_devices_whose_rows_catch_up_are_dense_adam_on_one(planted_store, placement):
    """With MBA, clipping and averages, over 64 steps, of which most rows miss most."""
    keys = {"model.name": "base", "model.activation": "prelu", **ADAM, **MBA, **CLIP}
    keys |= {"train.ema_epochs": 1.0}
    config = tiny_config(planted_store, **keys, **{"optimizer.lazy": False})
    store, rng = Store(planted_store), np.random.default_rng(1)
    pairs = [pair for _ in range(8) for pair in batch_pairs(store, rng, 4)]
    tables = build_model(store.schema, config.model).tables
    dense = Trained(store, config, placement_of(1), pairs[0][0])
    config.optimizer.lazy = "catch_up"
    many = Trained(store, config, choose(4, placement, tables), pairs[0][1])
    settle_all = settle(many.optimizer, many.placement)
    for i, (single, stacked) in enumerate(pairs):
        assert many.take(stacked) == pytest.approx(dense.take(single), rel=1e-5)
        if i in (20, 40):
            many.state = average(2, many.placement)(settle_all(many.state))
            dense.state = average(2)(dense.state)
        assert_replicas_equal(many.state)
    last_step = unsharded(many.state.opt_state.last_step["item"], dense.state.tables["item"])
    assert len(set(last_step)) > 20, "rows of many last steps"
    many.state = settle_all(many.state)
    assert_replicas_equal(many.state)
    assert_same_state(trained(dense.state), trained(many.state), rtol=1e-5)


def train_on_one_and_many(store, config, count, placement):
    """Takes steps on one device and on `count`, and compares; returns the state on these."""
    config.model.hidden = config.model.attention.hidden = (8,)
    rng = np.random.default_rng(count)
    pairs = list(batch_pairs(store, rng, count))
    tables = build_model(store.schema, config.model).tables
    one = Trained(store, config, placement_of(1), pairs[0][0])
    many = Trained(store, config, choose(count, placement, tables), pairs[0][1])
    assert_same_state(saved(one.state), saved(many.state), rtol=1e-6)
    for single, stacked in pairs:
        assert many.take(stacked) == pytest.approx(one.take(single), rel=1e-5)
        assert_replicas_equal(many.state)
    one.assert_fixed()
    many.assert_fixed()
    assert_same_state(trained(one.state), trained(many.state), rtol=1e-5)
    assert_same_state(saved(one.state), saved(many.state), rtol=1e-4)  # and the optimizer's
    z = np.asarray(many.score(many.state, stacked))[stacked.weight.reshape(-1) > 0]
    expected = np.asarray(one.score(one.state, single))[single.weight > 0]
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    return many.state
