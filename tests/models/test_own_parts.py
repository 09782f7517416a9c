"""Each model's own part learns a signal that lies in it alone, where base does not.

`test_gains` trains on stores, by the whole training loop; here are a few steps on one batch.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import quick_jit
from model_cases import apply
from sklearn.metrics import roc_auc_score

from din_jax.config import default_config
from din_jax.data.packing import Batch, Behaviors
from din_jax.data.schema import BehaviorField, Field, Schema, Sequence, Table
from din_jax.models.registry import build_model
from din_jax.nn.embedding import init_tables
from din_jax.nn.losses import negative_log_likelihood

SAMPLES, ROWS, VISITS, STEPS = 4096, 20, 3, 40


def batch_of(rng, score, fields, sequences):
    label = rng.random(SAMPLES) < 1 / (1 + np.exp(-score))
    return Batch(
        label=label.astype(np.float32),
        weight=np.ones(SAMPLES, np.float32),
        user=np.zeros(SAMPLES, np.int32),
        fields={name: np.int32(ids + 1) for name, ids in fields.items()},
        sequences=sequences,
    )


def crosses():
    """(schema, batches): a click depends on (good visited, good shown), a coin for each pair."""
    rng = np.random.default_rng(0)
    coin = 3 * rng.choice([-1.0, 1.0], (ROWS, ROWS))
    schema = Schema(
        (Table("goods", ROWS + 1),),
        (Field("goods", "goods", "ad"),),
        (Sequence("history", (BehaviorField("goods", "goods", "goods"),)),),
    )
    segment_ids = np.repeat(np.arange(SAMPLES, dtype=np.int32), VISITS)
    batches = []
    for _ in range(2):
        visited = rng.integers(ROWS, size=(SAMPLES, VISITS))
        shown = rng.integers(ROWS, size=SAMPLES)
        score = coin[visited, shown[:, None]].sum(axis=1)
        history = Behaviors({"goods": np.int32(visited.ravel() + 1)}, segment_ids)
        batches.append(batch_of(rng, score, {"goods": shown}, {"history": history}))
    return schema, batches


def products():
    """(schema, batches): a click depends on Σ_{i<j} ⟨v_i, v_j⟩ of hidden vectors of four fields."""
    rng = np.random.default_rng(1)
    names = ("place", "hour", "shop", "goods")
    hidden = rng.standard_normal((len(names), ROWS, 4))
    schema = Schema(
        tuple(Table(name, ROWS + 1) for name in names),
        tuple(Field(name, name, "context") for name in names),
        (),
    )
    batches = []
    for _ in range(2):
        ids = rng.integers(ROWS, size=(len(names), SAMPLES))
        vectors = [of_field[i] for of_field, i in zip(hidden, ids, strict=True)]
        score = sum((v * w).sum(axis=1) for v, w in itertools.combinations(vectors, 2))
        batches.append(batch_of(rng, score, dict(zip(names, ids, strict=True)), {}))
    return schema, batches


def held_out_auc(name, schema, batches):
    """Of the second batch after a few steps of Adam on the first."""
    config = default_config().model
    config.name, config.activation, config.hidden = name, "prelu", (4,)
    config.embedding_dim, config.embedding_stddev = 8, 0.1
    model = build_model(schema, config)
    optimizer = optax.adam(0.02)

    @quick_jit
    def run(train, test):
        tables = init_tables(model.tables, jax.random.key(1))
        variables = model.module.init(
            jax.random.key(0), tables, model.lookups(train), train, train=False
        )
        weights = {"params": variables["params"], "tables": tables, "batch_stats": {}}

        def loss(weights):
            logits, _ = apply(model, weights, train, train=True)
            return jnp.mean(negative_log_likelihood(logits, train.label))

        def step(_, carry):
            weights, state = carry
            updates, state = optimizer.update(jax.grad(loss)(weights), state)
            return optax.apply_updates(weights, updates), state

        weights, _ = jax.lax.fori_loop(0, STEPS, step, (weights, optimizer.init(weights)))
        logits, _ = apply(model, weights, test, train=False)
        return logits[:, 1] - logits[:, 0]

    train, test = batches
    return roc_auc_score(test.label, run(train, test))


@pytest.mark.parametrize(
    ("names", "data"), [(["wide_deep"], crosses), (["pnn", "deepfm"], products)]
)
def test_own_part_learns_the_signal_that_base_does_not(names, data):
    schema, batches = data()
    base = held_out_auc("base", schema, batches)
    for name in names:
        assert held_out_auc(name, schema, batches) - base >= 0.05
