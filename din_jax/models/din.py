"""The Deep Interest Network (section 4.3): the base model with a local activation unit.

Eq. 3: the interest in an ad is the sum of the behaviours' vectors, weighted by the unit's raw
outputs. There is no softmax, so that the sum of the weights expresses the strength of the interest.
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from din_jax.data.packing import Batch
from din_jax.data.schema import Schema
from din_jax.models.base import Head
from din_jax.models.features import Options, embed, lookups, options, tables
from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.activations import ActivationFactory, activation_factory
from din_jax.nn.embedding import Lookups, Tables
from din_jax.nn.pooling import weighted_pool

__all__ = ["DIN", "lookups", "module", "tables"]


class DIN(nn.Module):
    """DIN: a history is pooled with weights that depend on the ad.

    Attributes:
      options: see `Options`; `mean` does not apply to the history, which is a weighted sum.
      attention_hidden: widths of the activation unit's hidden layers.
      attention_activation: makes the module after each of them.
      difference, outer, block: see `ActivationUnit`.
    """

    options: Options
    attention_hidden: tuple[int, ...]
    attention_activation: ActivationFactory
    difference: bool = False
    outer: bool = False
    block: int = 0

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] and a dict.

        The dict is {"activation_weights": {sequence: [T]}, "interest": {sequence: [B, E]}}.
        """
        o = self.options
        features = embed(tables, lookups, batch, o.schema, extra_fields=o.extra_fields, mean=o.mean)
        weights, interests = {}, {}
        for name, s in features.sequences.items():
            unit = ActivationUnit(
                self.attention_hidden,
                self.attention_activation,
                difference=self.difference,
                outer=self.outer,
                block=self.block,
                name=f"activation_unit_{name}",
            )
            weights[name] = unit(s.behaviors, s.ad, s.segment_ids, s.mask, train=train)
            interests[name] = weighted_pool(
                weights[name],
                s.behaviors,
                s.segment_ids,
                len(batch.label),
                block=self.block,
            )
        head = Head(o)
        logits = head(features, interests, tables, lookups, batch, train=train)
        return logits, {"activation_weights": weights, "interest": interests}


def module(schema: Schema, config: Any, axis_name: str | None = None) -> DIN:
    """Makes the module that `config.model` describes."""
    unit = config.attention
    return DIN(
        options(schema, config, axis_name),
        attention_hidden=tuple(unit.hidden),
        attention_activation=activation_factory(
            unit.activation or config.activation, config, axis_name
        ),
        difference=unit.difference,
        outer=unit.outer,
        block=unit.block,
    )
