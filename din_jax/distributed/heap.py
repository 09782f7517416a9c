"""What glibc's malloc does with memory that is freed."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

# Parameters of `mallopt`, as numbered in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
DEFAULT_BYTES = 128 << 10  # glibc's default for both
MOST_BYTES = 2**31 - 1  # the greatest value of both


def set_thresholds(mmap_bytes: int, trim_bytes: int) -> bool:
    """Sets the size from which blocks are mapped, and the free bytes that a heap keeps.

    A mapped block goes back to the system when it is freed, and the next one is cleared page by
    page.

    Returns:
      Whether the C library accepted them: false if it is not glibc.
    """
    libc = _libc()
    return libc is not None and bool(
        libc.mallopt(_M_MMAP_THRESHOLD, mmap_bytes) and libc.mallopt(_M_TRIM_THRESHOLD, trim_bytes)
    )


def give_back() -> None:
    """Gives free memory at the ends of the heaps back to the system."""
    if _libc() is not None:
        _libc().malloc_trim(0)


@functools.cache
def _libc() -> Any:
    """Returns the C library if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
