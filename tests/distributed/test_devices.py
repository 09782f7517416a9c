"""Placements, shards of batches and blocks of tables."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from runs import small_config

from din_jax.data.source import BatchSource, Shards
from din_jax.distributed import devices
from din_jax.distributed.devices import Placement, choose
from din_jax.errors import DinError
from din_jax.nn import embedding
from din_jax.nn.embedding import Lookup, TableSpec, init_tables
from din_jax.optim.clipping import clip_by_global_norm
from din_jax.optim.regularizer import drop_ids
from din_jax.training.run import open_run


def test_blocks_of_a_table_have_the_values_of_the_whole(monkeypatch):
    monkeypatch.setattr(embedding, "_ROWS_AT_ONCE", 16)
    for rows in (5, 97):
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


@pytest.mark.long
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
    config.train.ema_epochs = 1.0  # one more copy of the weights
    text = refusal(on_each(5, 17))
    assert "use at least 5 devices" in text and "config.train.ema_epochs=0" in text
    config.train.ema_epochs = 0.0
    config.optimizer.lazy = "catch_up"  # also each row's last step
    assert "use at least 6 devices" in refusal(on_each(5, 2) - 1)
    config.optimizer.lazy = True
    # A filter's ids are kept whole on every device.
    config.regularizer.name = "filter"
    assert "use at least 6 devices" in refusal(on_each(5, 0) + rows["item"] - 1)
    monkeypatch.undo()
    text = refusal(on_each(5, 0))
    assert "this host has too little memory" in text
    assert "at least" not in text
