"""The Deep Interest Network (section 4.3): the base model with a local activation unit.

Eq. 3: the interest in an ad is the sum of the behaviours' vectors, weighted by the unit's raw
outputs. In the paper there is no softmax, so that the sum of the weights expresses the strength of
the interest.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.data.packing import AGE_BUCKETS, Batch
from din_jax.data.schema import Schema, Sequence
from din_jax.models.base import Head
from din_jax.models.features import Options, embed, lookups, options, reads_ages, tables
from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.activations import ActivationFactory, activation_factory
from din_jax.nn.codes import Code, lengths, matches, position_code
from din_jax.nn.embedding import Lookups, Tables
from din_jax.nn.pooling import normalize_weights, segment_pool, weighted_pool

__all__ = ["DIN", "lookups", "module", "tables"]


class DIN(nn.Module):
    """DIN: a history is pooled with weights that depend on the ad.

    Attributes:
      options: see `Options`; `mean` does not apply to the history, which is a weighted sum.
      attention_hidden: widths of the activation unit's hidden layers.
      attention_activation: makes the module after each of them.
      difference, outer, block, bias_init: see `ActivationUnit`.
      normalize: see `normalize_weights`.
      position, age, match: whether the unit's inputs are also: a behaviour's place from the end of
        the history, its age, and for each of its fields whether it has an id of the ad (not in the
        paper).
      match_counts: whether the MLP's inputs are also, for each field, how many behaviours have an
        id of the ad, and their fraction (not in the paper).
      intensity: whether the MLP's inputs are also the intensity of the interest (`_intensity`),
        which a normalization takes from the weights (not in the paper).
    """

    options: Options
    attention_hidden: tuple[int, ...]
    attention_activation: ActivationFactory
    difference: bool = False
    outer: bool = False
    block: int = 0
    bias_init: float = 0.0
    normalize: str = "none"
    position: bool = False
    age: bool = False
    match: bool = False
    match_counts: bool = False
    intensity: bool = False

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] and a dict.

        The dict is {"activation_weights": {sequence: [T]}, "interest": {sequence: [B, E]}}; the
        weights are normalized.
        """
        o = self.options
        samples = len(batch.label)
        features = embed(
            tables,
            lookups,
            batch,
            o.schema,
            extra_fields=o.extra_fields,
            mean=o.mean,
            number_vectors=o.number_vectors(),
        )
        weights, interests, numbers = {}, {}, []
        for sequence in o.schema.sequences:
            name, s = sequence.name, features.sequences[sequence.name]
            unit = ActivationUnit(
                self.attention_hidden,
                self.attention_activation,
                difference=self.difference,
                outer=self.outer,
                block=self.block,
                bias_init=self.bias_init,
                name=f"activation_unit_{name}",
            )
            codes = []
            if self.position:
                codes.append(position_code(s.segment_ids, samples))
            if self.age:
                age = batch.sequences[name].age
                assert age is not None  # `din_jax.training.run` asks for it
                codes.append(Code(age, AGE_BUCKETS))
            if self.match or self.match_counts:
                found = _matches(sequence, batch, lookups)
                codes += [Code(matched, 1) for matched in found if self.match]
                if self.match_counts:
                    numbers.append(_match_counts(found, s.segment_ids, samples))
            raw = unit(
                s.behaviors,
                s.ad,
                s.segment_ids,
                s.mask,
                codes=codes,
                weight=batch.weight,
                train=train,
            )
            if self.intensity:
                numbers.append(_intensity(raw, s.segment_ids, samples, s.mask))
            weights[name] = normalize_weights(raw, s.segment_ids, samples, s.mask, self.normalize)
            interests[name] = weighted_pool(
                weights[name], s.behaviors, s.segment_ids, samples, block=self.block
            )
        logits = Head(o)(
            features,
            interests,
            tables,
            lookups,
            batch,
            train=train,
            products=jnp.concatenate(numbers, axis=1) if numbers else None,
        )
        return logits, {"activation_weights": weights, "interest": interests}


def _matches(sequence: Sequence, batch: Batch, lookups: Lookups) -> list[jax.Array]:
    """For each field of a sequence, float32[T]: whether a behaviour has an id of the ad.

    An id that dropout drops matches nothing; the other matches are scaled like vectors, so that
    training expects as many as evaluation. A rare id of the frequency filter, which
    `regularizer.rare` "unknown" looks up in row 0, still matches itself.
    """
    behaviors, samples = batch.sequences[sequence.name], len(batch.label)
    found = []
    for field in sequence.fields:
        visited = lookups[field.table][f"{sequence.name}.{field.name}"]
        shown = lookups[field.table][field.ad]
        # The batch's ids, not those of the lookups, which may be renumbered; unknown ones are 0.
        shared = matches(
            behaviors.fields[field.name],
            batch.fields[field.ad],
            behaviors.segment_ids,
            samples,
            visited.mask,
            shown.mask,
        )
        found.append(jnp.minimum(shared, 1) * jnp.float32(visited.scale * shown.scale))
    return found


def _match_counts(found: list[jax.Array], segment_ids: jax.Array, samples: int) -> jax.Array:
    """float32 [B, 2 F + 1]: log(1 + n) and n / H of each field's matches n; log(1 + H)."""
    matched = segment_pool(jnp.stack(found, axis=1), segment_ids, samples)
    length = lengths(segment_ids, samples)[:, None].astype(jnp.float32)
    return jnp.concatenate(
        [jnp.log1p(matched), matched / jnp.maximum(length, 1), jnp.log1p(length)], axis=1
    )


def _intensity(raw: jax.Array, segment_ids: jax.Array, samples: int, mask: jax.Array) -> jax.Array:
    """float32 [B, 2]: log(1 + Σ σ(w)) and Σ σ(w) / H of the unit's outputs w [T]."""
    total = segment_pool(jnp.where(mask, jax.nn.sigmoid(raw), 0)[:, None], segment_ids, samples)
    length = lengths(segment_ids, samples)[:, None].astype(jnp.float32)
    return jnp.concatenate([jnp.log1p(total), total / jnp.maximum(length, 1)], axis=1)


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
        bias_init=unit.bias_init,
        normalize=unit.normalize,
        position=unit.position,
        age=reads_ages(schema, config),
        match=unit.match,
        match_counts=config.match_counts,
        intensity=config.intensity,
    )
