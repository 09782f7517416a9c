"""Says what is understood of a log's columns, from the first rows of each table."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from din_jax.prepare.log.spec import Spec
from din_jax.prepare.log.tables import Tables

_ROWS = 1_000_000
_EXAMPLES = 3


def preview(spec: Spec) -> Iterator[str]:
    """Yields lines: each column's type, missing and distinct values and examples; then notes."""
    tables = Tables(spec, limit=_ROWS)
    for section, frame in tables.frames.items():
        counts = tables.counts[section]
        more = " (its first rows)" if counts["read"] >= _ROWS else ""
        yield f"[{section}] {counts['read']:,} rows{more}, {counts['duplicates']:,} duplicates"
        for name in frame.columns:
            yield f"  {name.removeprefix('.'):<20}{_described(frame[name])}"
    for note in tables.notes:
        yield f"note  {note}"
    yield "nothing was written; without --check the whole files are prepared"


def _described(values: pl.Series) -> str:
    missing = values.null_count() / max(len(values), 1)
    known = values.drop_nulls()
    several = isinstance(values.dtype, pl.List)
    flat = known.explode().drop_nulls() if several else known
    kind = ", several a row" if several else ""
    if isinstance(flat.dtype, pl.Struct):
        flat, kind = flat.struct.field("id"), f"{kind}, with weights"
    kind = _kind(flat.dtype) + kind
    examples = ", ".join(_short(v) for v in flat.unique(maintain_order=True).head(_EXAMPLES))
    text = f"{kind}, {flat.n_unique():,} distinct, {missing:.1%} missing: {examples}"
    if flat.dtype.is_temporal() or flat.dtype.is_numeric():
        text += f"; from {_short(flat.min())} to {_short(flat.max())}"
    return text


def _kind(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "whole numbers"
    if dtype.is_float():
        return "numbers"
    return "dates" if dtype.is_temporal() else "text"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
