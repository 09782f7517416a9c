"""The network and the training of the authors' repository on Amazon (docs/released-code.md).

    python train.py --config configs/amazon_released_code.py

The repository trains for 50 epochs and keeps the weights that are best on test. This config selects
them on validation, as all other experiments do. It has not yet been trained to its end: on the
subset of docs/results.md the first epoch takes half a minute, with user_weighted_auc 0.722 on
validation.
"""

from ml_collections import ConfigDict

from din_jax.config import default_config


def get_config() -> ConfigDict:
    """The config of this experiment."""
    c = default_config()
    c.data.store = "data/amazon"
    c.model.preset = "released_code"
    c.model.activation = "sigmoid"
    c.model.embedding_dim = 64
    c.model.hidden = (80, 40)
    c.model.attention.hidden = (80, 40)
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 1.0
    # 1.0 until step 336,000, then 0.1.
    c.optimizer.decay_rate = 0.1
    c.optimizer.decay_samples = 336_000 * 32
    c.optimizer.staircase = True
    c.optimizer.end_value = 0.1
    c.optimizer.clip_norm = 5.0
    c.train.batch_size = 32
    c.train.epochs = 20
    return c
