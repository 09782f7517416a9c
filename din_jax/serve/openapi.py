"""Describes the routes and the model's inputs: OpenAPI 3.1, and tensors as KServe lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import din_jax
from din_jax.data.schema import NumericField
from din_jax.data.vocabularies import Buckets
from din_jax.export.encoding import Encoder
from din_jax.serve.scorer import Scorer

_JSON = "application/json"
_MODEL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "version": {"type": "string"}},
    "required": ["name", "version"],
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "field": {"type": ["string", "null"], "description": "What is wrong."},
                "message": {"type": "string"},
                "id": {"type": "string", "description": "Of an internal error, in the log."},
            },
            "required": ["field", "message"],
        }
    },
    "required": ["error"],
}
_PROBABILITIES = {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_TIMEOUT = {
    "name": "X-Timeout-Ms",
    "in": "header",
    "description": "Milliseconds until the answer is of no use; the server's limit holds too.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}
_RANKING = {
    "bids": {"type": "array", "items": {"type": "number", "minimum": 0}},
    "alpha": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 100, "default": 1},
}
_PROBLEMS = {
    "400": "the request can't be scored",
    "401": "no valid token",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "503": "too many requests; try again",
    "504": "not answered in its time",
}


def document(name: str, version: str, scorer: Scorer) -> dict[str, Any]:
    """The OpenAPI document of a model, with examples out of its probe.

    Args:
      name: of the model.
      version: of the model.
      scorer: of this version.
    """
    inputs = _inputs(scorer.encoder)
    example = {k: v for k, v in scorer.artifact.probe["request"].items() if v is not None}
    number = scorer.encoder.ads(example["candidates"]).size[""]
    bids = [round(0.5 + 0.25 * i, 2) for i in range(number)]
    score = _operation("The click probabilities of candidates.", inputs, example)
    score["responses"]["200"] = _ok({"probabilities": _PROBABILITIES})
    rank = _operation(
        "The candidates in the order of CTR^alpha · bid, the greatest first.",
        {**inputs, "properties": {**inputs["properties"], **_RANKING}},
        {**example, "bids": bids, "alpha": 1.0},
    )
    indices = {
        "type": "array",
        "items": {"type": "integer"},
        "description": "Places in the request.",
    }
    rank["responses"]["200"] = _ok(
        {"indices": indices, "probabilities": _PROBABILITIES, "values": _NUMBERS}
    )
    explain = _operation("The activation weights of the behaviours.", inputs, example)
    weights = {"type": "object", "additionalProperties": {"type": "array", "items": _NUMBERS}}
    explain["responses"]["200"] = _ok({"weights": weights, "probabilities": _PROBABILITIES})
    if not scorer.artifact.manifest["activation_weights"]:
        explain["responses"]["404"] = _problem("the model has no activation unit")
    back = {"type": "object", "properties": {"version": {"type": "string"}}}
    rollback = _operation(
        "Back to the previous version.",
        {**back, "additionalProperties": False},
        {"version": version},
    )
    rollback["responses"] = {
        "200": _ok({}),
        "403": _problem("not allowed here"),
        "409": _problem("there is no previous version, or another one serves"),
    }
    plain = {
        "/v1/inputs": "The fields of a request, and an example; the page reads it.",
        "/metrics": "Metrics in the format of Prometheus.",
        "/openapi.json": "This document.",
        "/v2": "The server.",
        "/v2/health/live": "Whether the server runs.",
        "/v2/health/ready": "Whether to send requests.",
        f"/v2/models/{name}": "Versions, inputs and outputs.",
        f"/v2/models/{name}/ready": "Whether to send requests.",
    }
    get = {"responses": {"200": {"description": "OK"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version, "summary": f"din_jax {din_jax.__version__}"},
        "security": [{}, {"token": []}],
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v1/score": {"post": score},
            "/v1/rank": {"post": rank},
            "/v1/explain": {"post": explain},
            "/v1/rollback": {"post": rollback},
            "/v1/ids/{table}": {"get": _id_search(scorer.encoder)},
            **{path: {"get": {"summary": summary, **get}} for path, summary in plain.items()},
        },
    }


def tensors(encoder: Encoder) -> list[dict[str, Any]]:
    """The inputs as the Open Inference Protocol describes them."""
    groups: list[tuple[str, Mapping[str, Any], list[int]]] = [
        ("user", encoder.user_fields, [1]),
        ("context", encoder.context_fields, [1]),
        ("candidates", encoder.ad_fields, [-1]),
    ]
    for sequence in encoder.schema.sequences:
        parts: list[Any] = [*sequence.fields, *sequence.numbers]
        groups.append((f"behaviors.{sequence.name}", {p.name: p for p in parts}, [-1]))
    return [
        {
            "name": f"{where}.{name}",
            "datatype": "BYTES" if hasattr(field, "table") else "FP64",
            "shape": [*shape, -1] if getattr(field, "multi_hot", False) else shape,
        }
        for where, fields, shape in groups
        for name, field in fields.items()
    ]


def _inputs(encoder: Encoder) -> dict[str, Any]:
    """The schema of a request to score."""

    def value(field: Any) -> dict[str, Any]:
        if isinstance(field, NumericField) or not hasattr(field, "table"):
            return {"type": ["number", "null"]}
        bucketed = isinstance(encoder.transform.tables[field.table], Buckets)
        one = {"type": ["number", "null"] if bucketed else ["string", "integer", "null"]}
        if field.multi_hot and field.weighted:
            pair = {"type": "array", "prefixItems": [one, {"type": "number"}], "minItems": 2}
            weights = {"type": "object", "additionalProperties": {"type": "number"}}
            return {
                "anyOf": [{"type": ["array", "null"], "items": pair | {"maxItems": 2}}, weights]
            }
        return {"type": ["array", "null"], "items": one} if field.multi_hot else one

    properties = {
        "user": _object({n: value(f) for n, f in encoder.user_fields.items()}),
        "context": _object({n: value(f) for n, f in encoder.context_fields.items()}),
        "candidates": _table({n: value(f) for n, f in encoder.ad_fields.items()}, {}, least=1),
    }
    times = encoder.ages
    histories = {}
    for sequence in encoder.schema.sequences:
        parts: list[Any] = [*sequence.fields, *sequence.numbers]
        more = {"time": {"type": "number"}} if sequence.times else {}
        times = times or sequence.times
        histories[sequence.name] = _table({p.name: value(p) for p in parts}, more)
    if histories:
        properties["behaviors"] = _object(histories, required=False)
    if times:
        properties["time"] = {"type": "integer", "description": "Of the request, in seconds."}
    required = [*(n for n in ("user", "context") if properties[n]["required"]), "candidates"]
    if encoder.ages:
        required.append("time")
    return {**_object(properties, required=False), "required": required}


def _object(properties: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required else [],
        "additionalProperties": False,
    }


def _table(columns: dict[str, Any], more: dict[str, Any], least: int = 0) -> dict[str, Any]:
    """Columns of equal length, or a list of rows."""
    every = {**columns, **more}
    lists = {n: {"type": "array", "items": v, "minItems": least} for n, v in every.items()}
    by_column = {**_object(lists), "required": list(columns)}
    row = {**_object(every), "required": list(columns)}
    return {"anyOf": [by_column, {"type": "array", "items": row, "minItems": least}]}


def _operation(summary: str, schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": [_TIMEOUT],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": schema, "example": example}},
        },
        "responses": {status: _problem(text) for status, text in _PROBLEMS.items()},
    }


def _id_search(encoder: Encoder) -> dict[str, Any]:
    tables = [n for n, t in encoder.transform.tables.items() if not isinstance(t, Buckets)]
    limit = {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
    several = {"type": "array", "items": {"type": "string"}, "maxItems": 100}
    title = {"type": ["string", "null"]}
    entry = {
        "type": "object",
        "properties": {
            "id": {"type": ["string", "integer", "number", "boolean"]},
            "title": title,
            "known": {"type": "boolean", "description": "Of an id that was asked for."},
        },
        "required": ["id", "title"],
    }
    found = {"type": "object", "properties": {"ids": {"type": "array", "items": entry}}}
    content = {_JSON: {"schema": {**found, "required": ["ids"]}}}
    return {
        "summary": "Ids that contain a text, or whose titles do; or the titles of ids.",
        "parameters": [
            {"name": "table", "in": "path", "required": True, "schema": {"enum": tables}},
            {"name": "query", "in": "query", "schema": {"type": "string", "maxLength": 200}},
            {"name": "limit", "in": "query", "schema": limit},
            {"name": "id", "in": "query", "schema": several},
            _TIMEOUT,
        ],
        "responses": {
            "200": {"description": "OK", "content": content},
            "400": _problem("a limit is passed"),
            "401": _problem(_PROBLEMS["401"]),
            "404": _problem("no such table"),
            "503": _problem(_PROBLEMS["503"]),
            "504": _problem(_PROBLEMS["504"]),
        },
    }


def _ok(properties: dict[str, Any]) -> dict[str, Any]:
    every = {**properties, "model": _MODEL}
    if properties:
        every["unknown_ids"] = {"type": "integer", "minimum": 0}
    schema = {"type": "object", "properties": every, "required": list(every)}
    return {"description": "OK", "content": {_JSON: {"schema": schema}}}


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": _ERROR}}}
