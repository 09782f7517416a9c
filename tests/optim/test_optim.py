"""The decays against Eqs. 6 and 7, written out in float64 NumPy and by autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from runs import small_config

from din_jax.data.counts import sample_counts
from din_jax.nn.present_rows import present_mask
from din_jax.optim.decay import difacto_decay, mba_decay
from din_jax.step.train import train_step
from din_jax.training.run import open_run


@st.composite
def tables(draw):
    """A table's gradient, weights and counts, and lookups with repeats and padding."""
    rows, dim = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = rng.integers(0, 20, rows)
    ids = st.lists(st.integers(0, rows - 1), max_size=15)
    lookups = {
        f"l{i}": (np.array(found, np.int32), rng.random(len(found)) < 0.7)
        for i, found in enumerate(draw(st.lists(ids, min_size=1, max_size=3)))
    }
    return rng.standard_normal((2, rows, dim)).astype(np.float32), counts, lookups


def present_by_loops(lookups, rows):
    present = np.zeros(rows, bool)
    for ids, mask, *_ in lookups.values():
        for j, real in zip(ids, mask, strict=True):
            present[j] |= real
    return present


@settings(deadline=None)
@given(tables(), st.floats(0, 10))
def test_mba_decay_is_equation_7(data, rate):
    (gradient, weights), counts, lookups = data
    present = present_by_loops(lookups, len(weights))
    ids, mask = (np.concatenate(parts) for parts in zip(*lookups.values(), strict=True))
    assert present_mask(ids, mask, len(weights)).tolist() == present.tolist()

    tree = {"t": jnp.asarray(gradient)}
    found, _ = mba_decay(rate).update(
        tree, optax.EmptyState(), {"t": weights}, present={"t": present}, counts={"t": counts}
    )
    expected = gradient.astype(np.float64)
    for j in range(len(weights)):
        if present[j] and counts[j] > 0:
            expected[j] += rate * weights[j] / counts[j]
    np.testing.assert_allclose(found["t"], expected, rtol=1e-6, atol=1e-6)
    untouched = ~(present & (counts > 0))
    assert (np.asarray(found["t"])[untouched] == gradient[untouched]).all()

    found, _ = difacto_decay(rate).update(
        tree, optax.EmptyState(), {"t": weights}, present={"t": present}
    )
    expected = gradient + rate * present[:, None] * weights.astype(np.float64)
    np.testing.assert_allclose(found["t"], expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(tables())
def test_mba_decay_is_the_gradient_of_equation_6(data):
    (gradient, weights), counts, lookups = data
    present = present_by_loops(lookups, len(weights))
    n = np.maximum(counts, 1)

    def penalty(w):  # λ/2 · Σ_j α_j / n_j · ‖w_j‖², with λ = 0.3
        return 0.15 * jnp.sum(present * (counts > 0) / n * jnp.sum(w**2, axis=1))

    found, _ = mba_decay(0.3).update(
        {"t": np.zeros_like(gradient)},
        optax.EmptyState(),
        {"t": weights},
        present={"t": present},
        counts={"t": counts},
    )
    np.testing.assert_allclose(found["t"], jax.grad(penalty)(weights), rtol=1e-5, atol=1e-7)


def test_a_forgotten_or_misspelt_argument_raises():
    weights, here, n = jnp.ones((3, 2)), jnp.ones(3, bool), jnp.ones(3)
    chain = optax.chain(mba_decay(0.1), optax.sgd(1.0))
    state = chain.init(weights)
    chain.update(weights, state, weights, present=here, counts=n)
    with pytest.raises(TypeError, match="counts"):
        chain.update(weights, state, weights, present=here)
    with pytest.raises(TypeError, match="present"):
        chain.update(weights, state, weights, presnet=here, counts=n)
    with pytest.raises(ValueError, match="params"):
        chain.update(weights, state, present=here, counts=n)
    with pytest.raises(TypeError, match="present"):
        difacto_decay(0.1).update(weights, optax.EmptyState(), weights)


@pytest.mark.parametrize("name", ["mba", "difacto"])
def test_a_step_decays_the_rows_of_its_batch_and_no_other(planted_store, name):
    keys = {
        "optimizer.name": "sgd",
        "optimizer.learning_rate": 0.5,
        "regularizer.rate": 2.0,
        "model.activation": "prelu",
        "model.item_bias": "item",
        "model.embedding_stddev": 1.0,
    }
    plain = open_run(small_config(planted_store, **keys))
    run = open_run(small_config(planted_store, **keys, **{"regularizer.name": name}))
    before = jax.tree.map(np.array, run.init().tables)
    batch = run.source[0]
    without, _ = train_step(plain.model, plain.optimizer, plain.regularizer)(plain.init(), batch)
    with_decay, _ = train_step(run.model, run.optimizer, run.regularizer)(run.init(), batch)

    counts = sample_counts(run.store, "train", max_history=4)
    for table, specs in run.model.lookups(batch).items():
        present = present_by_loops(specs, len(before[table]))
        n = counts.get(table)
        if n is None:  # the bias per good
            share = np.zeros(len(present))
        else:
            assert (n[present] > 0).all(), "a row of a training batch is in the training split"
            share = present / (n.clip(1) if name == "mba" else 1)
        expected = without.tables[table] - 0.5 * 2.0 * share[:, None] * before[table]
        np.testing.assert_allclose(with_decay.tables[table], expected, rtol=1e-5, atol=1e-6)
        if table == "item":
            assert 0 < present.sum() < len(present)
            absent = np.asarray(with_decay.tables[table])[~present]
            assert (absent == before[table][~present]).all()
