"""Scores one user's candidates: a pure function that computes the user's side once.

A batch repeats a history for each of its samples. Here the model scores one user and one ad, and
`jax.vmap` maps it over the ads alone: what does not depend on the ad (the behaviours' vectors, and
their part of the activation unit's first layer) is computed once, whatever the model. A second
`jax.vmap` maps it over the users of several requests.

The arguments are dicts of arrays, so that the function can be exported. For U users of C ads each:

    users = {
      "fields": {field of the user or the context: int32[U]},
      "sequences": {sequence: {"mask": bool[U, H], "fields": {field: int32[U, H]}}},
    }
    ads = {field of the ad: int32[U, C]}

A numeric field is float32, NaN where it is missing. A multi-hot field is {"values": int32[…, V],
"length": int32[…]}, its values padded with anything; in a sequence it is {"values": int32[U, V],
"segment_ids": int32[U, V]}: the behaviour of each value, ascending, H for padding. A weighted one
has {"weights": float32} beside its values. Behaviours with ages have {"age": int32[U, H]}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from din_jax.data.packing import Batch, Behaviors, Packed
from din_jax.models.registry import Model
from din_jax.nn.losses import click_logit
from din_jax.optim.regularizer import filter_ids

Arrays = Mapping[str, Any]
Scoring = Callable[[Arrays, Arrays, Arrays], tuple[jax.Array, dict[str, jax.Array]]]


def scoring(model: Model, *, unknown: bool = False) -> Scoring:
    """Makes a function (weights, users, ads) → (logits [U, C], activation weights).

    The weights are {"params", "batch_stats", "tables": {name: [K, D]}, "frequent": {table: bool[K]
    of the ids that a frequency filter keeps}}. Those of the activation unit are {sequence: [U, C,
    H]}, 0 for padding; none of models without one.

    Args:
      model: of the inputs' schema.
      unknown: see `din_jax.optim.regularizer.filter_ids`.
    """

    def one(weights: Arrays, user: Arrays, ad: Arrays) -> tuple[jax.Array, dict[str, jax.Array]]:
        batch = _batch(user, ad)
        logits, aux = model.module.apply(
            {"params": weights["params"], "batch_stats": weights["batch_stats"]},
            weights["tables"],
            filter_ids(model.lookups(batch), weights["frequent"], unknown=unknown),
            batch,
            train=False,
        )
        return click_logit(logits)[0], dict(aux.get("activation_weights", {}))

    of_user = jax.vmap(one, in_axes=(None, None, 0))
    return jax.vmap(of_user, in_axes=(None, 0, 0))


def _batch(user: Arrays, ad: Arrays) -> Batch:
    """The batch of one sample."""
    return Batch(
        label=jnp.zeros(1),
        weight=jnp.ones(1),
        user=jnp.zeros(1, jnp.int32),
        fields={name: _field(value) for name, value in {**user["fields"], **ad}.items()},
        sequences={name: _behaviors(value) for name, value in user["sequences"].items()},
    )


def _field(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value[None]
    segment_ids = _segment_ids(value["length"], value["values"].shape[0])
    return Packed(value["values"], segment_ids, value.get("weights"))


def _behaviors(value: Arrays) -> Behaviors:
    fields = {
        name: Packed(ids["values"], ids["segment_ids"], ids.get("weights"))
        if isinstance(ids, Mapping)
        else ids
        for name, ids in value["fields"].items()
    }
    return Behaviors(fields, jnp.where(value["mask"], 0, 1), value.get("age"))


def _segment_ids(length: jax.Array, capacity: Any) -> jax.Array:
    """0 for the first entries, 1 for padding."""
    return jnp.where(jnp.arange(capacity) < length, 0, 1)
