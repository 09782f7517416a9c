"""Describes a model's inputs for the page: the fields, and an example."""

from __future__ import annotations

from typing import Any

from din_jax.data.vocabularies import Fitted
from din_jax.export.encoding import Encoder
from din_jax.serve.id_search import raw
from din_jax.serve.scorer import Scorer


def described(scorer: Scorer) -> dict[str, Any]:
    """The fields of a request, and the request that the model was exported with.

    A field is {"name", "type": "id" or "number", "multi_hot", "weighted", "table"}; its table is
    None if it has no vocabulary, and "whole" says whether its ids are whole numbers. A field of
    behaviours has "ad" too: the field of the candidates that it is compared with.
    """
    encoder = scorer.encoder
    schema = encoder.schema
    return {
        "user": [_field(encoder, field) for field in encoder.user_fields.values()],
        "context": [_field(encoder, field) for field in encoder.context_fields.values()],
        "candidates": [_field(encoder, field) for field in encoder.ad_fields.values()],
        "behaviors": {
            sequence.name: {
                "fields": [
                    *({**_field(encoder, part), "ad": part.ad} for part in sequence.fields),
                    *({**_field(encoder, part), "ad": part.ad} for part in sequence.numbers),
                ],
                "times": sequence.times,
            }
            for sequence in schema.sequences
        },
        "time": encoder.ages or any(sequence.times for sequence in schema.sequences),
        "activation_weights": scorer.artifact.manifest["activation_weights"],
        "example": raw(scorer.artifact.probe["request"]),
    }


def _field(encoder: Encoder, field: Any) -> dict[str, Any]:
    fitted = encoder.transform.tables[field.table] if hasattr(field, "table") else None
    ids = isinstance(fitted, Fitted)
    return {
        "name": field.name,
        "type": "id" if ids else "number",
        "multi_hot": getattr(field, "multi_hot", False),
        "weighted": getattr(field, "weighted", False),
        "table": field.table if ids else None,
        "whole": isinstance(fitted, Fitted) and fitted.ids.dtype.is_integer(),
    }
