"""Reads text files, plain or gzipped, in blocks of whole lines; quotes a line in a message."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from din_jax.errors import DinError

BLOCK_BYTES = 1 << 26


def is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, judged by its content.

    Raises:
      DinError: the file can't be read.
    """
    with _read_errors(path), path.open("rb") as raw:
        return raw.read(2) == b"\x1f\x8b"


def blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (number of the first line, whole lines) in blocks of about `BLOCK_BYTES`.

    A byte order mark is left out.

    Raises:
      DinError: the file can't be read, or is a truncated or damaged gzip file.
    """
    gzipped = is_gzip(path)
    with _read_errors(path):
        line = 1
        with gzip.open(path) if gzipped else path.open("rb") as file:
            partial_line = file.read(len(codecs.BOM_UTF8)).removeprefix(codecs.BOM_UTF8)
            while data := file.read(BLOCK_BYTES):
                head, newline, tail = data.rpartition(b"\n")
                if not newline:
                    partial_line += data
                    continue
                block = partial_line + head + newline
                yield line, block
                line += block.count(b"\n")
                partial_line = tail
        if partial_line:
            yield line, partial_line


def quoted(line: bytes) -> str:
    """The beginning of a line, as a message quotes it."""
    text = line.decode("utf-8", "replace").strip()
    return repr(text if len(text) <= 80 else text[:79] + "…")


@contextlib.contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turns the errors of reading a file into `DinError`."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DinError(f"{path}: truncated or damaged ({error}); fetch the file again") from error
    except OSError as error:
        raise DinError(f"{path}: {error.strerror or error}") from error
