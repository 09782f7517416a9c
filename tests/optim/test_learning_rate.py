"""The warm-up of the learning rate, against a plain formula, and the rates of tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.optim.learning_rate import decayed_learning_rate, table_rates

STEPS = np.arange(60, dtype=np.int32)


def rates_of(**keys):
    config = default_config().optimizer
    config.update(learning_rate=0.5, decay_rate=0.3, decay_samples=1000, **keys)
    schedule = decayed_learning_rate(config, batch_size=50)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.asarray(STEPS)))


@pytest.mark.parametrize("staircase", [False, True])
@pytest.mark.parametrize("samples", [0, 1, 50, 130, 1000, 2300])
def test_the_rate_rises_linearly_and_decays_from_the_start(samples, staircase):
    rates = rates_of(warmup_samples=samples, staircase=staircase)
    for step, rate in zip(STEPS, rates, strict=True):
        periods = step * 50 / 1000
        decayed = 0.5 * 0.3 ** (np.floor(periods) if staircase else periods)
        seen = (step + 1) * 50  # samples, with those of this step
        assert rate == pytest.approx(decayed * min(1, seen / samples if samples else 1), rel=1e-5)
    assert rates[0] > 0


def test_the_learning_rates_of_tables_are_parsed():
    tables = ("item", "user", "tag")
    assert table_rates("", tables) == {}
    assert table_rates("user=0.1", tables) == {"user": 0.1}
    assert table_rates(" user=0.1, 0.5 ", tables) == {"item": 0.5, "user": 0.1, "tag": 0.5}
    for text in ("usr=0.1", "item=fast", "-1", "item=-1", "nan", "inf", "=1"):
        with pytest.raises(DinError, match=r"expected FACTOR or TABLE=FACTOR.*: item, tag, user"):
            table_rates(text, tables)
