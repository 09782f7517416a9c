"""Checkpoints: saved, restored in parts, and refused when damaged."""

import jax
import numpy as np
import pytest
from runs import tiny_config

from din_jax.checkpoint import arrays, checkpoints as checkpoints_module, compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.errors import DinError
from din_jax.step.train import train_step
from din_jax.training.loop import train
from din_jax.training.run import open_run
from din_jax.training.trained import reopen


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def test_a_damaged_array_is_noticed(planted_store, tmp_path):
    config = tiny_config(planted_store, **{"train.epochs": 1})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    state = run.init()
    Checkpoints(tmp_path).save("last", state, meta)
    assert same(Checkpoints(tmp_path).restore("last", run.state_shapes())[0], state)
    honest = checkpoints_module.checksums
    other = state.replace(tables=state.tables | {"item": state.tables["item"].at[7, 3].add(1e-6)})
    Checkpoints(tmp_path / "b").save("last", state, meta)
    try:
        # The checksums of one state beside the arrays of another: what a flipped bit looks like.
        checkpoints_module.checksums = lambda _: honest(state.replace(scratch={}))
        Checkpoints(tmp_path / "c").save("last", other, meta)
    finally:
        checkpoints_module.checksums = honest
    with pytest.raises(DinError, match=r"the array .*tables\['item'\] is damaged"):
        Checkpoints(tmp_path / "c").restore("last", run.state_shapes())


@pytest.mark.long
def test_a_checkpoint_of_another_version_is_told_from_damage(planted_store, tmp_path, monkeypatch):
    config = tiny_config(planted_store, **{"train.epochs": 1})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    monkeypatch.setattr(checkpoints_module, "_CHECKSUM", "other sums")
    Checkpoints(tmp_path / "sums").save("last", run.init(), meta)
    monkeypatch.undo()
    with pytest.raises(DinError, match=r"another version of din_jax, .* \(other sums, here sum of"):
        train(config, tmp_path / "sums")
    del meta["config"]["placement"]
    Checkpoints(tmp_path / "keys").save("last", run.init(), meta)
    for opened in (
        lambda: train(config, tmp_path / "keys"),
        lambda: reopen(tmp_path / "keys"),
    ):
        with pytest.raises(DinError, match=r"another version of din_jax: .* lacks placement"):
            opened()


def test_large_arrays_are_restored_in_parts(planted_store, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "PART_BYTES", 10_000)
    config = tiny_config(planted_store, **{"optimizer.name": "rowwise_adagrad"})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    state, _ = train_step(run.model, run.optimizer)(run.init(), run.source[0])
    assert sum(leaf.nbytes > 10_000 for leaf in jax.tree.leaves(state)) >= 3
    Checkpoints(tmp_path).save("last", state, meta)
    restored, _ = Checkpoints(tmp_path).restore("last", run.state_shapes())
    assert same(restored.replace(scratch={}), state.replace(scratch={}))
    assert jax.tree.structure(restored) == jax.tree.structure(state)

    like = run.state_shapes()
    item = like.tables["item"]
    longer = jax.ShapeDtypeStruct((len(state.tables["item"]) + 1, item.shape[1]), item.dtype)
    wrong = like.replace(tables=like.tables | {"item": longer})
    with pytest.raises(DinError, match=r"does not fit .*tables\['item'\] has the shape"):
        Checkpoints(tmp_path).restore("last", wrong)


def test_a_deletion_that_is_killed_leaves_no_part_of_a_checkpoint(
    planted_store, tmp_path, monkeypatch
):
    config = tiny_config(planted_store, **{"train.epochs": 1, "model.name": "lr"})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    saved, state = Checkpoints(tmp_path), run.init()
    saved.save("best", state, meta)

    def killed(folder):
        next(path for path in folder.rglob("*") if path.is_file()).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        saved.save("best", state.replace(step=state.step + 1), meta)
    monkeypatch.undo()
    assert saved.steps("best") == [1]
    saved.verify("best", 1)
    saved.save("best", state.replace(step=state.step + 2), meta)
    assert [path.name for path in (tmp_path / "checkpoints/best").iterdir()] == ["2"]
