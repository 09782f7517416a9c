"""From the step of one device to the step that is called: regulariser, devices, several batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct

from din_jax.data.packing import Batch
from din_jax.distributed.devices import Placement, is_sharded
from din_jax.distributed.mapping import PER_DEVICE, REPLICATED, over_devices
from din_jax.optim.regularizer import Regularizer
from din_jax.step.state import TrainState


class Stacked(struct.PyTreeNode):
    """The batches of one call, stacked: `count` real ones, then copies of the last."""

    stacked: Batch
    count: Any

    @classmethod
    def of(cls, batches: Sequence[Batch], size: int) -> Stacked:
        """Stacks at most `size` batches of the same shapes."""
        filled = [*batches, *[batches[-1]] * (size - len(batches))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *filled)
        return cls(stacked, np.int32(len(batches)))

    def batch(self, i: jax.Array) -> Batch:
        """Batch i of the call."""
        return jax.tree.map(lambda leaf: leaf[i], self.stacked)


def bind(
    local_step: Callable[..., Any],
    placement: Placement,
    regularizer: Regularizer | None,
    *,
    trains: bool,
) -> Callable[[TrainState, Any], Any]:
    """(state, batch) → result: `local_step(state, batch, regularizer)` on all devices.

    Args:
      local_step: the step on one device's local batch.
      placement: the devices.
      regularizer: laid out on the devices here, and given to every call.
      trains: the step returns (state, loss) and is given the state's buffers; else scores.
    """
    # The regulariser is an argument, not a constant: n_j is as long as the tables.
    regularizer = _on_devices(regularizer or Regularizer(), placement)
    if placement.axis is None:
        donate = (0,) if trains else ()
        return functools.partial(
            over_devices(local_step, placement, None, None, donate=donate), regularizer=regularizer
        )
    return _MappedStep(local_step, placement, regularizer, trains=trains)


class _MappedStep:
    """A step on several devices. It is mapped at its first call, when the state's axes are known.

    `lower` is that of `jax.jit`.
    """

    def __init__(
        self,
        local_step: Callable[..., Any],
        placement: Placement,
        regularizer: Regularizer,
        *,
        trains: bool,
    ):
        self._local_step, self._placement, self._regularizer = local_step, placement, regularizer
        self._trains = trains
        self._mapped: Any = None

    def _mapped_for(self, state: TrainState) -> Any:
        if self._mapped is None:
            axes, regularizer_axes = _axes((state, self._regularizer))
            self._mapped = over_devices(
                self._local_step,
                self._placement,
                (axes, PER_DEVICE, regularizer_axes),
                (axes, REPLICATED) if self._trains else REPLICATED,
                donate=(0,) if self._trains else (),
            )
        return self._mapped

    def __call__(self, state: TrainState, batch: Batch) -> Any:
        return self._mapped_for(state)(state, batch, self._regularizer)

    def lower(self, state: TrainState, batch: Batch) -> Any:
        return self._mapped_for(state).lower(state, batch, self._regularizer)


def _axes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: PER_DEVICE if is_sharded(leaf) else REPLICATED, tree)


def _on_devices(regularizer: Regularizer, placement: Placement) -> Regularizer:
    """The regulariser on the devices; n_j of a sharded table is sharded as its rows are."""
    return regularizer.replace(
        counts={
            name: placement.put(n, sharded=name in placement.sharded)
            for name, n in regularizer.counts.items()
        },
        # Of all rows: each device filters the ids of its local batch, whoever owns their rows.
        frequent={name: placement.put(ids) for name, ids in regularizer.frequent.items()},
    )
