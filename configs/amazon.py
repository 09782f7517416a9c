"""The paper's Amazon experiment: DIN with Dice on goods and categories.

    python -m din_jax.prepare amazon --reviews reviews_Electronics_5.json.gz \
        --meta meta_Electronics.json.gz --out data/amazon
    python train.py --config configs/amazon.py

On the subset of docs/results.md it takes half a minute on 2 cores; user_weighted_auc 0.768 on test.
"""

from ml_collections import ConfigDict

from din_jax.config import default_config


def get_config() -> ConfigDict:
    """The config of this experiment."""
    c = default_config()
    c.data.store = "data/amazon"
    c.model.embedding_dim = 32
    c.model.hidden = (80, 40)
    c.optimizer.decay_samples = 1_000_000
    return c
