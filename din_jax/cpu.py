"""What makes steps fast on a CPU: memory that is kept, and how XLA compiles (docs/performance.md).

XLA's CPU back end allocates a step's temporary buffers anew in every step. Beyond 32 MB glibc takes
each from the system and gives it back when it is freed, so that every page is mapped and cleared
again in every step: up to half the time of a step. Beyond 64 MB it does so whatever the thresholds
are, but in the main arena, which is the only one that can grow.
"""

from __future__ import annotations

import ctypes
import functools
import sys

import jax

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE = 1 << 28  # a larger block is a table, not a buffer of a step: it goes back when it is freed


def keep_freed_memory() -> bool:
    """Keeps up to 2 GiB of freed memory in the process. Does nothing where it is not glibc's.

    Call `one_arena` first, or what a step takes beyond 64 MB may still go back.

    Returns:
      Whether the C library took it.
    """
    return _set(_M_MMAP_THRESHOLD, _LARGE) and _set(_M_TRIM_THRESHOLD, 2**31 - 1)


def one_arena() -> bool:
    """Has all threads allocate in the main arena. Does nothing where it is not glibc's.

    Call it before there are threads, before Polars is imported for one: XLA's may share the arena
    that such a thread has.

    Returns:
      Whether the C library took it.
    """
    return _set(_M_ARENA_MAX, 1)


def _set(name: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(name, value))


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """What XLA is told when it compiles a step for CPUs; nothing if its version has no such option.

    No products of YNNPACK's: each is done in one thread, and sums over a batch are slow.
    """
    options: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
