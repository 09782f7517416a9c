"""States and batches for tests of steps that compile little: `run.init()` compiles for seconds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from runs import tiny_config

from din_jax.training.run import open_run


def large_run(store, **keys):
    """A run whose table of goods is large beside a batch."""
    return open_run(
        tiny_config(
            store,
            **{
                "model.name": "base",
                "model.without": ("shop", "age"),
                "train.batch_size": 8,
                "data.max_history": 5,
                "regularizer.name": "mba",
                "regularizer.rate": 3.0,
                "optimizer.clip_norm": 0.5,
                **keys,
            },
        )
    )


def arbitrary_state(run, seed=0):
    """A state of random weights before its first step.

    The optimizer's state, Adam's or SGD's, and the averages are zeros; each call makes new arrays,
    which a train step may be given: it deletes them.
    """
    rng = np.random.default_rng(seed)

    def drawn(leaf):
        return jnp.array(0.5 * rng.standard_normal(leaf.shape), leaf.dtype)

    def filled(value):
        return lambda leaf: jnp.full(leaf.shape, value, leaf.dtype)

    shapes = run.state_shapes()
    return shapes.replace(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(drawn, shapes.params),
        tables=jax.tree.map(drawn, shapes.tables),
        batch_stats=jax.tree.map(filled(1), shapes.batch_stats),
        opt_state=jax.tree.map(filled(0), shapes.opt_state),
        scratch=jax.tree.map(filled(0), shapes.scratch),
        average=jax.tree.map(filled(0), shapes.average),
        fixed=jax.tree.map(filled(0), shapes.fixed),
    )


def equal_shapes(source, count):
    """The first `count` batches with the shapes of the first one: a step compiles once for them."""

    def shapes(batch):
        return [leaf.shape for leaf in jax.tree.leaves(batch)]

    first = shapes(source[0])
    batches = (source[i] for i in range(len(source)))
    equal = list(itertools.islice((b for b in batches if shapes(b) == first), count))
    assert len(equal) == count
    return equal
