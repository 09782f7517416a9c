"""With blocks, memory does not grow with the activation unit's width times the behaviours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from din_jax.config import default_config
from din_jax.data.packing import Batch, Behaviors
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.models.registry import build_model
from din_jax.optim.build import build_optimizer
from din_jax.step.state import state_shapes
from din_jax.step.train import train_step

SAMPLES, HISTORY, EMBEDDING = 64, 2048, 4
SCHEMA = Schema(
    (Table("item", 9),),
    (Field("item", "item", "ad"),),
    (Sequence("history", (BehaviorField("item", "item", ad="item"),)),),
)


def model_and_batch(hidden, block, activation="dice"):
    """DIN, its config, and a batch of long histories."""
    config = default_config()
    config.model.embedding_dim = EMBEDDING
    config.model.hidden = (4,)
    config.model.attention.update(hidden=hidden, block=block, activation=activation)
    config.optimizer.name = "sgd"
    config.optimizer.decay_samples = 1
    behaviors = np.zeros(SAMPLES * HISTORY, np.int32)
    batch = Batch(
        label=np.zeros(SAMPLES, np.float32),
        weight=np.ones(SAMPLES, np.float32),
        user=np.zeros(SAMPLES, np.int32),
        fields={"item": np.zeros(SAMPLES, np.int32)},
        sequences={"history": Behaviors({"item": behaviors}, behaviors)},
    )
    return build_model(SCHEMA, config.model), config, batch


def largest_array(jaxpr):
    """Entries of the largest array that is computed, in loops and calls too."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [out.aval.size for out in equation.outvars if hasattr(out.aval, "size")]
        sizes += [largest_array(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


@pytest.mark.parametrize(
    ("activation", "hidden"), [("dice", (32, 16)), ("prelu", (32,)), ("sigmoid", (32,))]
)
def test_no_array_of_all_behaviours_has_the_unit_s_width(activation, hidden):
    def largest(block):
        model, _, batch = model_and_batch(hidden, block, activation)
        tables = {"item": jnp.zeros((9, EMBEDDING))}
        variables = jax.eval_shape(
            lambda key: model.module.init(key, tables, model.lookups(batch), batch, train=False),
            jax.random.key(0),
        )

        def loss(params, tables, stats):
            (logits, _), _ = model.module.apply(
                {"params": params, "batch_stats": stats},
                tables,
                model.lookups(batch),
                batch,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.sum(logits**2)

        stats = variables.get("batch_stats", {})
        gradient = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(
            variables["params"], tables, stats
        )
        return largest_array(gradient.jaxpr)

    behaviors = SAMPLES * HISTORY
    assert largest(block=0) == behaviors * 32
    assert largest(block=256) == behaviors * EMBEDDING


def temporary_bytes(width, block):
    """Of the compiled train step, which nobody runs."""
    model, config, batch = model_and_batch((width,), block)
    optimizer = build_optimizer(config.optimizer, config.regularizer, SAMPLES, model.tables)
    step = train_step(model, optimizer)
    shapes = jax.eval_shape(lambda x: x, state_shapes(model, optimizer, batch))
    compiled = step.func.lower(shapes, batch, **step.keywords).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.long
def test_memory_of_a_step_does_not_grow_with_the_width_times_the_behaviours():
    narrow, wide = 64, 128
    temporary = {
        (width, block): temporary_bytes(width, block)
        for width in (narrow, wide)
        for block in (0, 256)
    }
    more = 4 * SAMPLES * HISTORY * (wide - narrow)  # bytes of one array, [T, wide − narrow]
    assert temporary[wide, 0] - temporary[narrow, 0] > more
    assert temporary[wide, 256] - temporary[narrow, 256] < 0.05 * more
    # A few arrays [T, E] of the embeddings are all that is as long as the histories.
    assert temporary[narrow, 256] < 9 * (4 * SAMPLES * HISTORY * EMBEDDING)
