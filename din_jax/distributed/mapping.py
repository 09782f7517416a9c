"""Maps a function of one device's shard over all devices of a placement, and compiles it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from din_jax.distributed import cpu
from din_jax.distributed.devices import AXIS, Placement

MAPPED, COMMON = 0, None  # what has the devices' axis, and what all devices have alike


def over_devices(
    share: Callable[..., Any],
    placement: Placement,
    in_axes: Any,
    out_axes: Any,
    *,
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Compiles a function of one device's share for all devices of a placement.

    One device needs no axis: that is `jax.jit`. Several are `jax.pmap`.

    Args:
      share: the function; its collectives name the placement's axis.
      placement: the devices.
      in_axes: 0 for what has the devices' axis, None for what all have alike.
      out_axes: the same for each array that `share` returns. What it returns for None must be the
        same on all devices: `jax.pmap` does not look.
      donate: positions of the arguments whose memory the results take.
    """
    if placement.axis is None:
        on_cpu = placement.devices[0].platform == "cpu"
        return (_JittedForCPU if on_cpu else jax.jit)(share, donate_argnums=donate)
    # Results go out flat: with several processes `jax.pmap` (JAX 0.10) can't return a dict.
    flat_axes, structure = jax.tree.flatten(out_axes, is_leaf=lambda axis: axis is None)
    mapped = jax.pmap(
        lambda *arguments: tuple(jax.tree.leaves(share(*arguments))),
        AXIS,
        in_axes=in_axes,
        out_axes=tuple(flat_axes),
        devices=placement.devices,
        donate_argnums=donate,
    )
    return _Mapped(mapped, structure)


class _JittedForCPU:
    """A `jax.jit` with options for XLA. Inside another one, which has none, it has none.

    It compiles in a thread of its own, where what that leaves in the heap is in no step's way. What
    JAX sets for a thread, as `with jax.debug_nans(True)` does, does not hold in a first call.
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
    """A `jax.pmap` with results of a structure. `lower` is as in `jax.jit`."""

    def __init__(self, mapped: Any, structure: Any):
        self._mapped, self._structure = mapped, structure
        self.lower = mapped.lower

    def __call__(self, *arguments: Any) -> Any:
        return jax.tree.unflatten(self._structure, self._mapped(*arguments))
