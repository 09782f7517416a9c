"""Files that must be what they were: checksums, and writing that survives a loss of power."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Polars is imported only where tables are written: training does not need it.
if TYPE_CHECKING:
    import polars as pl

_CHUNK = 1 << 20  # bytes of a file that are read at a time
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # file systems that can't sync say so


def checksum(path: Path) -> list[Any]:
    """[bytes, CRC-32 in hexadecimal] of a file.

    CRC-32 finds every flipped bit and every burst of up to 32 bits, and one of 4 billion other
    damages escapes it. It is no defence against a forger.
    """
    crc, size = 0, 0
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            crc = zlib.crc32(buffer[:count], crc)
            size += count
    return [size, f"{crc:08x}"]


def json_checksum(content: Mapping[str, Any], key: str = "checksum") -> str:
    """CRC-32, in hexadecimal, of a JSON object, whatever its layout.

    Args:
      content: the object.
      key: where the checksum is in the object itself; it does not count.
    """
    rest = {name: value for name, value in content.items() if name != key}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Raises:
      OSError: the disk is full, or fails.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """As `sync`, of a folder with all that it holds."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Writes a table.

    Raises:
      OSError: the disk is full, or fails.
    """
    import polars as pl

    try:
        frame.write_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise OSError(errno.EIO, f"can't be written ({error})", str(path)) from error


def replace_file(path: Path, content: str) -> None:
    """Writes a file at once: after a loss of power it has its old content or the new one."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_text(content)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
