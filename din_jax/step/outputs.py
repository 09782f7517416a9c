"""A score step that also returns what the model computes on the way, for figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from din_jax.data.packing import Batch
from din_jax.distributed.devices import one_device
from din_jax.models.registry import Model
from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.activations import Activations, Dice, PReLU
from din_jax.nn.blocks import InBlocks
from din_jax.nn.losses import click_logit
from din_jax.optim.regularizer import Regularizer
from din_jax.step.binding import bind
from din_jax.step.state import TrainState


class Outputs(NamedTuple):
    """What a model computes for a batch of B samples.

    Attributes:
      logits: [B], of the click probabilities.
      aux: the model's second result, for example {"activation_weights": …, "interest": …}.
      unit_outputs: {activation unit: [T]}, a(e_j, v_A) before any normalization.
      activation_inputs: {activation: ([N, F], bool [N])}, the inputs s of each Dice and PReLU, and
        which rows are real. Names are the modules' paths: "mlp/activation_0".
    """

    logits: Any
    aux: dict[str, Any]
    unit_outputs: dict[str, Any]
    activation_inputs: dict[str, tuple[Any, Any]]


OutputsStep = Callable[[TrainState, Batch], Outputs]


def outputs_step(
    model: Model, regularizer: Regularizer | None = None, *, activations: bool = False
) -> OutputsStep:
    """Makes a step (state, batch) → `Outputs`, on one device. Dice uses its moving averages.

    Args:
      model, regularizer: see `din_jax.step.train.train_step`.
      activations: whether to return `activation_inputs`, which need memory; otherwise it is empty.
    """

    def local_step(state: TrainState, batch: Batch, regularizer: Regularizer) -> Outputs:
        unit_outputs: dict[str, jax.Array] = {}
        inputs: dict[str, tuple[jax.Array, jax.Array]] = {}

        def record(
            call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
        ) -> Any:
            result = call(*args, **kwargs)
            name = "/".join(context.module.path)
            if context.method_name == "__call__":
                if isinstance(context.module, ActivationUnit):
                    unit_outputs[name] = result
                elif activations and isinstance(context.module, Dice | PReLU):
                    inputs[name] = _rows(args[0]), args[1] > 0
            return result

        with nn.intercept_methods(record):
            logits, aux = model.module.apply(
                {"params": state.params, "batch_stats": state.batch_stats},
                state.tables,
                regularizer.scoring(model.lookups(batch)),
                batch,
                train=False,
            )
        inputs = {name: (s[: len(mask)], mask) for name, (s, mask) in inputs.items()}
        return Outputs(click_logit(logits), dict(aux), unit_outputs, inputs)

    return bind(local_step, one_device(), regularizer, trains=False)


def _rows(s: Activations) -> jax.Array:
    """[N, F]: an array over the packed axis, computed if it is lazy."""
    if isinstance(s, InBlocks):
        return s.each(lambda rows, _: rows).reshape(-1, s.shape[-1])
    return s
