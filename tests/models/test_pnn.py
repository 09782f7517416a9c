"""Products of groups' vectors, which PNN and DeepFM have in common."""

import numpy as np
import oracles
import pytest
from compiling import quick_jit
from model_batches import SCHEMA
from model_cases import close, f64

from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.models import deepfm, pnn
from din_jax.models.registry import build_model


@quick_jit
def products(vectors):
    return deepfm.pairwise(vectors), pnn.inner_products(vectors), pnn.outer_product(vectors)


@pytest.mark.parametrize(("groups", "dim"), [(2, 1), (3, 5), (6, 2)])
def test_products_in_f_steps_are_those_of_all_pairs(groups, dim):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        vectors = [rng.standard_normal((4, dim)).astype(np.float32) for _ in range(groups)]
        pairwise, inner, outer = products(vectors)
        of_samples = [[v[i] for v in f64(vectors)] for i in range(4)]
        expected = [oracles.pair_products(v) for v in of_samples]
        close(pairwise, [sum(pairs) for pairs in expected], atol=1e-5)
        close(inner, expected, atol=1e-5)
        all_pairs = [sum(np.outer(a, b) for a in v for b in v).ravel() for v in of_samples]
        close(outer, all_pairs, atol=1e-5)


@pytest.mark.parametrize("name", ["pnn", "deepfm"])
def test_products_need_one_width(name):
    config = default_config().model
    config.name, config.table_dims = name, "goods=4"
    with pytest.raises(DinError, match=r"all tables need one width; found .*goods=4, hour=12"):
        build_model(SCHEMA, config)
