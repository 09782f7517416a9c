"""What the recommended preset gains on a log: Base, DIN as in the paper, and DIN as recommended.

    python -m din_jax.report lines --config configs/recommended.py --seeds 5 \
        --config.data.store=data/log --workdir runs/recommended

Base is trained as DIN is recommended to be, and DIN of the paper with Adam, without a regulariser.
The weights are those that are best on validation.
"""

from ml_collections import ConfigDict

from configs import log

LINES = {
    "Base, recommended": {"model.name": "base"},
    "DIN, paper": {
        "model.preset": "paper",
        "model.embedding_dim": 32,
        "train.epochs": 12,
        "train.patience": 3,
    },
    "DIN, recommended": {},
}


def get_config() -> ConfigDict:
    """The config that the lines start from."""
    c = log.get_config()
    c.eval.baselines = False
    return c
