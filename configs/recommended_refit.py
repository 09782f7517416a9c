"""As `configs/recommended.py`, but trained again on train and validation, for other data than logs.

    python -m din_jax.report lines --config configs/recommended_refit.py --seeds 5 \
        --config.data.store=data/amazon --workdir runs/amazon-recommended

A trial with the first seed chooses the number of epochs on validation; then each seed trains for
that number on train and validation, and the last weights are scored.
"""

from ml_collections import ConfigDict

from configs import recommended

LINES = recommended.LINES
REFIT = True


def get_config() -> ConfigDict:
    """The config that the lines start from."""
    c = recommended.get_config()
    c.model.extra_fields = ()
    c.train.select = "user_weighted_auc"
    return c
