"""Reads files of an object a line, JSON or Python literals, in blocks of whole lines."""

from __future__ import annotations

import ast
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from din_jax.errors import DinError
from din_jax.prepare.log.file_text import open_bytes, read_errors

_BLOCK_BYTES = 1 << 26


def frames(path: Path) -> Iterator[pl.DataFrame]:
    """Yields the objects of a file as rows; columns and their types may differ between the parts.

    Raises:
      DinError: the file can't be read, or a line is no object; the message names it.
    """
    line = 1
    for data in _whole_lines(path):
        try:
            yield pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
        except pl.exceptions.PolarsError as error:
            objects = _python_literals(data)
            if objects is None:
                raise _json_error(path, data, line, str(error)) from error
            yield objects
        line += data.count(b"\n")


def line_numbers(path: Path) -> Iterator[np.ndarray]:
    """Yields the lines, counted from 1, of the objects in each of the `frames`."""
    line = 1
    for data in _whole_lines(path):
        full = [bool(text.strip()) for text in io.BytesIO(data)]
        yield line + np.flatnonzero(full)
        line += data.count(b"\n")


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    try:
        with open_bytes(path) as file:
            for data in itertools.chain(iter(lambda: file.read(_BLOCK_BYTES), b""), [b""]):
                head, newline, tail = (rest + data).rpartition(b"\n")
                if not data:
                    head, newline, tail = rest, b"", b""
                rest = tail
                if (head + newline).strip():
                    yield head + newline
    except DinError:
        raise
    except Exception as error:
        raise read_errors(path, error) from error


def _python_literals(data: bytes) -> pl.DataFrame | None:
    """Lines that are Python literals, {'a': 1}, as in some public data; None if they aren't."""
    rows = []
    try:
        for text in io.BytesIO(data):
            if text.strip():
                value = ast.literal_eval(text.decode().strip())
                if not isinstance(value, dict):
                    return None
                rows.append(json.dumps(value))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return pl.read_ndjson(io.BytesIO("\n".join(rows).encode()), infer_schema_length=None)


def _json_error(path: Path, data: bytes, line: int, reason: str) -> DinError:
    for number, text in enumerate(io.BytesIO(data), line):
        if not text.strip():
            continue
        try:
            valid = isinstance(json.loads(text), dict)
        except ValueError as error:
            valid, reason = False, str(error)
        if not valid:
            return DinError(
                f"{path}, line {number:,}: {text[:80].decode(errors='replace').strip()!r} is not a "
                f"JSON object ({reason.splitlines()[0]}); expected one object a line"
            )
    return DinError(f"{path}: cannot be read as JSON lines ({reason.splitlines()[0]})")
