"""Averages the weights of a train state over the steps, on one device or many."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from din_jax.distributed.devices import Placement, one_device
from din_jax.optim.regularizer import Regularizer
from din_jax.step.binding import bind
from din_jax.step.state import Average, StateToState, TrainState


def average(half_life: float, placement: Placement | None = None) -> StateToState:
    """Makes a function state → state that averages the state's weights in. Donates the state.

    The average is the exponential moving average, without a bias towards its initial value: after
    n calls a state seen k calls ago has the weight βᵏ / (1 + β + … + βⁿ⁻¹), β = 2^(−1 / half_life).
    The weights are the network's, the moving averages of Dice and the tables: call it with a
    settled state (`din_jax.step.settle.settle`). The averages change no step.

    Averages of the weights over the steps of SGD: Polyak and Juditsky, 1992.

    Args:
      half_life: the number of calls after which a state counts half.
      placement: the devices, by default the first.
    """
    placement = placement or one_device()
    log_beta = -np.log(2) / half_life

    def local(
        state: TrainState, no_batch: Any, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        del no_batch, regularizer
        averages = state.average
        assert isinstance(averages, Average)
        count = averages.count + 1
        # (1 − β) / (1 − βⁿ), accurate for β near 1. In the first call it is exactly 1: the average
        # of weights that stay as they are is these weights.
        share = jnp.where(count == 1, 1.0, jnp.expm1(log_beta) / jnp.expm1(log_beta * count))

        def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
            return old + share * (new - old)

        averages = averages.replace(
            count=count,
            params=jax.tree.map(averaged, averages.params, state.params),
            batch_stats=jax.tree.map(averaged, averages.batch_stats, state.batch_stats),
            tables=jax.tree.map(averaged, averages.tables, state.tables),
        )
        return state.replace(average=averages), state.step

    bound = bind(local, placement, None, trains=True)
    no_batch = np.zeros(len(placement.local))  # `jax.pmap` needs an argument with a device axis
    return lambda state: jax.block_until_ready(bound(state, no_batch))[0]
