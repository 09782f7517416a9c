"""Typed access to the sections of a TOML file, with errors that name the file and the section."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from din_jax.errors import DinError


class Section:
    """One section of a TOML file.

    Args:
      path: the file.
      name: of the section; "" for the whole file.
      value: its content.
      accepted: the keys that it may have.

    Raises:
      DinError: `value` is not a section, or has another key.
    """

    def __init__(self, path: Path, name: str, value: Any, accepted: Iterable[str]):
        self.location = f"{path}: [{name}]" if name else f"{path}:"
        self.name, self.path = name, path
        if not isinstance(value, dict):
            raise DinError(f"{path}: {name} is {shorten(value)}; expected a section [{name}]")
        self.value: dict[str, Any] = value
        accepted = tuple(accepted)
        for key in value:
            if key not in accepted:
                kind = "key" if name else "section"
                raise DinError(
                    f"{self.location} unknown {kind} {key!r}{suggestion(key, accepted)}; "
                    f"its {kind}s are: {', '.join(accepted)}"
                )

    def __contains__(self, key: str) -> bool:
        return key in self.value

    def invalid(self, key: str, expected: str) -> DinError:
        """The error of a key that has an invalid value."""
        return DinError(f"{self.location} {key} = {shorten(self.value[key])}; expected {expected}")

    def missing(self, key: str, expected: str) -> DinError:
        """The error of a key that is missing."""
        return DinError(f"{self.location} has no {key!r}; expected {expected}")

    def text(self, key: str, expected: str = "the name of a column") -> str:
        """The text of a key that must be present."""
        if key not in self:
            raise self.missing(key, expected)
        value = self.value[key]
        if not isinstance(value, str) or not value:
            raise self.invalid(key, f"{expected}, in quotes")
        return value

    def optional_text(self, key: str, expected: str = "the name of a column") -> str | None:
        """The text of a key, or None."""
        return self.text(key, expected) if key in self else None

    def texts(self, key: str, expected: str, *, one: bool = True) -> tuple[str, ...]:
        """The texts of a key that must be present: a list, or with `one` a single one too."""
        if key not in self:
            raise self.missing(key, expected)
        value = self.value[key]
        if one and isinstance(value, str):
            value = [value]
        if (
            not isinstance(value, list)
            or not value
            or not all(isinstance(v, str) and v for v in value)
        ):
            raise self.invalid(key, f"{expected}, in quotes")
        return tuple(value)

    def flag(self, key: str) -> bool:
        """The boolean of a key; false if it is missing."""
        value = self.value.get(key, False)
        if not isinstance(value, bool):
            raise self.invalid(key, "true or false")
        return value

    def integer(self, key: str, minimum: int) -> int:
        """The integer of a key that is present."""
        value = self.value[key]
        if type(value) is not int or value < minimum:
            raise self.invalid(key, f"a whole number from {minimum} on")
        return value


def suggestion(name: str, known: Iterable[str]) -> str:
    """Text that suggests the known name nearest to `name`; "" if none is near."""
    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def shorten(value: Any) -> str:
    """A value as a message shows it."""
    text = str(value) if isinstance(value, datetime.date) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
