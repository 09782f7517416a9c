"""Makes steps fast on a CPU: memory allocation and XLA's compiler options (docs/performance.md).

XLA's CPU backend allocates a step's temporary buffers in every step. glibc maps each buffer of more
than 32 MB from the system and unmaps it when it is freed, so that every page is mapped and cleared
again in every step: up to half the time of a step. In threads other than the main thread, whose
heap alone can grow, glibc does so for buffers of more than 64 MB whatever the thresholds are.
Therefore a step must run in the thread that calls it; see `ready`.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from din_jax.distributed import heap

_MMAP_BYTES = 1 << 29  # a larger block is a table, not a step's buffer: unmap it when it is freed
_keeps_memory = False  # whether freed memory stays in the process


def keep_freed_memory() -> bool:
    """Keeps up to 2 GiB of freed memory in the process; runs steps in the thread that calls them.

    Call it before JAX initializes its backend. Otherwise steps still run in JAX's threads.

    Returns:
      Whether the C library accepted the setting: false if it is not glibc.
    """
    global _keeps_memory
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _keeps_memory = heap.set_thresholds(_MMAP_BYTES, heap.MOST_BYTES)
    return _keeps_memory


def ready(leaves: Sequence[Any]) -> list[Any]:
    """Puts NumPy leaves of a step's arguments on the device and waits until all leaves are ready.

    JAX runs a step in the thread that calls it only if the arguments are ready.
    """
    on_device = list(leaves)
    positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray | np.generic)]
    for i, leaf in zip(positions, jax.device_put([leaves[i] for i in positions]), strict=True):
        on_device[i] = leaf
    return jax.block_until_ready(on_device)


def in_own_thread(call: Callable[[], Any]) -> Any:
    """Runs `call` in a new thread, which glibc gives a heap of its own, and returns its result.

    Compiling fragments the heap with tens of thousands of free blocks. A step whose buffers are
    allocated among them is a tenth to a third slower. While `call` runs, freed memory goes back to
    the system: compiling a step takes some 150 MB, more than a small step needs itself.
    """
    if _keeps_memory:
        heap.set_thresholds(heap.DEFAULT_BYTES, heap.DEFAULT_BYTES)
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return jax.block_until_ready(pool.submit(call).result())
    finally:
        heap.give_back()
        if _keeps_memory:
            heap.set_thresholds(_MMAP_BYTES, heap.MOST_BYTES)


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """XLA's compiler options for a step on CPUs; empty if this XLA does not know them.

    They turn off YNNPACK's matrix products, each of which runs in one thread; its sums over a batch
    are slow.
    """
    options: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
