"""Binds a local step to its devices and regulariser, and stacks the batches of one call."""

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
    """The stacked batches of one call: `count` real ones, then copies of the last as padding."""

    stacked: Batch
    count: Any

    @classmethod
    def of(cls, batches: Sequence[Batch], size: int) -> Stacked:
        """Stacks up to `size` batches of equal shapes, padded to `size`."""
        padded = [*batches, *[batches[-1]] * (size - len(batches))]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
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
    """Compiles `local_step(state, batch, regularizer)` as (state, batch) → result on all devices.

    Args:
      local_step: the step on one device's local batch.
      placement: the devices.
      regularizer: placed on the devices once, and passed to every call.
      trains: whether the step returns (state, loss), and its state is donated; otherwise it
        returns logits.
    """
    # The regulariser is an argument, not a constant of the program: n_j has K elements.
    regularizer = _on_devices(regularizer or Regularizer(), placement)
    if placement.axis is None:
        donate = (0,) if trains else ()
        return functools.partial(
            over_devices(local_step, placement, None, None, donate=donate), regularizer=regularizer
        )
    return _MappedStep(local_step, placement, regularizer, trains=trains)


class _MappedStep:
    """A step on several devices, mapped at its first call, when the state's axes are known.

    `lower` works as that of `jax.jit`.
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
    """Places the regulariser on the devices; n_j is sharded like its table."""
    return regularizer.replace(
        counts={
            name: placement.put(n, sharded=name in placement.sharded)
            for name, n in regularizer.counts.items()
        },
        # Replicated: each device filters its local batch's ids, whichever device owns their rows.
        frequent={name: placement.put(ids) for name, ids in regularizer.frequent.items()},
    )
