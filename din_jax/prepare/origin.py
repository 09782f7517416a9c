"""Formats the origin of a store, as a preparation returns it, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def lines(origin: Mapping[str, Any], width: int = 28) -> Iterator[str]:
    """Yields a line for each entry of a flat origin, and one for each of its "notes"."""
    for name, value in origin.items():
        if name == "notes":
            yield from (f"{'note':<{width}}{note}" for note in value)
        else:
            text = f"{value:,}" if isinstance(value, int) else value
            yield f"{name:<{width}}{text}"
