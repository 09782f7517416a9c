"""A train step's memory does not grow with the activation unit's width times the behaviours."""

import jax
import numpy as np
import pytest

from din_jax.config import default_config
from din_jax.data.packing import Batch, Behaviors
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.models.registry import build_model
from din_jax.optim.build import build_optimizer
from din_jax.step.state import state_shapes
from din_jax.step.train import train_step

SAMPLES, HISTORY = 64, 2048
SCHEMA = Schema(
    (Table("item", 9),),
    (Field("item", "item", "ad"),),
    (Sequence("history", (BehaviorField("item", "item", ad="item"),)),),
)


def temporary_bytes(width, block, activation):
    """Of the compiled train step, which nobody runs."""
    config = default_config()
    config.model.embedding_dim = 4
    config.model.hidden = (4,)
    config.model.attention.hidden = (width,)
    config.model.attention.block = block
    config.model.attention.activation = activation
    config.optimizer.name = "sgd"
    config.optimizer.decay_samples = 1
    model = build_model(SCHEMA, config.model)
    optimizer = build_optimizer(config.optimizer, config.regularizer, SAMPLES, model.tables)
    behaviors = np.zeros(SAMPLES * HISTORY, np.int32)
    batch = Batch(
        label=np.zeros(SAMPLES, np.float32),
        weight=np.ones(SAMPLES, np.float32),
        user=np.zeros(SAMPLES, np.int32),
        fields={"item": np.zeros(SAMPLES, np.int32)},
        sequences={"history": Behaviors({"item": behaviors}, behaviors)},
    )
    step = train_step(model, optimizer)
    shapes = jax.eval_shape(lambda x: x, state_shapes(model, optimizer, batch))
    compiled = step.func.lower(shapes, batch, **step.keywords).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("activation", ["dice", "prelu"])
def test_memory_does_not_grow_with_the_width_times_the_behaviours(activation):
    narrow, wide = 64, 128
    more = 4 * SAMPLES * HISTORY * (wide - narrow)  # bytes of one array, [T, wide − narrow]

    def growth(block):
        return temporary_bytes(wide, block, activation) - temporary_bytes(narrow, block, activation)

    assert growth(block=0) > more
    assert growth(block=256) < 0.05 * more


def test_memory_of_blocks_is_a_few_arrays_of_the_embeddings():
    embeddings = 4 * SAMPLES * HISTORY * 4  # bytes of [T, E]
    assert temporary_bytes(64, 256, "dice") < 9 * embeddings
