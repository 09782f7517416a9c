"""Maps a function of one device's shard over all devices of a placement, and compiles it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from din_jax.distributed import cpu
from din_jax.distributed.devices import AXIS, Placement

# Axes for `over_devices`: of arrays with a leading device axis, and of those equal on all devices.
PER_DEVICE, REPLICATED = 0, None


def over_devices(
    local: Callable[..., Any],
    placement: Placement,
    in_axes: Any,
    out_axes: Any,
    *,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Compiles a function of one device's local batch for all devices of a placement.

    One device needs no axis: that is `jax.jit`. Several are `jax.pmap`.

    Args:
      local: the function; its collectives name the placement's axis.
      placement: the devices.
      in_axes: `PER_DEVICE` or `REPLICATED` for each argument, or trees of these.
      out_axes: the same for each array that `local` returns. A `REPLICATED` result must be equal on
        all devices: `jax.pmap` does not check it.
      donate: positions of the arguments whose buffers the results reuse.
    """
    if placement.axis is None:
        on_cpu = placement.devices[0].platform == "cpu"
        return (_JittedForCPU if on_cpu else jax.jit)(local, donate_argnums=donate)
    # Results go out flat: with several processes `jax.pmap` (JAX 0.10) can't return a dict.
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
    """A `jax.jit` with compiler options for CPUs. Traced inside another `jax.jit` it has none.

    It compiles in a thread of its own, so that the heap of the calling thread is not fragmented
    (`din_jax.distributed.cpu`). A thread-local setting of JAX, such as `with jax.debug_nans(True)`,
    does not reach the first call.
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
    """A `jax.pmap` that returns a pytree. `lower` is that of `jax.jit`."""

    def __init__(self, mapped: Any, structure: Any):
        self._mapped, self._structure = mapped, structure
        self.lower = mapped.lower

    def __call__(self, *arguments: Any) -> Any:
        return jax.tree.unflatten(self._structure, self._mapped(*arguments))
