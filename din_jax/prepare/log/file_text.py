"""Reads the text of a file in blocks: decompressed, and as UTF-8 whatever its encoding."""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from din_jax.errors import DinError

_BLOCK_BYTES = 1 << 25
_FIRST_BYTES = 1 << 16
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {
    b"PK\x03\x04": ("a ZIP archive or an Excel workbook", "unpack it, or export it as CSV"),
    b"BZh": ("compressed by bzip2", "unpack it: bunzip2"),
    b"\xfd7zX": ("compressed by xz", "unpack it: unxz"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it"),
    b"PAR1": ("Parquet", "name it .parquet"),
    b"ARRO": ("Feather", "name it .feather"),
    b"ORC": ("ORC", "write it as Parquet"),
    b"Obj\x01": ("Avro", "write it as Parquet"),
    b"\x89HDF": ("HDF5", "write it as Parquet"),
    b"SQLi": ("an SQLite database", "export its table as CSV"),
}
_LIKELY_ENCODINGS = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1251", "cp1252")


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file of text, decompressed by its content: gzip, Zstandard or neither.

    Raises:
      DinError: its content is of a format that is no text.
    """
    with path.open("rb") as raw:
        magic = raw.read(4)
    for begin, (what, fix) in _OTHERS.items():
        if magic.startswith(begin):
            raise DinError(
                f"{path}: by its content the file is {what}; expected CSV or JSON lines, plain or "
                f"compressed by gzip or Zstandard: {fix}"
            )
    if magic[:2] == _GZIP:
        return gzip.open(path)  # type: ignore[return-value]
    if magic == _ZSTD:
        return io.BufferedReader(_Zstd(path))
    return path.open("rb")


def read_errors(path: Path, error: Exception) -> DinError:
    """The message for a file that can't be read."""
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return DinError(f"{path}: truncated or damaged ({error}); fetch the file again")
    if isinstance(error, OSError):
        return DinError(f"{path}: {error.strerror or error}")
    return DinError(f"{path}: truncated or damaged ({error}); fetch the file again")


class _Zstd(io.RawIOBase):
    """A file compressed by Zstandard, of one frame or several; an error where one is cut off.

    The package's own reader ends in silence there.
    """

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._inside, self._data = False, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._data:
            if self._frame.eof:
                rest = self._frame.unused_data
                self._frame, self._inside = zstandard.ZstdDecompressor().decompressobj(), False
            else:
                rest = b""
            compressed = rest or self._file.read(1 << 16)
            if not compressed:
                if self._inside:
                    raise EOFError("the file ends within a frame")
                return 0
            self._inside = True
            self._data = memoryview(self._frame.decompress(compressed))
        size = min(len(buffer), len(self._data))
        buffer[:size], self._data = self._data[:size], self._data[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with open_bytes(path) as file:
            size = _FIRST_BYTES  # enough for a header
            while data := file.read(size):
                yield data
                size = _BLOCK_BYTES
    except DinError:
        raise
    except Exception as error:
        raise read_errors(path, error) from error


def utf8_blocks(path: Path, encoding: str) -> Iterator[bytes]:
    """The file's text as UTF-8, without a byte order mark.

    Raises:
      DinError: the text is not of this encoding.
    """
    plain = codecs.lookup(encoding).name in ("utf-8", "ascii")
    decoder = codecs.getincrementaldecoder("utf-8" if plain else encoding)()
    done, first = 0, True
    for data in itertools.chain(_chunks(path), [b""]):
        if plain and not decoder.getstate()[0] and data.isascii():
            text = data
        else:
            try:
                decoded = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise _wrong_encoding(path, encoding, done, error) from error
            except UnicodeError as error:  # utf-16 without a byte order mark
                raise DinError(
                    f"{path} is not {encoding.upper()} ({error}); name the file's encoding, "
                    f"{encoding}-le for instance"
                ) from error
            text = decoded.encode()
        if first and text:
            text, first = text.removeprefix(codecs.BOM_UTF8), False
        done += text.count(b"\n")
        if text:
            yield text


def _wrong_encoding(path: Path, encoding: str, lines: int, error: UnicodeDecodeError) -> DinError:
    data, start = error.object, error.start
    line = lines + data.count(b"\n", 0, start) + 1
    begin = data.rfind(b"\n", 0, start) + 1
    end = data.find(b"\n", start)
    text = data[begin : end if end >= 0 else len(data)].strip()[:80]
    readings = []
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not lines:
        return DinError(
            f"{path} begins like UTF-16, not {encoding.upper()}, which is expected. Name the "
            'encoding in the section of the spec: encoding = "utf-16"'
        )
    for candidate in _LIKELY_ENCODINGS:
        try:
            reading = text.decode(candidate)
        except UnicodeDecodeError:
            continue
        if reading.isprintable():
            readings.append(f"encoding = {candidate!r} reads {reading!r}")
    return DinError(
        f"{path}, line {line:,} is not {encoding.upper()}, which is expected. Name the file's "
        "encoding in its section of the spec"
        + (f"; of this line {', '.join(readings)}: choose the one that is text" if readings else "")
    )
