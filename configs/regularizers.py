"""Table 4 and figure 4: the regularisers of section 6.5 on goods ids that are too fine-grained.

    python -m din_jax.prepare planted --users 12000 --goods-per-category 500 --out data/planted-fine
    python -m din_jax.report lines --config configs/regularizers.py --seeds 3 \
        --workdir runs/regularizers

All lines are the base model. Without regularisation it overfits from the second epoch: the data and
this config were chosen so, before any regulariser was run on them. Each line has five trials on
validation, of the learning rate if the line has no other hyper-parameter. It takes less than half
an hour on 2 cores; docs/results.md has the results.
"""

from ml_collections import ConfigDict

from din_jax.config import default_config

_RATES = [0.00025, 0.0005, 0.001, 0.002, 0.004]

LINES = {
    "without goods ids": {"model.without": ("item",), "optimizer.learning_rate": _RATES},
    "with goods ids, no regulariser": {"optimizer.learning_rate": _RATES},
    "with goods ids, dropout": {
        "regularizer.name": "dropout",
        "regularizer.dropout": [0.1, 0.3, 0.5, 0.7, 0.9],
    },
    "with goods ids, filter": {
        "regularizer.name": "filter",
        "regularizer.filter_tables": ("item",),
        "regularizer.keep": [0.01, 0.033, 0.1, 0.3, 0.6],
    },
    "with goods ids, DiFacto": {
        "regularizer.name": "difacto",
        "regularizer.rate": [0.0001, 0.001, 0.01, 0.1, 1.0],
    },
    "with goods ids, MBA": {
        "regularizer.name": "mba",
        "regularizer.rate": [0.01, 0.1, 1.0, 10.0, 100.0],
    },
}


def get_config() -> ConfigDict:
    """The config that the lines start from."""
    c = default_config()
    c.data.store = "data/planted-fine"
    c.model.name = "base"
    c.model.embedding_dim = 16
    c.optimizer.learning_rate = 0.001
    c.optimizer.decay_samples = 1_000_000
    c.train.batch_size = 512
    c.train.epochs = 3
    c.eval.curves = True
    return c
