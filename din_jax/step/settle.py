"""Brings all rows of a train state up to date, on one device or many."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from din_jax.distributed.devices import Placement, one_device
from din_jax.optim.catch_up import CatchUp
from din_jax.optim.regularizer import Regularizer
from din_jax.step.binding import bind
from din_jax.step.state import StateToState, TrainState


def settle(
    optimizer: optax.GradientTransformationExtraArgs | CatchUp,
    placement: Placement | None = None,
    *,
    only_dense: bool = False,
) -> StateToState:
    """Makes a function state → state in which no row is behind. Donates the state.

    With a `CatchUp` optimizer absent rows are behind until they catch up. A settled state has the
    weights of the dense optimizer: settle before tables are scored or copied. States of other
    optimizers are returned as they are.

    Args:
      optimizer: the optimizer.
      placement: the devices, by default the first.
      only_dense: whether to settle only the tables that are updated densely. Their rows are never
        behind, unless the state was trained on other devices, which updated them sparsely.
    """
    if not isinstance(optimizer, CatchUp):
        return lambda state: state
    placement = placement or one_device()

    def local(
        state: TrainState, no_batch: Any, regularizer: Regularizer
    ) -> tuple[TrainState, jax.Array]:
        del no_batch, regularizer
        names = [name for name in state.tables if not (only_dense and name in state.scratch)]
        tables, opt_state = optimizer.settle(state.tables, state.opt_state, names)
        return state.replace(tables=tables, opt_state=opt_state), state.step

    bound = bind(local, placement, None, trains=True)
    no_batch = np.zeros(len(placement.local))  # `jax.pmap` needs an argument with a device axis
    return lambda state: jax.block_until_ready(bound(state, no_batch))[0]
