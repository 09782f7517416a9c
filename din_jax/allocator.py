"""Makes the C library keep freed memory for the next step, instead of giving it back.

XLA's CPU back end allocates a step's temporary buffers anew in every step. Beyond 32 MB glibc takes
each from the system and gives it back when it is freed, so that every page is mapped and cleared
again in every step: half the time of a step, measured (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import sys

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 28  # a larger block is a table, not a buffer of a step: it goes back when it is freed


def keep_freed_memory() -> bool:
    """Keeps up to 2 GiB of freed memory in the process. Does nothing where it is not glibc's.

    Returns:
      Whether the C library took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
