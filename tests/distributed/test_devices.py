"""Several devices, and several processes, give what one gives."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from runs import small_config

from din_jax import cli
from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.data.packing import Packer
from din_jax.data.source import BatchSource, Shards
from din_jax.data.store import Store
from din_jax.distributed import devices, processes
from din_jax.distributed.devices import Placement, choose, is_sharded
from din_jax.errors import DinError, Interrupted
from din_jax.models.registry import build_model
from din_jax.nn import embedding, present_rows as present_rows_module
from din_jax.nn.embedding import Lookup, TableSpec, init_tables
from din_jax.optim.build import build_optimizer
from din_jax.optim.clipping import clip_by_global_norm
from din_jax.optim.regularizer import Regularizer, drop_ids
from din_jax.step.score import score_step
from din_jax.step.state import init_state, state_shapes
from din_jax.step.train import train_step
from din_jax.training.loop import train
from din_jax.training.run import open_run
from din_jax.training.trained import reopen

ROOT = Path(__file__).parents[2]
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
        shares = packer.pack(of_batch, SHARE, [shared] * count)
        yield (
            packer.pack([np.concatenate(of_batch)], SHARE * count, [alone])[0],
            shares[0] if count == 1 else jax.tree.map(lambda *x: np.stack(x), *shares),
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
    "din-blocks": (
        (4,),
        ("replicated",),
        {"model.name": "din", "model.activation": "dice", "model.attention.block": 5, **SGD},
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
    state = train_on_one_and_many(Store(planted_store), config, count, placement)
    by_rows = {"item"} if config.optimizer.lazy else set()
    assert state.scratch.keys() == by_rows, "tables go both ways"


@pytest.mark.parametrize("rows_above", [0, 1000])
def test_many_devices_are_one_with_every_kind_of_field(rich, monkeypatch, rows_above):
    """Several-valued fields, two sequences on one table, tables of fewer rows than devices."""
    monkeypatch.setattr(present_rows_module, "SPARSE_ABOVE", rows_above)
    keys = {"model.item_bias": "film", "model.activation": "dice", "regularizer.name": "difacto"}
    config = small_config(rich[0].path, **keys, **SGD)
    train_on_one_and_many(rich[0], config, 8, "sharded,hour=replicated")


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
    config = small_config(rich[0].path, **keys, **SGD)
    train_on_one_and_many(rich[0], config, 4, "sharded,hour=replicated")


def train_on_one_and_many(store, config, count, placement):
    """Takes steps on one device and on `count`, and compares; returns the state on these."""
    config.model.hidden = config.model.attention.hidden = (8,)
    config.model.embedding_dim = 4
    rng = np.random.default_rng(count)
    pairs = list(batch_pairs(store, rng, count))
    tables = build_model(store.schema, config.model).tables
    one = Trained(store, config, placement_of(1), pairs[0][0])
    many = Trained(store, config, choose(count, placement, tables), pairs[0][1])
    assert_same_state(saved(one.state), saved(many.state), rtol=1e-6)
    for single, stacked in pairs:
        assert many.take(stacked) == pytest.approx(one.take(single), rel=1e-5)
        assert_replicas_equal(many.state)
    assert_same_state(trained(one.state), trained(many.state), rtol=1e-5)
    assert_same_state(saved(one.state), saved(many.state), rtol=1e-4)  # and the optimizer's
    z = np.asarray(many.score(many.state, stacked))[stacked.weight.reshape(-1) > 0]
    expected = np.asarray(one.score(one.state, single))[single.weight > 0]
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    return many.state


def test_blocks_of_a_table_have_the_values_of_the_whole(monkeypatch):
    monkeypatch.setattr(embedding, "_ROWS_AT_ONCE", 16)
    for rows in (5, 50, 97):
        specs = {"t": TableSpec(rows, 3, nn.initializers.normal(1.0))}
        expected = np.asarray(init_tables(specs, jax.random.key(7))["t"])
        for count in (2, 8):

            def block(m, specs=specs, size=-(-rows // count)):
                return init_tables(specs, jax.random.key(7), blocks={"t": size}, block=m)["t"]

            found = np.concatenate(jax.jit(jax.vmap(block))(np.arange(count)))
            np.testing.assert_allclose(found[:rows], expected, rtol=1e-6)  # but for rounding
            assert not found[rows:].any()


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_by_global_norm_is_that_of_the_whole_gradient(max_norm):
    rng = np.random.default_rng(2)
    params = jnp.asarray(rng.normal(size=5), jnp.float32)
    tables = {
        "split": jnp.asarray(rng.normal(size=(12, 2)), jnp.float32),
        "whole": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32),
    }
    tree = {"params": params, "tables": tables}
    expected, _ = optax.clip_by_global_norm(max_norm).update(tree, optax.EmptyState())

    clip = clip_by_global_norm(max_norm, devices.AXIS, {"split"})
    axes = {"params": None, "tables": {"split": 0, "whole": None}}
    blocks = {**tree, "tables": {**tables, "split": tables["split"].reshape(4, 3, 2)}}
    found = jax.vmap(
        lambda updates: clip.update(updates, optax.EmptyState())[0],
        in_axes=(axes,),
        axis_name=devices.AXIS,
    )(blocks)
    for m in range(4):
        np.testing.assert_allclose(found["params"][m], expected["params"], rtol=1e-6)
    split = found["tables"]["split"].reshape(12, 2)
    np.testing.assert_allclose(split, expected["tables"]["split"], rtol=1e-6)


def test_clipping_scales_alike_where_devices_differ_in_the_last_bits():
    """As they may on a GPU, which sums repeated ids in any order: nothing else is to differ."""
    rng = np.random.default_rng(2)
    params = jnp.asarray(rng.normal(size=50), jnp.float32)
    rows = rng.normal(size=(30, 2)) * (1 + 1e-6 * rng.normal(size=(4, 1, 1)))
    tree = {"params": params, "tables": {"whole": jnp.asarray(rows, jnp.float32)}}
    clip = clip_by_global_norm(0.5, devices.AXIS)
    found = jax.vmap(
        lambda updates: clip.update(updates, optax.EmptyState())[0],
        in_axes=({"params": None, "tables": {"whole": 0}},),
        axis_name=devices.AXIS,
    )(tree)
    for m in range(4):
        np.testing.assert_array_equal(found["params"][m], found["params"][0])


def test_padding_does_not_change_what_is_dropped():
    def dropped(count):
        ids = jnp.ones(count, jnp.int32)
        lookups = {"t": {"history.t": Lookup(ids, jnp.arange(count) < 30)}}
        return np.asarray(drop_ids(lookups, jax.random.key(1), 0.5)["t"]["history.t"].mask)

    short, long = dropped(32), dropped(64)
    assert 5 < short.sum() < 25
    np.testing.assert_array_equal(short, long[:32])
    assert not long[32:].any()


def test_a_batch_is_split_evenly_and_read_only_where_it_is_used(rich):
    store = rich[0]
    for shuffle in (True, False):
        alone = BatchSource(store, "train", 24, seed=3, shuffle=shuffle)
        split = BatchSource(store, "train", 24, seed=3, shuffle=shuffle, shards=Shards(4, range(4)))
        second = BatchSource(
            store, "train", 24, seed=3, shuffle=shuffle, shards=Shards(4, range(2, 4))
        )
        assert len(split) == len(alone) == 3
        for i in range(3):
            one, four, two = alone[i], split[i], second[i]
            assert alone.real_samples(i) == one.weight.sum()
            for name in ("label", "weight", "user"):
                np.testing.assert_array_equal(
                    getattr(four, name).reshape(-1), getattr(one, name), strict=True
                )
            jax.tree.map(np.testing.assert_array_equal, two, jax.tree.map(lambda x: x[2:], four))
            views = four.sequences["views"]
            real = views.segment_ids < 6
            whole = one.sequences["views"]
            np.testing.assert_array_equal(
                views.fields["film"][real], whole.fields["film"][whole.segment_ids < 24]
            )
            np.testing.assert_array_equal(
                (views.segment_ids + 6 * np.arange(4)[:, None])[real],
                whole.segment_ids[whole.segment_ids < 24],
            )
            genres = views.fields["genres"]
            assert (genres.segment_ids[genres.segment_ids < views.segment_ids.shape[1]] >= 0).all()
        assert four.weight.sum() == 12
        assert (four.weight.sum(axis=1) == [6, 6, 0, 0]).all(), "devices without a sample"
    with pytest.raises(DinError, match=r"batch_size=24: a batch is split .* 20 or 25"):
        BatchSource(store, "train", 24, shards=Shards(5, range(5)))


def test_devices_and_placements_are_read_from_the_config():
    tables = ("item", "category")
    assert choose(1, "sharded", tables) == Placement(tuple(jax.devices()[:1]))
    assert choose("all", "replicated", tables).count == 8
    for text, sharded in {
        "replicated": set(),
        "sharded": {"item", "category"},
        "item=sharded": {"item"},
        "sharded, category=replicated": {"item"},
    }.items():
        assert choose(4, text, tables).sharded == sharded
    for text in ("shard", "item=split", "shop=sharded", "item"):
        for count in (1, 2):
            with pytest.raises(DinError, match=r"config.placement has .*: item, category"):
                choose(count, text, tables)
    with pytest.raises(DinError, match=r"config.devices=9: there are 8 cpu devices"):
        choose(9, "replicated", tables)


@pytest.mark.parametrize("wanted", [0, "some", 1.5])
def test_other_numbers_of_devices_are_refused(planted_store, wanted):
    config = small_config(planted_store)
    config.devices = wanted
    with pytest.raises(DinError, match=r"config.devices=.*expected a whole number from 1 on"):
        open_run(config)


def test_tables_that_do_not_fit_are_refused_before_they_are_made(planted_store, monkeypatch):
    config = small_config(planted_store, **{"regularizer.name": "mba", "model.embedding_dim": 16})
    run = open_run(config)
    rows = {name: spec.rows for name, spec in run.model.tables.items()}
    scratch = run.state_shapes().scratch

    def on_each(count, extra):
        """Of weights, Adam's two moments, n_j, and a scratch if it goes by rows."""
        row = {name: 4 * (16 * 3 + extra + (name in scratch)) for name in rows}
        return sum(row[name] * -(-rows[name] // count) for name in rows)

    def refusal(memory):
        monkeypatch.setattr(devices, "memory_bytes", lambda _: memory)
        with pytest.raises(DinError) as refused:
            open_run(config)
        return str(refused.value)

    monkeypatch.setattr(devices, "simulated", lambda _: False)
    text = refusal(on_each(3, 1))
    item = rows["item"] * 4 * (16 * 3 + 1 + ("item" in scratch))
    assert f"take {on_each(1, 1) / 1e9:.3g} GB on each device, which has" in text
    assert f"which has {on_each(3, 1) / 1e9:.3g} GB" in text
    assert f"'item' of {rows['item']:,} rows takes {item / 1e9:.3g} GB" in text
    assert "use at least 3 devices, with config.placement='sharded', or" in text
    # A byte less, and the last block's padding counts.
    assert "use at least 4 devices" in refusal(on_each(3, 1) - 1)
    assert "use config.optimizer.name=" in (text := refusal(10))
    assert "at least" not in text, "no number of devices is enough"

    config.devices = 4
    assert refusal(on_each(4, 1)).endswith("of it: config.placement='sharded' fits")
    config.placement = "sharded"
    assert open_run(config).placement.sharded == rows.keys()
    assert "use at least 5 devices" in refusal(on_each(5, 1))
    # A filter's ids are kept whole on every device.
    config.regularizer.name = "filter"
    assert "use at least 6 devices" in refusal(on_each(5, 0) + rows["item"] - 1)
    monkeypatch.undo()
    text = refusal(on_each(5, 0))
    assert "this host has too little memory" in text
    assert "at least" not in text


def test_a_checkpoint_goes_from_any_devices_to_any_others(planted_store, tmp_path):
    def opened(count, placement):
        config = small_config(planted_store, **{"optimizer.name": "adagrad"})
        config.model.hidden = config.model.attention.hidden = (8,)
        config.devices, config.placement = count, placement
        return open_run(config)

    ways = [(1, "replicated"), (2, "replicated"), (2, "sharded"), (8, "sharded")]
    runs = [opened(*way) for way in ways]
    first = runs[0].init()
    meta = compatibility.describe(runs[0].config, runs[0].store.schema, runs[0].source)
    meta |= {"best": None}
    runs[0].checkpoints(tmp_path / "0").save("last", first, meta)
    checksums = set()
    for i, saver in enumerate(runs):
        if i:
            state, _ = saver.checkpoints(tmp_path / "0").restore("last", saver.state_shapes())
            saver.checkpoints(tmp_path / str(i)).save("last", state, meta)
        for restorer in runs:
            restored, found = restorer.checkpoints(tmp_path / str(i)).restore(
                "last", restorer.state_shapes()
            )
            assert_same_state(saved(first), saved(restored), rtol=0)
            assert_replicas_equal(restored)
            shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), restored.scratch)
            assert shapes == jax.tree.map(
                lambda leaf: (leaf.shape, leaf.sharding), restorer.init().scratch
            )
        checksums.add(json.dumps(found["checksums"], sort_keys=True))
    assert len(checksums) == 1, "a checksum does not depend on how a state lies"


def test_one_copy_is_saved_where_devices_differ_in_the_last_bits(planted_store, tmp_path):
    """As those of a replicated table may on GPUs, which sum repeated ids in any order."""
    run = open_run(small_config(planted_store, devices=4))
    state, place = run.init(), run.placement
    copies = [np.asarray(state.tables["item"]) * np.float32(1 + 1e-7 * m) for m in range(4)]
    item = place.assemble(copies[0].shape, lambda m: copies[m], sharded=False)
    meta = compatibility.describe(run.config, run.store.schema, run.source) | {"best": None}
    run.checkpoints(tmp_path).save(
        "last", state.replace(tables=state.tables | {"item": item}), meta
    )
    restored, _ = run.checkpoints(tmp_path).restore("last", run.state_shapes())
    assert_replicas_equal(restored)
    np.testing.assert_array_equal(restored.tables["item"], copies[0])


def test_a_run_on_several_devices_ends_as_on_one(planted_store, tmp_path):
    config = small_config(planted_store, **{"train.epochs": 1, "eval.batch_size": 1000})
    one = train(config, tmp_path / "one")
    config.devices, config.placement = 3, "sharded"
    with pytest.raises(DinError, match=r"config.train.batch_size=64: .* 63 or 66"):
        train(config, tmp_path / "three")
    config.devices = 4
    four = train(config, tmp_path / "four")
    assert four.metrics == pytest.approx(one.metrics, rel=1e-3)
    # The same weights scored on other devices: the same metrics but for rounding.
    for on in (1, 2, "all"):
        run = reopen(tmp_path / "four", devices=on)
        state, _ = run.checkpoints(tmp_path / "four").restore("best", run.state_shapes())
        evaluator = run.evaluator("test")
        again = evaluator.metrics(evaluator.probabilities(state))
        assert again == pytest.approx(four.metrics, rel=1e-6)
    for on, message in (
        (0, "0: expected a whole number from 1 on"),
        ("some", "some: expected a whole"),
        (9, "9: there are 8 cpu devices"),
    ):
        with pytest.raises(DinError, match=f"^--devices={message}"):
            reopen(tmp_path / "four", devices=on)


def test_what_devices_exchange_does_not_grow_with_the_table(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from exchange import compiled_step, formula, sent_bytes

    found = {}
    for placement in ("replicated", "sharded"):
        for rows in (100_000, 10_000_000):
            text, behaviors, params = compiled_step(rows, placement, 4, 64)
            found[placement, rows] = sent_bytes(text, 4)
        assert found[placement, 100_000] == found[placement, 10_000_000]
        total = sum(found[placement, 100_000].values())
        expected = formula(placement, 4, 64, behaviors, params)
        # Dice's sums and the loss come on top.
        assert expected < total < 1.05 * expected
    answers = found["sharded", 100_000]["reduce-scatter"]
    assert answers == 0.75 * (64 + behaviors) * 4 * 16
    assert found["replicated", 100_000]["reduce-scatter"] == 0

    # As a whole a replicated table sends its gradient.
    text, *_ = compiled_step(100_000, "replicated", 4, 64, lazy=False)
    total, by_rows = (sum(f.values()) for f in (sent_bytes(text, 4), found["replicated", 100_000]))
    assert total - by_rows == formula(
        "replicated", 4, 64, behaviors, params, whole=100_000
    ) - formula("replicated", 4, 64, behaviors, params)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def two_processes(arguments):
    """Starts the same command twice, as processes that train together."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
                "JAX_NUM_CPU_DEVICES": "1",
            },
        )
        for i in range(2)
    ]


_LOSSES = """
import json, os, sys
from pathlib import Path
from ml_collections import ConfigDict
import jax
from din_jax.distributed import devices
from din_jax.distributed import processes
from din_jax.training.run import open_run
from din_jax.training.trained import reopen
from din_jax.training.loop import train
from din_jax.errors import DinError
from configs.quickstart import get_config

config = get_config()
config.update_from_flattened_dict(json.loads(sys.argv[1]))
run = open_run(config)
folder, index = Path(sys.argv[2]), os.environ["JAX_PROCESS_ID"]
for wrong in (folder / index, folder / "file"):
    try:
        processes.check_shared(wrong, "--workdir")
    except DinError as error:
        print(error)
processes.check_shared(folder / "both", "--workdir")
step, state = run.step(), run.init()
for i in range(20):
    state, loss = step(state, run.source[i])
    print(float(jax.block_until_ready(loss)))
"""


def test_two_processes_have_the_losses_of_one_and_see_one_folder(planted_store, tmp_path):
    keys = {
        "data.store": str(planted_store),
        "data.prepare": "",
        "data.max_history": 2,
        "train.batch_size": 64,
        "regularizer.name": "mba",
        "optimizer.clip_norm": 0.1,
        "placement": "item=sharded",
    }
    config = small_config(planted_store, **keys)
    run = open_run(config)
    step, state = run.step(), run.init()
    expected = []
    for i in range(20):
        state, loss = step(state, run.source[i])
        expected.append(float(loss))
    (tmp_path / "file").touch()
    started = two_processes(["-c", _LOSSES, json.dumps(keys | {"devices": 2}), tmp_path])
    for i, process in enumerate(started):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        unseen = "what process 0 writes there is not seen by process 1"
        assert f"--workdir={tmp_path / str(i)}: {unseen}" in out
        assert f"--workdir={tmp_path / 'file'}: process 0 can't write there" in out
        losses = [float(line) for line in out.splitlines() if re.fullmatch(r"[\d.e-]+", line)]
        assert losses == pytest.approx(expected, rel=1e-5)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["both", "file"]


_EVALUATIONS = """
import os, sys
import eval
from din_jax import cli

eval.main()
sys.argv.append("--split=" + ("test", "train")[int(os.environ["JAX_PROCESS_ID"])])
sys.exit(cli.guarded(eval.main, sys.argv))
"""


def test_a_run_outlives_a_process_that_is_killed(planted_store, tmp_path):
    config = small_config(planted_store, **{"train.epochs": 3})
    one = train(config, tmp_path / "one")
    workdir = tmp_path / "two"
    command = [
        "train.py",
        "--config=configs/quickstart.py",
        f"--config.data.store={planted_store}",
        "--config.data.prepare=",
        "--config.data.max_history=4",
        "--config.train.batch_size=64",
        "--config.train.epochs=3",
        "--config.devices=all",
        f"--workdir={workdir}",
    ]
    first, second = two_processes(command)
    until = time.monotonic() + 240
    while not list(workdir.glob("checkpoints/last/94")):  # the first epoch's
        assert time.monotonic() < until and first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, err = first.communicate(timeout=60)
    second.communicate()
    assert time.monotonic() - killed < 60
    assert first.returncode == 1
    assert "error: another process of this run failed or was killed" in err
    assert "Traceback" not in err

    started = two_processes(command)
    results = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    (out, _), (quiet, _) = results
    assert re.search(r"the run goes on at step (94|188) of 282", out)
    assert "test metrics" in out
    assert "step" not in quiet and "metrics" not in quiet, "only the first one prints"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    test = [line for line in lines if line["split"] == "test"]
    assert len(test) == 1
    for name, value in one.metrics.items():
        assert test[0][name] == pytest.approx(value, rel=1e-3)
    assert [line["step"] for line in lines if line["split"] == "validation"] == [94, 188, 282]
    started = two_processes(["-c", _EVALUATIONS, f"--workdir={workdir}", "--devices=all"])
    (evaluated, err), (_, err2) = (process.communicate(timeout=300) for process in started)
    table = out[out.index("test metrics") :]
    assert evaluated.endswith(table)  # Gloo prints before it
    for i, errors in enumerate((err, err2)):
        split = ("test", "train")[i]
        assert f"error: the processes differ in --split: this one has {split}" in errors
    # One process goes on from, or scores, what two have saved.
    run = reopen(workdir, devices=1)
    state, _ = Checkpoints(workdir).restore("last", run.state_shapes())
    assert int(state.step) == 282


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"count": 2}, "count=2, but no config.processes.coordinator: give HOST:PORT"),
        ({"index": 0}, "index=0, but no config.processes.coordinator: give HOST:PORT"),
        ({"coordinator": "host"}, "coordinator='host': expected HOST:PORT"),
        ({"coordinator": "host:0"}, "coordinator='host:0': expected HOST:PORT of process 0, with"),
        ({"coordinator": "host:65536", "count": 2, "index": 1}, "coordinator='host:65536': exp"),
        ({"coordinator": "host:1", "count": 0, "index": 0}, "count=0: expected at least 1"),
        ({"coordinator": "host:1"}, "count='': expected a whole number"),
        ({"coordinator": "host:1", "count": 2}, "index='': expected a whole number"),
        ({"coordinator": "host:1", "count": 2, "index": 2}, "index=2: expected 0 to 1"),
        (
            {"coordinator": "localhost:9", "count": 2, "index": 1, "join_timeout_s": 1},
            "coordinator='localhost:9': process 0 was not reached in 1 s",
        ),
    ],
)
def test_processes_that_cannot_come_together_say_why(planted_store, keys, message):
    config = small_config(planted_store, **{f"processes.{k}": v for k, v in keys.items()})
    with pytest.raises(DinError, match=re.escape(f"config.processes.{message}")):
        open_run(config)
    assert jax.process_count() == 1


@pytest.mark.parametrize("seen", [False, True])
def test_every_process_waits_for_the_embedded_data_set(planted_store, tmp_path, monkeypatch, seen):
    """Also one that sees it already: the first one waits for all."""
    path, waits = tmp_path / "store", []
    if seen:
        path.symlink_to(planted_store)

    def first_process_makes_it(name):
        waits.append(name)
        if not seen:
            path.symlink_to(planted_store)

    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "wait_for_all", first_process_makes_it)
    run = open_run(small_config(path, **{"data.prepare": str(path)}))
    assert run.store.fingerprint == Store(planted_store).fingerprint
    assert len(waits) == 1


@pytest.mark.parametrize("variable", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_an_environment_without_a_coordinator_is_refused(planted_store, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DinError, match=f"{variable}=1, but no config.processes.coordinator"):
        open_run(small_config(planted_store))


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (DinError("no"), [1]),
        (KeyboardInterrupt(), [130]),
        (Interrupted("saved", signal.SIGINT), []),  # all stop together
    ],
)
def test_a_process_that_stops_without_the_others_leaves_at_once(monkeypatch, error, left):
    def main():
        raise error

    found = []
    monkeypatch.setattr(processes, "leave", found.append)
    assert cli.guarded(main, []) in (1, 130)
    assert found == left


def test_processes_with_different_flags_are_stopped(planted_store, tmp_path):
    started = two_processes(
        [
            "-c",
            "import sys, os; sys.argv.append('--config.seed=' + os.environ['JAX_PROCESS_ID']);"
            "import runpy; runpy.run_path('train.py', run_name='__main__')",
            "--config=configs/quickstart.py",
            f"--config.data.store={planted_store}",
            "--config.data.prepare=",
            "--config.devices=all",
            f"--workdir={tmp_path / 'run'}",
        ]
    )
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "error: the processes differ in config.seed: this one has" in err
    assert not (tmp_path / "run").exists()
