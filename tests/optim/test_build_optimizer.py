"""The order of an optimizer's parts, against float64 NumPy."""

import jax
import numpy as np
import pytest

from din_jax.config import default_config
from din_jax.nn.present_rows import Rows
from din_jax.optim.build import build_optimizer


@pytest.mark.parametrize("decay", ["mba", "difacto"])
def test_gradients_are_clipped_then_decayed_then_scaled(decay):
    config = default_config()
    optimizer, regularizer = config.optimizer, config.regularizer
    optimizer.name, optimizer.lazy, optimizer.clip_norm = "sgd", False, 0.5
    optimizer.learning_rate, optimizer.decay_rate, optimizer.decay_samples = 0.25, 0.5, 64
    regularizer.name, regularizer.rate = decay, 3.0
    rates = {"item": 0.5, "bias": 3.0}
    transform = build_optimizer(optimizer, regularizer, 32, ("item",), table_rates=rates)

    rng = np.random.default_rng(0)
    tables = {"item": (5, 2), "bias": (5, 1)}  # the second is not decayed
    params, grads = (
        {
            "params": {"kernel": rng.standard_normal((2, 3))},
            "tables": {name: rng.standard_normal(shape) for name, shape in tables.items()},
        }
        for _ in range(2)
    )
    present, n = np.array([True, False, True, True, False]), np.array([1, 2, 3, 0, 5.0])
    for table in grads["tables"].values():
        table *= present[:, None]
    single = jax.tree.map(np.float32, (grads, params))
    rows = dict.fromkeys(tables, Rows(present))

    @jax.jit
    def update(grads, params, state):
        return transform.update(grads, state, params, rows=rows, counts={"item": n})

    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    assert norm > 0.5, "clipping must bite"
    direction = jax.tree.map(lambda g: g * 0.5 / norm, grads)
    factor = 3.0 * present * ((n > 0) / n.clip(1) if decay == "mba" else 1)
    direction["tables"]["item"] += factor[:, None] * params["tables"]["item"]
    for name, rate in rates.items():
        direction["tables"][name] *= rate
    state = transform.init(single[1])
    for rate in (0.25, 0.25 * 0.5**0.5):  # a step is half of `decay_samples`
        updates, state = update(*single, state)
        jax.tree.map(
            lambda u, d, rate=rate: np.testing.assert_allclose(u, -rate * d, rtol=1e-5, atol=1e-6),
            updates,
            direction,
        )
