"""The tables as a step works on them: lookups, and gradients against autodiff of whole tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny_config
from step_states import arbitrary_state

from din_jax.nn.embedding import Lookup, lookup
from din_jax.nn.losses import negative_log_likelihood, weighted_mean
from din_jax.nn.present_rows import scatter_rows
from din_jax.step.batch_rows import model_tables, rows_of_batch
from din_jax.training.run import open_run

# Matches are of the batch's ids, and not of the renumbered ones.
OPTIONS = {
    "model.bias_fields": ("film", "genres"),
    "model.match_counts": True,
    "model.intensity": True,
    "model.attention.match": True,
    "model.attention.age": True,
    "model.attention.position": True,
    "model.attention.normalize": "softmax",
}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("din", OPTIONS),
        pytest.param("din", {}, marks=pytest.mark.long),
        pytest.param("base", {}, marks=pytest.mark.long),
    ],
)
def test_row_gradients_scattered_are_the_dense_gradient(rich, model, options):
    """On a store with every kind of column and two sequences; the batch has padding samples."""
    keys = {"model.name": model, "model.activation": "prelu", "train.select": "auc", **options}
    run = open_run(tiny_config(rich[0].path, **keys))
    state, batch = arbitrary_state(run), run.source[0]
    assert not batch.weight.all()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    lookups = run.model.lookups(batch)

    def loss_of(tables, lookups):
        (logits, _), _ = run.model.module.apply(
            variables, tables, lookups, batch, train=True, mutable=["batch_stats"]
        )
        return weighted_mean(negative_log_likelihood(logits, batch.label), batch.weight)

    @jax.jit
    def dense_and_sparse(tables, scratch):
        dense = jax.value_and_grad(loss_of)(tables, lookups)
        of_batch = rows_of_batch(tables, lookups, scratch)
        present = model_tables(of_batch, None, ())
        loss, gradients = jax.value_and_grad(loss_of)(present, of_batch.lookups)
        scattered = {
            name: scatter_rows(jnp.zeros_like(table), of_batch.rows[name], gradients[name])
            for name, table in tables.items()
        }
        return dense, (loss, scattered), gradients, of_batch.rows

    scratch = {name: jnp.zeros(len(table), jnp.int32) for name, table in state.tables.items()}
    dense, sparse, gradients, rows = dense_and_sparse(state.tables, scratch)
    np.testing.assert_allclose(sparse[0], dense[0], rtol=1e-6)
    for name, gradient in dense[1].items():
        np.testing.assert_allclose(sparse[1][name], gradient, rtol=1e-5, atol=1e-7)
        assert np.abs(gradient).max() > 0
        other_positions = np.asarray(gradients[name])[~np.asarray(rows[name].present)]
        assert len(other_positions) and (other_positions == 0).all()


def test_padding_and_repeats_of_several_lookups_share_one_row():
    table = np.arange(10, dtype=np.float32).reshape(5, 2)
    lookups = {
        "t": {
            "ad": Lookup(np.array([3, 3, 1]), np.array([True, True, False])),
            "history.item": Lookup(np.array([4, 3]), np.array([True, True])),
        }
    }

    @jax.jit
    def both(table, scratch):
        of_batch = rows_of_batch({"t": table}, lookups, scratch)
        rows = model_tables(of_batch, None, ())["t"]
        sparse = {name: lookup(rows, at) for name, at in of_batch.lookups["t"].items()}
        return of_batch.rows["t"].present, sparse

    present, vectors = both(table, {"t": np.zeros(5, np.int32)})
    assert present.shape == (5,) and int(present.sum()) == 2
    assert vectors.keys() == lookups["t"].keys()
    for name, at in lookups["t"].items():
        np.testing.assert_array_equal(vectors[name], table[at.ids] * at.mask[:, None])
