"""Optimizers and parameters that the tests of `row_sparse` share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from din_jax.optim.mba import difacto_decay, mba_decay, on_tables
from din_jax.optim.rowwise_adagrad import rowwise_adagrad

ROWS = {"a": 23, "b": 17}  # no other axis of a parameter is as long
COUNTS = {"a": np.arange(23.0, dtype="f"), "b": 1 + np.arange(17.0, dtype="f") % 5}
CLIPPED = 0.3  # far below the gradients' norms, so that clipping always bites


def labels(tree):
    return {"params": "dense", "tables": {"a": "rows", "b": "other"}}


SEPARABLE = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(0.1),
    # An absent row is 0 / 0.
    "no epsilon": optax.adam(0.1, eps=0.0),
    "nadamw": optax.nadamw(0.1, weight_decay=0.1),
    "amsgrad": optax.amsgrad(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.1, centered=True, momentum=0.5),
    "lion": optax.lion(0.1, weight_decay=0.1),
    "adadelta": optax.adadelta(0.1),
    "rowwise": rowwise_adagrad(0.1),
    "schedule": optax.adam(optax.exponential_decay(0.1, 2, 0.5)),
    "clip": optax.chain(optax.clip_by_global_norm(CLIPPED), optax.adam(0.1)),
    "clip by value": optax.chain(optax.clip(0.05), optax.sgd(0.1)),
    "clip after momentum": optax.chain(
        optax.trace(0.9), optax.clip_by_global_norm(CLIPPED), optax.scale(-0.1)
    ),
    "clip after decay": optax.chain(
        optax.add_decayed_weights(0.5), optax.clip_by_global_norm(CLIPPED), optax.sgd(0.1)
    ),
    "mba": optax.chain(
        optax.clip_by_global_norm(CLIPPED),
        on_tables(mba_decay(0.5), ("a", "b")),
        optax.adam(0.1),
    ),
    "difacto": optax.chain(on_tables(difacto_decay(0.5), ("a",)), optax.sgd(0.1, momentum=0.9)),
    "inject": optax.inject_hyperparams(optax.adam)(optax.linear_schedule(0.1, 0.0, 10)),
    "masked": optax.chain(
        optax.masked(optax.trace(0.9), {"params": True, "tables": {"a": True, "b": False}}),
        optax.scale(-0.1),
    ),
    "partition": optax.partition(
        {"dense": optax.adam(0.1), "rows": optax.adagrad(0.1), "other": optax.lion(0.01)}, labels
    ),
    "frozen": optax.partition(
        {"dense": optax.adafactor(0.1), "rows": optax.set_to_zero(), "other": optax.adam(0.1)},
        labels,
    ),
}


def parameters(seed):
    """Parameters, and the generator that made them."""
    rng = np.random.default_rng(seed)
    params = {
        "params": {"kernel": rng.standard_normal((4, 3)), "bias": rng.standard_normal(3)},
        "tables": {name: rng.standard_normal((k, 2)) for name, k in ROWS.items()},
    }
    params["tables"]["a"][3] = [-0.0, 1e-40]  # must not become 0.0
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), rng
