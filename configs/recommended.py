"""What the recommended preset gains on a log: all models, and DIN of the paper, beside it.

    python -m din_jax.report lines --config configs/recommended.py --seeds 5 \
        --config.data.store=data/log --workdir runs/recommended

All but the paper's lines have the preset's training; LR and Wide & Deep have no regulariser, which
they do not support. The paper's lines have Adam's usual training: lazy, without averages of the
weights. The weights are those that are best on validation.
"""

from ml_collections import ConfigDict

from configs import log

_PAPER = {
    "model.preset": "paper",
    "model.embedding_dim": 32,
    "train.epochs": 12,
    "train.patience": 3,
}
LINES = {
    "Base": {"model.name": "base"},
    "LR": {"model.name": "lr"},
    "Wide&Deep": {"model.name": "wide_deep"},
    "PNN": {"model.name": "pnn"},
    "DeepFM": {"model.name": "deepfm"},
    "DIN, paper": _PAPER,
    "DIN, paper, MBA": {**_PAPER, "regularizer.name": "mba", "regularizer.rate": 1.0},
    "DIN, no MBA": {"regularizer.name": "none"},
    "DIN": {},
}


def get_config() -> ConfigDict:
    """The config that the lines start from."""
    c = log.get_config()
    c.eval.baselines = False
    return c
