"""Runs and checkpoints on several devices."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_config
from states import assert_replicas_equal, assert_same_state, saved

from din_jax.checkpoint import compatibility
from din_jax.errors import DinError
from din_jax.training.loop import train
from din_jax.training.run import open_run
from din_jax.training.trained import reopen

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_a_checkpoint_goes_from_any_devices_to_any_others(planted_store, tmp_path):
    def opened(count, placement):
        config = tiny_config(planted_store, **{"optimizer.name": "adagrad", "model.name": "base"})
        config.devices, config.placement = count, placement
        return open_run(config)

    ways = [(1, "replicated"), (2, "replicated"), (4, "sharded")]
    runs = [opened(*way) for way in ways]
    states = [run.init() for run in runs]
    first = states[0]
    meta = compatibility.describe(runs[0].config, runs[0].store.schema, runs[0].source)
    meta |= {"best": None}
    runs[0].checkpoints(tmp_path / "0").save("last", first, meta)
    checksums = set()
    for i, saver in enumerate(runs):
        if i:
            state, _ = saver.checkpoints(tmp_path / "0").restore("last", saver.state_shapes())
            saver.checkpoints(tmp_path / str(i)).save("last", state, meta)
        for restorer, like in zip(runs, states, strict=True):
            restored, found = restorer.checkpoints(tmp_path / str(i)).restore(
                "last", restorer.state_shapes()
            )
            assert_same_state(saved(first), saved(restored), rtol=0)
            assert_replicas_equal(restored)
            shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), restored.scratch)
            assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.sharding), like.scratch)
        checksums.add(json.dumps(found["checksums"], sort_keys=True))
    assert len(checksums) == 1, "a checksum does not depend on the placement"


def test_one_copy_is_saved_where_devices_differ_in_the_last_bits(planted_store, tmp_path):
    """As those of a replicated table may on GPUs, which sum repeated ids in any order."""
    run = open_run(tiny_config(planted_store, devices=4))
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


@pytest.mark.long
def test_a_run_on_several_devices_ends_as_on_one(planted_store, tmp_path):
    config = tiny_config(planted_store, **{"train.epochs": 1, "eval.batch_size": 1000})
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
        assert again == pytest.approx(four.metrics, rel=1e-4)
    for on, message in (
        (0, "0: expected a whole number from 1 on"),
        ("some", "some: expected a whole"),
        (9, "9: there are 8 cpu devices"),
    ):
        with pytest.raises(DinError, match=f"^--devices={message}"):
            reopen(tmp_path / "four", devices=on)


@pytest.mark.long
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

    # With dense updates a replicated table's whole gradient is summed.
    text, *_ = compiled_step(100_000, "replicated", 4, 64, lazy=False)
    total, by_rows = (sum(f.values()) for f in (sent_bytes(text, 4), found["replicated", 100_000]))
    assert total - by_rows == formula(
        "replicated", 4, 64, behaviors, params, whole=100_000
    ) - formula("replicated", 4, 64, behaviors, params)
