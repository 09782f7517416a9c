"""Optimizers that `row_sparse` refuses, and arguments that are missing."""

import re

import jax
import numpy as np
import optax
import pytest
from row_sparse_cases import COUNTS, ROWS, SEPARABLE, labels, parameters

from din_jax.nn.present_rows import Rows
from din_jax.optim.row_sparse import row_sparse

MIXING = {
    "adafactor": optax.adafactor(0.1),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "block rms": optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)),
    "parameter rms": optax.chain(optax.scale_by_param_block_rms(), optax.sgd(0.1)),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
    "multi steps": optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
    "in a chain": optax.chain(optax.clip(1.0), optax.apply_every(2), optax.sgd(0.1)),
    "in a partition": optax.partition(
        {"dense": optax.sgd(0.1), "rows": optax.adafactor(0.1), "other": optax.sgd(0.1)}, labels
    ),
    "lbfgs": optax.scale_by_lbfgs(),
    "after a warmup": optax.adafactor(optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)),
    "noise after a warmup": optax.chain(
        optax.add_noise(0.1, 0.5, 0), optax.sgd(optax.linear_schedule(0.0, 0.1, 100))
    ),
}
REFUSED = "does not treat the rows of a table apart"
# The default suite has others of their kinds: means over rows, and noise, which has a shape.
LONG = ("adafactor", "parameter rms", "noise after a warmup")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in MIXING],
)
def test_an_optimizer_that_mixes_rows_is_refused(name):
    params, _ = parameters(0)
    with pytest.raises(ValueError, match=REFUSED):
        row_sparse(MIXING[name]).init(params)


@pytest.mark.parametrize("name", ["factored", "block rms", "in a chain"])
def test_it_is_refused_also_where_init_is_traced(name):
    params, _ = parameters(0)
    with pytest.raises(ValueError, match=REFUSED):
        jax.eval_shape(row_sparse(MIXING[name]).init, params)


def test_a_forgotten_or_misspelt_argument_raises():
    params, _ = parameters(0)
    transform = row_sparse(SEPARABLE["mba"])
    state = jax.eval_shape(transform.init, params)
    rows = {n: Rows(np.ones(k, bool)) for n, k in ROWS.items()}

    def update(*arguments, **named):
        jax.eval_shape(lambda s: transform.update(params, s, *arguments, **named), state)

    update(params, rows=rows, counts=COUNTS)
    with pytest.raises(TypeError, match="rows"):
        update(params, counts=COUNTS)
    with pytest.raises(TypeError, match="rows"):
        update(params, row=rows, counts=COUNTS)
    with pytest.raises(TypeError, match="counts"):
        update(params, rows=rows, count=COUNTS)
    with pytest.raises(ValueError, match="needs the params"):
        update(rows=rows, counts=COUNTS)
    with pytest.raises(ValueError, match=re.escape("describes ['a'], the tables are ['a', 'b']")):
        update(params, rows={"a": rows["a"]}, counts=COUNTS)
    with pytest.raises(ValueError, match="no counts n_j for the tables b: a table of hashed ids"):
        update(params, rows=rows, counts={"a": COUNTS["a"]})
