"""The fingerprint of a store: a SHA-256 digest of all that training reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

# Polars is imported only where vocabularies are written or read.
if TYPE_CHECKING:
    import polars as pl

_NOT_IN_IT = ("fingerprint", "origin", "files", "checksum")  # keys of schema.json


def vocabulary_digest(ids: pl.Series, counts: npt.NDArray[Any]) -> str:
    """The digest of a table's raw ids and counts, without row 0."""
    import polars as pl

    digest = hashlib.sha256(counts.astype("<i8").tobytes())
    digest.update(ids.cast(pl.String).str.join("\0").item().encode())
    return digest.hexdigest()


def fingerprint(description: Mapping[str, Any], digests: Mapping[str, str]) -> str:
    """The fingerprint of a store.

    Args:
      description: the content of `schema.json`.
      digests: {column, or "vocab/TABLE": SHA-256 of its values}.
    """
    content = {name: value for name, value in description.items() if name not in _NOT_IN_IT}
    text = json.dumps([content, sorted(digests.items())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
