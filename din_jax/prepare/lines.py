"""Text files, plain or gzipped, as blocks of whole lines; and how an error shows a line."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from din_jax.errors import DinError

BLOCK_BYTES = 1 << 26


def is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, by its content.

    Raises:
      DinError: it can't be read.
    """
    with _readable(path), path.open("rb") as raw:
        return raw.read(2) == b"\x1f\x8b"


def blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (number of the first line, whole lines), some tens of megabytes at a time.

    Raises:
      DinError: the file can't be read, or is a gzip file that is cut short or damaged.
    """
    packed = is_gzip(path)
    with _readable(path):
        line, rest = 1, b""
        with gzip.open(path) if packed else path.open("rb") as file:
            while data := file.read(BLOCK_BYTES):
                head, newline, tail = data.rpartition(b"\n")
                if not newline:
                    rest += data
                    continue
                block = rest + head + newline
                yield line, block
                line += block.count(b"\n")
                rest = tail
        if rest:
            yield line, rest


def shown(line: bytes) -> str:
    """A line as a message quotes it: its beginning."""
    text = line.decode("utf-8", "replace").strip()
    return repr(text if len(text) <= 80 else text[:79] + "…")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DinError(f"{path}: cut short or damaged ({error}); fetch the file again") from error
    except OSError as error:
        raise DinError(f"{path}: {error.strerror or error}") from error
