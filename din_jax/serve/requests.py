"""Reads the JSON of requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from din_jax.export.encoding import InvalidRequest

_SECONDS = 2**53  # of a time: exact as a float

Columns = dict[str, Any] | list[Any]


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The arguments of `Scorer.score`; the encoder checks the values of the fields."""

    candidates: Columns
    user: dict[str, Any] = {}
    context: dict[str, Any] = {}
    behaviors: dict[str, Columns] = {}
    time: Annotated[int, Meta(ge=-_SECONDS, le=_SECONDS)] | None = None


class RankRequest(ScoreRequest, kw_only=True):
    """The arguments of `Scorer.rank`."""

    bids: list[Annotated[float, Meta(ge=0)]] | None = None
    alpha: Annotated[float, Meta(gt=0, lt=100)] = 1.0


class RollbackRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Which version to leave; any, if it is empty."""

    version: str = ""


Request = TypeVar("Request", ScoreRequest, RankRequest, RollbackRequest)

_DECODERS: dict[type, Any] = {
    kind: msgspec.json.Decoder(kind) for kind in (ScoreRequest, RankRequest, RollbackRequest)
}


def parse(kind: type[Request], body: bytes) -> Request:
    """Decodes a request.

    Raises:
      InvalidRequest: it is no JSON, or has an unknown field or one of another type.
    """
    try:
        request: Request = _DECODERS[kind].decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest("body", f"no JSON ({error})") from error
    except RecursionError as error:
        raise InvalidRequest("body", "nested too deeply") from error
    return request


def check_sizes(request: ScoreRequest, *, max_candidates: int, max_history: int) -> None:
    """Checks how much is to be computed, before anything is.

    Raises:
      InvalidRequest: there are no candidates or too many, too many behaviours, or not as many bids
        as candidates.
    """
    number = _length(request.candidates)
    if not number:
        raise InvalidRequest("candidates", "none; expected one or more")
    if number > max_candidates:
        raise InvalidRequest("candidates", f"{number:,}; at most {max_candidates:,} are taken")
    for name, columns in request.behaviors.items():
        if (number := _length(columns)) > max_history:
            problem = f"{number:,} behaviors; at most {max_history:,} are taken, the most recent"
            raise InvalidRequest(f"behaviors.{name}", problem)
    if isinstance(request, RankRequest) and request.bids is not None:
        bids, number = len(request.bids), _length(request.candidates)
        if bids != number:
            raise InvalidRequest("bids", f"{bids:,}; expected {number:,}, one a candidate")


def _length(columns: Columns) -> int:
    if isinstance(columns, Mapping):
        return max((len(c) for c in columns.values() if isinstance(c, list)), default=0)
    return len(columns)


def _invalid(message: str) -> InvalidRequest:
    """msgspec's message as a field and a problem."""
    problem, _, place = message.partition(" - at `$")
    field = place.rstrip("`").lstrip(".")
    if match := re.search(r"(unknown|missing required) field `(.*)`$", problem):
        field = ".".join(filter(None, (field, match[2])))
        problem = "unknown" if match[1] == "unknown" else "missing"
    return InvalidRequest(field or "body", problem[0].lower() + problem[1:])
