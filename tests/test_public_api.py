"""The public names: defined once, imported lazily, usable from anywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, tiny_config

import din_jax


def test_every_public_name_exists_and_type_checkers_see_them_all():
    for name in din_jax._MODULE_OF:
        assert getattr(din_jax, name) is not None
    assert set(din_jax._MODULE_OF) <= set(dir(din_jax))
    with pytest.raises(AttributeError, match="no attribute 'Dicee'"):
        din_jax.Dicee  # noqa: B018
    tree = ast.parse(Path(din_jax.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    for_checkers = {
        alias.name: node.module.removeprefix("din_jax.")
        for node in checked.body
        for alias in node.names
    }
    assert for_checkers == din_jax._MODULE_OF


def test_importing_costs_no_device_and_no_large_library():
    """Not JAX itself until a name is used; never Polars or TensorBoard; no device until asked."""
    code = """
import sys
import din_jax
assert not {"jax", "polars", "tensorboardX"} & sys.modules.keys()
from din_jax import DIN, ActivationUnit, Dice, Store, load_run, mba_decay, row_sparse, train
assert not {"polars", "tensorboardX"} & sys.modules.keys(), "imported"
import jax._src.xla_bridge as bridge
assert not bridge._backends, "a device was started"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MODEL = """
from __future__ import annotations

from din_jax.models.base import BaseModel, lookups, tables
from din_jax.models.features import options


class Mine(BaseModel):
    pass


def module(schema, config, axis_name=None):
    return Mine(options(schema, config, axis_name))
"""


def test_a_run_is_loaded_from_another_working_directory(planted_store, tmp_path, monkeypatch):
    """Though its store and its model file were given by relative paths."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(planted_store.parent)
    Path("mine.py").write_text(MODEL)
    keys = {"model.name": "mine", "model.module": "mine.py", "train.batch_size": 512}
    config = tiny_config(f"data/{planted_store.name}", **keys)
    trained = din_jax.train(config, "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    Path("mine.py").write_text("raise ValueError('another model file of the same name')")
    run, state = din_jax.load_run("../run")
    np.testing.assert_array_equal(run.probabilities(state, "test"), trained.probabilities)
    assert din_jax.evaluate("../run").metrics == trained.metrics
    assert type(run.model.module).__name__ == "Mine"
