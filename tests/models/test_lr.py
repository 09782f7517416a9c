import numpy as np
import pytest
from model_batches import REAL, SCHEMA, make_batch
from model_cases import close, scores, setup

from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.models.registry import build_model


def test_logistic_regression_ranks_ads_alike_whatever_the_history():
    samples, _, variables = setup("lr", 24)
    histories = samples[1]["sequences"], samples[2]["sequences"]
    assert histories[0] != histories[1]
    one, other = (
        scores(
            "lr",
            variables,
            make_batch([{**s, "sequences": h} for s in samples], SCHEMA, np.random.default_rng(0)),
        )[:REAL, 1]
        for h in histories
    )
    moved = other - one
    assert abs(moved[0]) > 0.01
    close(moved, np.full(REAL, moved[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [("item_bias", "goods"), ("bias_fields", ("goods",)), ("interest_product", True)],
)
def test_logistic_regression_names_what_it_does_not_have(key, value):
    config = default_config().model
    config.name = "lr"
    config[key] = value
    with pytest.raises(DinError, match=f"config.model.{key}"):
        build_model(SCHEMA, config)
