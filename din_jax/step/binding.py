"""What train and score steps share: mapping over devices, and several batches in one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from din_jax.data.packing import Batch
from din_jax.distributed.devices import Placement, is_sharded
from din_jax.distributed.mapping import COMMON, MAPPED, over_devices
from din_jax.optim.regularizer import Regularizer
from din_jax.step.state import TrainState


class Stacked(struct.PyTreeNode):
    """Batches of the same shapes, stacked; `count` says how many of them are meant."""

    stacked: Batch
    count: Any

    @classmethod
    def of(cls, batches: Sequence[Batch], room: int) -> Stacked:
        filled = [*batches, *[batches[-1]] * (room - len(batches))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)
        return cls(stacked, np.int32(len(batches)))

    def batch(self, i: jax.Array) -> Batch:
        return jax.tree.map(lambda leaf: leaf[i], self.stacked)


def bind(
    share: Callable[..., Any],
    placement: Placement,
    regularizer: Regularizer | None,
    *,
    trains: bool,
) -> Callable[[TrainState, Any], Any]:
    """Maps a step; how its state lies is seen when it is first called."""
    # The regulariser is an argument, not a constant: n_j is as long as the tables.
    given = _laid_out(regularizer or Regularizer(), placement)
    if placement.axis is None:
        donate = (0,) if trains else ()
        return functools.partial(
            over_devices(share, placement, None, None, donate=donate), regularizer=given
        )
    return _OfState(share, placement, given, trains=trains)


class _OfState:
    """A step on several devices, mapped for the state that it is first given.

    `lower` is as in `jax.jit`.
    """

    def __init__(
        self, share: Callable[..., Any], placement: Placement, given: Regularizer, *, trains: bool
    ):
        self._share, self._placement, self._given = share, placement, given
        self._trains = trains
        self._mapped: Any = None

    def _of(self, state: TrainState) -> Any:
        if self._mapped is None:
            axes, given_axes = _axes((state, self._given))
            self._mapped = over_devices(
                self._share,
                self._placement,
                (axes, MAPPED, given_axes),
                (axes, COMMON) if self._trains else COMMON,
                donate=(0,) if self._trains else (),
            )
        return self._mapped

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        return self._of(state)(state, batch, self._given)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        return self._of(state).lower(state, batch, self._given)


def _axes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: MAPPED if is_sharded(leaf) else COMMON, tree)


def _laid_out(regularizer: Regularizer, placement: Placement) -> Regularizer:
    """The regulariser on the devices; n_j lies with its rows."""
    return regularizer.replace(
        counts={
            name: placement.put(n, sharded=name in placement.sharded)
            for name, n in regularizer.counts.items()
        },
        # Of all rows: ids are filtered before it is known on which device their rows lie.
        frequent={name: placement.put(ids) for name, ids in regularizer.frequent.items()},
    )
