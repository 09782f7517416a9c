"""Mini-batch aware regularisation on Amazon: without, λ = 0.01, and λ searched on validation.

    python -m din_jax.report lines --config configs/amazon_mba.py --seeds 5 --workdir runs/mba
    python -m din_jax.report lines --config configs/amazon_mba.py --seeds 5 \
        --workdir runs/mba-dense --config.optimizer.lazy=False

Each takes under half an hour on 2 cores with the subset of docs/results.md.
"""

from ml_collections import ConfigDict

from configs import amazon

LINES = {
    "none": {"regularizer.name": "none"},
    "mba, λ 0.01": {"regularizer.name": "mba", "regularizer.rate": 0.01},
    "mba, λ searched": {
        "regularizer.name": "mba",
        "regularizer.rate": [0.01, 0.03, 0.1, 0.3, 1.0],
    },
}


def get_config() -> ConfigDict:
    """The config that the lines start from."""
    c = amazon.get_config()
    c.train.epochs = 8
    return c
