import jax
import pytest
from runs import tiny_config

from din_jax.data.packing import AGE_BUCKETS
from din_jax.errors import DinError
from din_jax.training.run import open_run


@pytest.mark.parametrize(("name", "age"), [("din", True), ("din", False), ("base", True)])
def test_batches_of_a_run_carry_the_ages_that_its_model_reads(rich, name, age):
    run = open_run(tiny_config(rich[0].path, **{"model.name": name, "model.attention.age": age}))
    for source in (run.source, run.evaluator("test").source):
        ages = {s.age is not None for s in source[0].sequences.values()}
        assert ages == {name == "din" and age}


def test_auto_reads_the_ages_of_a_store_that_has_times(rich, planted_store):
    for store, has_times in ((rich[0].path, True), (planted_store, False)):
        run = open_run(tiny_config(store, **{"model.name": "din", "model.attention.age": "auto"}))
        ages = {s.age is not None for s in run.source[0].sequences.values()}
        assert ages == {has_times}
        params = jax.tree_util.tree_leaves_with_path(run.state_shapes().params)
        codes = [leaf.shape for path, leaf in params if "code_" in jax.tree_util.keystr(path)]
        assert set(codes) == ({(AGE_BUCKETS, 4)} if has_times else set())


def test_a_run_with_ages_needs_a_store_with_times(planted_store):
    config = tiny_config(planted_store, **{"model.attention.age": True})
    with pytest.raises(DinError, match=r"has no times of: history; config\.model"):
        open_run(config)
