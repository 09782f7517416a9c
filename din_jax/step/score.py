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

_SHORT = 1280  # places of a packed axis: such batches are scored several as one
_SCORED_AS_ONE = 16_384  # places of a packed axis, as many as a batch of 1024 may have
ScoreStep = Callable[[TrainState, Batch], jax.Array]
ScoreSteps = Callable[[TrainState, Sequence[Batch]], jax.Array]


def score_step(
    model: Model, regularizer: Regularizer | None = None, placement: Placement | None = None
) -> ScoreStep:
    """(state, batch) → logits [B] of the click probabilities, with Dice's moving averages.

    Args: as for `train_step`.
    """
    placement = placement or one_device()
    return bind(_score_share(model, placement), placement, regularizer, trains=False)


def score_steps(
    model: Model,
    regularizer: Regularizer | None = None,
    placement: Placement | None = None,
    *,
    at_once: int,
) -> ScoreSteps:
    """(state, batches) → logits [batches · B]: all are scored in one call; see `train_steps`.

    Small batches, of which several take little memory, are scored side by side.
    """
    placement = placement or one_device()
    share = _score_share(model, placement)
    if at_once == 1:
        one = bind(share, placement, regularizer, trains=False)
        return lambda state, batches: one(state, *batches)

    def steps(state: TrainState, batches: Stacked, regularizer: Regularizer) -> jax.Array:
        longest = max(leaf.shape[1] for leaf in jax.tree.leaves(batches.stacked))
        z = jax.lax.map(
            lambda batch: share(state, batch, regularizer),
            batches.stacked,
            batch_size=_side_by_side(at_once, longest),
        )
        return z.reshape(-1)

    mapped = bind(steps, placement, regularizer, trains=False)

    def call(state: TrainState, batches: Sequence[Batch]) -> jax.Array:
        z = mapped(state, Stacked.of(batches, at_once))
        return z if len(batches) == at_once else z[: len(batches) * len(batches[0].label)]

    return call


def _side_by_side(batches: int, longest: int) -> int | None:
    """How many batches are scored as one; None: each by itself, as it is best if it is not short.

    Args:
      batches: of a call; a power of two, or they are not shared out evenly and XLA compiles twice.
      longest: of their axes.
    """
    if longest > _SHORT:
        return None
    return min(batches, 1 << (_SCORED_AS_ONE // longest).bit_length() - 1)


def _score_share(
    model: Model, placement: Placement
) -> Callable[[TrainState, Batch, Regularizer], jax.Array]:
    """A score step on one device's share of a batch."""
    axis = placement.axis

    def share(state: TrainState, batch: Batch, regularizer: Regularizer) -> jax.Array:
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

    return share
