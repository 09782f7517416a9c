"""The network of the authors' repository (zhougr1993/DeepInterestNetwork at 9765f96).

It differs from the paper's text in every part; `docs/released-code.md` lists the differences. It is
a separate model, so that the paper's models need no options for it.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.config import default_config
from din_jax.data.packing import Batch
from din_jax.data.schema import Schema
from din_jax.errors import DinError
from din_jax.models import features
from din_jax.models.features import ITEM_BIAS, embed
from din_jax.nn.activation_unit import ActivationUnit
from din_jax.nn.activations import ActivationFactory, Sigmoid
from din_jax.nn.embedding import Lookup, Lookups, Tables, TableSpec, lookup
from din_jax.nn.mlp import MLP
from din_jax.nn.numbers import NumberVectors
from din_jax.nn.pooling import segment_mean, segment_pool, segment_softmax

# Keys of `config.model` and `config.model.attention` that must have their default values.
_FIXED = (
    "pooling",
    "extra_fields",
    "item_bias",
    "bias_fields",
    "interest_product",
    "match_counts",
    "intensity",
    "embedding_stddev",
    "embedding_init",
)
_FIXED_ATTENTION = (
    "activation",
    "difference",
    "outer",
    "block",
    "normalize",
    "bias_init",
    "position",
    "age",
    "match",
)
_BATCH_NORM_EPSILON = 1e-3  # TensorFlow's default, which the authors use


class ReleasedDice(nn.Module):
    """The repository's Dice: p = sigmoid(β·s / √(1 + 10⁻³)), with β and α initialized with zeros.

    Its normalisation is in inference mode in all steps, so that E[s] remains 0 and Var[s] remains
    1: it has no batch statistics.
    """

    @nn.compact
    def __call__(self, s: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """Maps s [N, F] to [N, F]."""
        del mask, train
        alpha = self.param("alpha", nn.initializers.zeros, s.shape[-1:])
        beta = self.param("beta", nn.initializers.zeros, s.shape[-1:])
        p = nn.sigmoid(beta[None] * s / math.sqrt(1 + _BATCH_NORM_EPSILON))
        return alpha[None] * (1 - p) * s + p * s


class IdleBatchNorm(nn.Module):
    """Batch normalisation that is always in inference mode: γ·x / √(1 + 10⁻³) + β."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N, F] to [N, F]."""
        gamma = self.param("gamma", nn.initializers.ones, x.shape[-1:])
        beta = self.param("beta", nn.initializers.zeros, x.shape[-1:])
        return gamma[None] * x / math.sqrt(1 + _BATCH_NORM_EPSILON) + beta[None]


class ReleasedCode(nn.Module):
    """The repository's DIN, or its base model (mean pooling) if `attention` is False.

    Attributes:
      schema: the data set's schema, with one behaviour sequence.
      attention: whether the weights are a softmax over the history of scores divided by √E, and
        u ∘ i is concatenated.
      hidden: widths of the MLP's hidden layers (the repository: 80, 40).
      attention_hidden: widths of the attention's hidden layers, which have sigmoid activations (the
        repository: 80, 40).
      activation: the MLP's activation, `Sigmoid` or `ReleasedDice`.
    """

    schema: Schema
    attention: bool
    hidden: tuple[int, ...]
    attention_hidden: tuple[int, ...]
    activation: ActivationFactory

    @nn.compact
    def __call__(
        self, tables: Tables, lookups: Lookups, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Returns logits [B, 2] of [0, z] and a dict; z is the repository's only logit.

        The dict is {"activation_weights": {sequence: [T]} if `attention`, "interest": {sequence:
        [B, E]}}.
        """
        samples = len(batch.label)
        embedded = embed(
            tables,
            lookups,
            batch,
            self.schema,
            extra_fields=(),
            mean=True,
            number_vectors=NumberVectors(dim=0, stddev=0.0),  # unused: `module` refuses numbers
        )
        ((name, s),) = embedded.sequences.items()
        aux: dict[str, Any] = {}
        if self.attention:
            unit = ActivationUnit(
                self.attention_hidden, Sigmoid, difference=True, name="activation_unit"
            )
            scores = unit(s.behaviors, s.ad, s.segment_ids, s.mask, train=train)
            scores = scores / math.sqrt(s.behaviors.shape[1])
            weights = segment_softmax(scores, s.segment_ids, samples, s.mask)
            history = segment_pool(weights[:, None] * s.behaviors, s.segment_ids, samples)
            aux["activation_weights"] = {name: weights}
        else:
            history = segment_mean(s.behaviors, s.segment_ids, samples)
        aux["interest"] = {name: history}

        user = IdleBatchNorm(name="history_norm")(history)
        user = nn.Dense(
            s.ad.shape[1], kernel_init=nn.initializers.glorot_uniform(), name="history_dense"
        )(user)
        vectors = [user, s.ad] + [user * s.ad] * self.attention
        x = IdleBatchNorm(name="input_norm")(jnp.concatenate(vectors, axis=1))
        mlp = MLP(self.hidden, 1, self.activation, name="mlp")
        logit = mlp(x, batch.weight > 0, train=train)[:, 0]
        logit += lookup(tables[ITEM_BIAS], lookups[ITEM_BIAS][ITEM_BIAS])[:, 0]
        return jnp.stack([jnp.zeros_like(logit), logit], axis=1), aux


def tables(schema: Schema, config: Any) -> dict[str, TableSpec]:
    """The tables of `features.tables`, with an item bias and TensorFlow's default initializer."""
    specs = features.tables(schema, _with_item_bias(schema, config))
    return {
        name: spec
        if name == ITEM_BIAS
        else spec._replace(initializer=_uniform(math.sqrt(6 / (spec.rows + spec.dim))))
        for name, spec in specs.items()
    }


def _uniform(limit: float) -> nn.initializers.Initializer:
    """Uniform initial values in ±limit, which do not depend on the number of rows in a chunk."""

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def lookups(batch: Batch, schema: Schema, config: Any) -> dict[str, dict[str, Lookup]]:
    """The lookups of `features.lookups`, with an item bias."""
    return features.lookups(batch, schema, _with_item_bias(schema, config))


def module(schema: Schema, config: Any, axis_name: str | None = None) -> ReleasedCode:
    """Makes the module that `config.model` describes.

    Raises:
      DinError: the repository's network does not support the schema or the value of a key.
    """
    del axis_name  # no batch statistics
    default = default_config().model
    fixed = {
        **{name: config[name] for name in _FIXED},
        **{f"attention.{name}": config.attention[name] for name in _FIXED_ATTENTION},
    }
    for name, value in fixed.items():
        expected: Any = default
        for key in name.split("."):
            expected = expected[key]
        if value != expected:
            raise DinError(
                f"config.model.{name}={value!r}: preset='released_code' fixes this part of the "
                f"network; leave it at {expected!r}"
            )
    if len(schema.sequences) != 1 or {f.name for f in schema.inputs() if f.group != "ad"}:
        raise DinError(
            "config.model.preset='released_code' takes one behaviour sequence and ad fields only; "
            "use preset='paper' for this data set"
        )
    if schema.numbers:
        names = ", ".join(number.name for number in schema.numbers)
        raise DinError(
            "config.model.preset='released_code' takes no numeric fields; the data set has: "
            f"{names}. Use preset='paper', or leave them out by config.model.without"
        )
    activations: dict[str, ActivationFactory] = {"sigmoid": Sigmoid, "dice": ReleasedDice}
    if config.activation not in activations:
        raise DinError(
            f"config.model.activation={config.activation!r}: preset='released_code' has "
            "'sigmoid' or 'dice'"
        )
    return ReleasedCode(
        schema=schema,
        attention=config.name == "din",
        hidden=tuple(config.hidden),
        attention_hidden=tuple(config.attention.hidden),
        activation=functools.partial(activations[config.activation]),
    )


def _with_item_bias(schema: Schema, config: Any) -> Any:
    config = config.copy_and_resolve_references()
    config.item_bias = schema.sequences[0].fields[0].ad
    config.extra_fields = ()
    return config
