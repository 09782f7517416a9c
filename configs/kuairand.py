"""DIN with Dice on KuaiRand-Pure, prepared by a spec as any log of your own is (docs/your-data.md).

python -m din_jax.prepare log --spec configs/kuairand.toml --data DIR --out data/kuairand
python train.py --config configs/kuairand.py
"""

from ml_collections import ConfigDict

from din_jax.config import default_config


def get_config() -> ConfigDict:
    """The config of this experiment."""
    c = default_config()
    c.data.store = "data/kuairand"
    c.model.embedding_dim = 16
    c.model.hidden = (80, 40)
    c.optimizer.decay_samples = 1_000_000
    c.train.select = "auc"
    return c
