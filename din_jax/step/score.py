"""The score step: a pure function of a state and a batch, on one device or many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from din_jax.data.packing import Batch
from din_jax.distributed.devices import Placement, one_device
from din_jax.models.registry import Model
from din_jax.nn.losses import click_logit
from din_jax.optim.regularizer import Regularizer
from din_jax.step.batch_rows import fetch_sharded
from din_jax.step.binding import Stacked, bind
from din_jax.step.state import TrainState

_SHORT = 1280  # the padded length up to which several batches are scored together (`jax.vmap`)
_VMAPPED_LENGTH = 16_384  # bound of their total padded length, about that of a batch of 1024

ScoreStep = Callable[[TrainState, Batch], jax.Array]
ScoreSteps = Callable[[TrainState, Sequence[Batch]], jax.Array]


def score_step(
    model: Model, regularizer: Regularizer | None = None, placement: Placement | None = None
) -> ScoreStep:
    """Makes a step (state, batch) → logits [B] of the click probabilities.

    Dice uses its moving averages.

    Args: see `train_step`.
    """
    placement = placement or one_device()
    return bind(_local_score_step(model, placement), placement, regularizer, trains=False)


def score_steps(
    model: Model,
    regularizer: Regularizer | None = None,
    placement: Placement | None = None,
    *,
    steps_per_call: int,
) -> ScoreSteps:
    """Makes (state, batches) → logits [batches · B], which scores all batches in one call.

    Batches short enough that several fit in memory are scored together (`jax.vmap`).

    Args: see `train_steps`. `steps_per_call` must be a power of two.
    """
    placement = placement or one_device()
    local_step = _local_score_step(model, placement)
    if steps_per_call == 1:
        one = bind(local_step, placement, regularizer, trains=False)
        return lambda state, batches: one(state, *batches)

    def steps(state: TrainState, batches: Stacked, regularizer: Regularizer) -> jax.Array:
        longest = max(leaf.shape[1] for leaf in jax.tree.leaves(batches.stacked))
        z = jax.lax.map(
            lambda batch: local_step(state, batch, regularizer),
            batches.stacked,
            batch_size=_vmapped_batches(steps_per_call, longest),
        )
        return z.reshape(-1)

    mapped = bind(steps, placement, regularizer, trains=False)

    def call(state: TrainState, batches: Sequence[Batch]) -> jax.Array:
        z = mapped(state, Stacked.of(batches, steps_per_call))
        return z if len(batches) == steps_per_call else z[: len(batches) * len(batches[0].label)]

    return call


def _vmapped_batches(batches: int, longest: int) -> int | None:
    """The number of batches that `jax.lax.map` scores together; None scores one at a time.

    One at a time is the fastest for long batches.

    Args:
      batches: the number of batches in a call. It must be a power of two: otherwise `jax.lax.map`
        has a remainder, and XLA compiles twice.
      longest: the greatest padded length of a batch's axes.
    """
    if longest > _SHORT:
        return None
    return min(batches, 1 << (_VMAPPED_LENGTH // longest).bit_length() - 1)


def _local_score_step(
    model: Model, placement: Placement
) -> Callable[[TrainState, Batch, Regularizer], jax.Array]:
    """The score step on one device's local batch."""
    axis = placement.axis

    def local_step(state: TrainState, batch: Batch, regularizer: Regularizer) -> jax.Array:
        tables, lookups = fetch_sharded(
            state.tables, regularizer.scoring(model.lookups(batch)), axis, placement.sharded
        )
        logits, _ = model.module.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            tables,
            lookups,
            batch,
            train=False,
        )
        z = click_logit(logits)
        return z if axis is None else jax.lax.all_gather(z, axis, tiled=True)

    return local_step
