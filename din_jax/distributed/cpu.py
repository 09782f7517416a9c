"""What makes steps fast on a CPU: memory that is kept, and how XLA compiles (docs/performance.md).

XLA's CPU back end allocates a step's temporary buffers anew in every step. Beyond 32 MB glibc takes
each from the system and gives it back when it is freed, so that every page is mapped and cleared
again in every step: up to half the time of a step. Beyond 64 MB it does so whatever the thresholds
are, but in the main thread, whose heap alone can grow. Hence a step runs in the thread that calls
it, once what it needs is there; see `ready`.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 29  # a larger block is a table, not a buffer of a step: it goes back when it is freed
_ALL = 2**31 - 1  # bytes that are free in a heap and kept there
_SMALL = 128 << 10  # glibc's own bound for both
_keeps = False  # whether freed memory is kept


def keep_freed_memory() -> bool:
    """Keeps up to 2 GiB of freed memory in the process, and has JAX run a step where it is called.

    Call it before JAX has looked for devices, or steps still run in threads of JAX.

    Returns:
      Whether the C library took it: false where it is not glibc.
    """
    global _keeps
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _keeps = _thresholds(_LARGE, _ALL)
    return _keeps


def ready(leaves: Sequence[Any]) -> list[Any]:
    """The leaves of a step's arguments, NumPy's on the device, when all of them are there.

    JAX runs a step in the thread that calls it only if it need not wait.
    """
    found = list(leaves)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray | np.generic)]
    for i, leaf in zip(places, jax.device_put([leaves[i] for i in places]), strict=True):
        found[i] = leaf
    return jax.block_until_ready(found)


def in_own_thread(call: Callable[[], Any]) -> Any:
    """What `call` returns, from a thread that ends with it: of glibc's, each has a heap of its own.

    Compiling leaves tens of thousands of free blocks between others. Where a step's buffers are
    allocated among them it is a tenth to a third slower. Freed memory goes back to the system
    meanwhile: compiling a step takes some 150 MB, more than the steps of a small one.
    """
    if _keeps:
        _thresholds(_SMALL, _SMALL)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return jax.block_until_ready(pool.submit(call).result())
    finally:
        if _libc() is not None:
            _libc().malloc_trim(0)
        if _keeps:
            _thresholds(_LARGE, _ALL)


@functools.cache
def _libc() -> Any:
    """The C library if it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def _thresholds(large: int, free: int) -> bool:
    """From how many bytes on a block is the system's, and how many free ones a heap keeps."""
    libc = _libc()
    return libc is not None and bool(
        libc.mallopt(_M_MMAP_THRESHOLD, large) and libc.mallopt(_M_TRIM_THRESHOLD, free)
    )


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
