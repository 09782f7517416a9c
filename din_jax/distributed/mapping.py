"""Maps a function over the devices of a placement, and compiles it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from din_jax.distributed import cpu
from din_jax.distributed.devices import AXIS, Placement

# Axes for `over_devices`: of arrays with a leading device axis, and of replicated arrays.
PER_DEVICE, REPLICATED = 0, None


def over_devices(
    local: Callable[..., Any],
    placement: Placement,
    in_axes: Any,
    out_axes: Any,
    *,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Compiles a function of one device's arguments for all devices of a placement.

    Uses `jax.jit` on one device, which has no mapped axis, and `jax.pmap` on several.

    Args:
      local: the function; its collectives name the placement's axis.
      placement: the devices.
      in_axes: `PER_DEVICE` or `REPLICATED` for each argument, or trees of these.
      out_axes: `PER_DEVICE` or `REPLICATED` for each array that `local` returns. A `REPLICATED`
        result must be equal on all devices: `jax.pmap` does not check it.
      donate: indices of the arguments whose buffers are donated to the results.
    """
    if placement.axis is None:
        on_cpu = placement.devices[0].platform == "cpu"
        return (_JittedForCPU if on_cpu else jax.jit)(local, donate_argnums=donate)
    # Return a flat tuple: with several processes `jax.pmap` (JAX 0.10) can't return a dict.
    flat_axes, structure = jax.tree.flatten(out_axes, is_leaf=lambda axis: axis is None)
    mapped = jax.pmap(
        lambda *arguments: tuple(jax.tree.leaves(local(*arguments))),
        AXIS,
        in_axes=in_axes,
        out_axes=tuple(flat_axes),
        devices=placement.devices,
        donate_argnums=donate,
    )
    return _Mapped(mapped, structure)


class _JittedForCPU:
    """A `jax.jit` with compiler options for CPUs, which are dropped inside another `jax.jit`.

    It compiles in a separate thread, so that the calling thread's heap is not fragmented
    (`din_jax.distributed.cpu`). Thread-local settings of JAX, such as `with jax.debug_nans(True)`,
    do not apply to the first call.
    """

    def __init__(self, function: Callable[..., Any], *, donate_argnums: tuple[int, ...]):
        self._plain = jax.jit(function, donate_argnums=donate_argnums)
        options = cpu.compiler_options()
        self._tuned = jax.jit(function, donate_argnums=donate_argnums, compiler_options=options)
        self._compiled = set[Any]()
        self.lower = self._tuned.lower

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._plain(*arguments, **named)
        arguments = jax.tree.unflatten(structure, cpu.ready(leaves))
        shapes = tuple(np.shape(leaf) for leaf in leaves)
        if shapes in self._compiled:
            return self._tuned(*arguments, **named)
        self._compiled.add(shapes)
        return cpu.in_own_thread(functools.partial(self._tuned, *arguments, **named))


class _Mapped:
    """A `jax.pmap` that returns a pytree. `lower` works as that of `jax.jit`."""

    def __init__(self, mapped: Any, structure: Any):
        self._mapped, self._structure = mapped, structure
        self.lower = mapped.lower

    def __call__(self, *arguments: Any) -> Any:
        return jax.tree.unflatten(self._structure, self._mapped(*arguments))
