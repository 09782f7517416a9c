"""Arrays of the packed axis that are never there as a whole: a block of rows at a time.

What is computed of a long packed axis, [T, F], is mostly wanted for a moment: to compute the next
array from it, and in the backward pass once more. `InBlocks` stands for such an array. It holds
what its rows are computed from, and how; each pass over it computes one block after the other and
keeps only what is asked of them, and so does the pass' backward pass. That costs a computation for
each pass, and holds F columns of one block, not of T rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class InBlocks:
    """An array [T, F], or a tuple of such, as a function of other arrays' rows.

    Attributes:
      function: of the arrays' rows, any number of them: row i of the result is of row i alone.
      arrays: [n, block, …] each, T rows and what fills the last block up.
      mask: [n, block], which rows are real.
    """

    function: Callable[..., Any]
    arrays: tuple[jax.Array, ...]
    mask: jax.Array

    @staticmethod
    def of(
        function: Callable[..., Any], block: int, mask: jax.Array, **arrays: tuple[jax.Array, Any]
    ) -> InBlocks:
        """`function(**arrays)` of so many rows at once.

        Args:
          function: see the attributes.
          block: rows.
          mask: [T].
          arrays: each [T, …], and beside it what fills it up.
        """
        names = tuple(arrays)
        return InBlocks(
            lambda *rows: function(**dict(zip(names, rows, strict=True))),
            tuple(_cut(array, block, fill) for array, fill in arrays.values()),
            _cut(mask, block, False),
        )

    @property
    def aval(self) -> Any:
        """Shape and type of a block."""
        return jax.eval_shape(self.function, *(array[0] for array in self.arrays))

    def then(self, function: Callable[[Any], Any]) -> InBlocks:
        """What `function` makes of these rows, each alone."""
        before = self.function
        return dataclasses.replace(self, function=lambda *rows: function(before(*rows)))

    def each(self, function: Callable[[Any, jax.Array], Any]) -> Any:
        """`function(block, mask)` of every block, [n, …]: one pass."""

        def of_block(given: tuple[tuple[jax.Array, ...], jax.Array]) -> Any:
            rows, mask = given
            return function(self.function(*rows), mask)

        # In a loop nothing is shared between forward and backward pass: no need to prevent it.
        return jax.lax.map(jax.checkpoint(of_block, prevent_cse=False), (self.arrays, self.mask))

    def total(self, function: Callable[[Any], Any]) -> Any:
        """The sum of `function(block)` over the blocks: one pass."""

        def add(so_far: Any, rows: tuple[jax.Array, ...]) -> tuple[Any, None]:
            return so_far + function(self.function(*rows)), None

        like = jax.eval_shape(function, self.aval)
        return jax.lax.scan(
            jax.checkpoint(add, prevent_cse=False), jnp.zeros(like.shape, like.dtype), self.arrays
        )[0]


def _cut(array: jax.Array, block: int, fill: Any) -> jax.Array:
    """[T, …] as [n, block, …]."""
    missing = -len(array) % block
    if missing:
        end = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
        array = jnp.pad(array, end, constant_values=fill)
    return array.reshape(-1, block, *array.shape[1:])
