"""The state before the first step: its tables, and which of them are updated sparsely."""

import jax
import numpy as np
import pytest
from runs import tiny_config

from din_jax.nn import embedding, present_rows as present_rows_module
from din_jax.nn.embedding import TableSpec, init_tables
from din_jax.training.run import open_run


def test_tables_are_made_in_parts_as_they_would_be_whole(monkeypatch):
    spec = TableSpec(1000, 3, jax.nn.initializers.normal(2.0))
    monkeypatch.setattr(embedding, "_ROWS_AT_ONCE", 64)
    table = np.asarray(jax.jit(lambda key: init_tables({"t": spec}, key))(jax.random.key(0))["t"])
    assert table.shape == (1000, 3) and (table[0] == 0).all()
    assert len(np.unique(table[1:])) > 2990, "no part repeats another"
    assert abs(table.mean()) < 0.1 and abs(table.std() - 2) < 0.1
    assert abs(table[-8:].std() - 2) < 0.7, "the last part is filled too"


@pytest.fixture(scope="module")
def run(planted_store):
    return open_run(
        tiny_config(
            planted_store,
            **{
                "model.name": "base",
                "model.without": ("shop", "age", "category"),
                "train.batch_size": 8,
            },
        )
    )


def test_a_table_that_is_large_beside_a_batch_is_updated_sparsely(run, monkeypatch):
    scratch = run.state_shapes().scratch
    assert {name: of.shape for name, of in scratch.items()} == {
        "item": (run.model.tables["item"].rows,)
    }
    ids = sum(len(at.ids) for at in run.model.lookups(run.source[0])["item"].values())
    for above, sparse in ((2880 / ids - 0.1, True), (2881 / ids + 0.1, False)):
        monkeypatch.setattr(present_rows_module, "SPARSE_ABOVE", above)
        assert ("item" in run.state_shapes().scratch) == sparse
    not_lazy = run.config.copy_and_resolve_references()
    not_lazy.optimizer.lazy = False
    monkeypatch.undo()
    assert not run._replace(config=not_lazy).state_shapes().scratch


def test_an_initial_state_has_the_shapes_of_state_shapes(run):
    state, shapes = run.init(), run.state_shapes()
    assert jax.tree.structure(state) == jax.tree.structure(shapes)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
    assert int(state.step) == 0
    for table in state.tables.values():
        assert (np.asarray(table)[0] == 0).all() and (np.asarray(table)[1:] != 0).all()
