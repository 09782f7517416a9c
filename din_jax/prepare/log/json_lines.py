"""Reads files of an object a line, JSON or Python literals, in blocks of whole lines.

A JSON array of objects is read too, at once.
"""

from __future__ import annotations

import ast
import codecs
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
    line, data = 1, b""
    for data in _whole_lines(path):
        try:
            yield pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
        except pl.exceptions.PolarsError as error:
            objects = _python_objects(data)
            if objects is None:
                raise _json_error(path, data, line, str(error)) from error
            yield objects
        line += data.count(b"\n")
    if not data:
        raise DinError(f"{path}: the file is empty; expected one object a line")


def line_numbers(path: Path) -> Iterator[np.ndarray]:
    """Yields the lines, counted from 1, of the objects in each of the `frames`.

    Of an array these are the places of its objects.
    """
    line = 1
    for data in _whole_lines(path):
        full = [bool(text.strip()) for text in io.BytesIO(data)]
        yield line + np.flatnonzero(full)
        line += data.count(b"\n")


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    try:
        with open_bytes(path) as file:
            begin = file.read(_BLOCK_BYTES).removeprefix(codecs.BOM_UTF8)
            if begin.lstrip().startswith(b"["):
                yield _lines_of_array(begin + file.read())
                return
            following = iter(lambda: file.read(_BLOCK_BYTES), b"")
            for data in itertools.chain([begin] if begin else [], following, [b""]):
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


def _lines_of_array(data: bytes) -> bytes:
    """A JSON array of objects as lines; as it is if it is none."""
    try:
        objects = json.loads(data, parse_constant=lambda name: None)
    except ValueError:
        return data
    if not all(isinstance(value, dict) for value in objects):
        return data
    return b"".join(json.dumps(value).encode() + b"\n" for value in objects)


def _python_objects(data: bytes) -> pl.DataFrame | None:
    """Lines of what Python writes: JSON with NaN, which is missing, or literals; None of others."""
    rows = []
    try:
        for line in io.BytesIO(data):
            if text := line.decode().strip():
                try:
                    value = json.loads(text, parse_constant=lambda name: None)
                except ValueError:
                    value = ast.literal_eval(text)
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
                f"JSON object ({reason.splitlines()[0]}); expected one object a line, which "
                "jq -c . writes of objects that take several"
            )
    return DinError(f"{path}: cannot be read as JSON lines ({reason.splitlines()[0]})")
