"""What a server is told, by flags or by a deployment."""

from __future__ import annotations

import dataclasses
from typing import Any

from din_jax.errors import DinError


def _option(default: Any, help: str, least: float = 0) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "least": least})


@dataclasses.dataclass(frozen=True)
class Options:
    """How requests are scored and limited (docs/serving.md).

    Raises:
      DinError: a number is out of its range.
    """

    name: str = _option("", "of the model in answers (default: the folder's)")
    max_batch: int = _option(4, "most requests in one computation", 1)
    max_wait_ms: float = _option(0.0, "wait for others to merge with")
    max_queue: int = _option(64, "requests that are admitted", 1)
    timeout_ms: float = _option(1000.0, "of a request", 1)
    candidates_per_call: int = _option(256, "computed at a time", 1)
    max_candidates_per_request: int = _option(2000, "most candidates", 1)
    max_history_per_request: int = _option(10_000, "most behaviours of a history")
    max_body_bytes: int = _option(1 << 20, "of a request", 1)
    reload_seconds: float = _option(10.0, "look for versions so often; 0: never")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), field.metadata["least"]
            if not isinstance(value, str) and not value >= least:
                raise DinError(f"{field.name}={value}: expected {least} or more")
