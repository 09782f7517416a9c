"""Arrays of the packed axis that are never there as a whole: a block of rows at a time.

What is computed of a long packed axis, [T, F], is mostly wanted for a moment: to compute the next
array from it, and once more in the backward pass. `InBlocks` stands for such an array. It holds
what its rows are computed from, and how; a pass over it computes one block after the other and
keeps only what is asked of each, and the backward pass computes the block anew. So each pass costs
one computation more, and F columns are held of a block's rows, not of T.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class InBlocks:
    """An array [T, F], or a structure of such, as a function of other arrays' rows.

    Attributes:
      function: of as many rows of each array as there may be; a row's result is of that row alone.
      arrays: [n, block, …] each: T rows, and what fills the last block up.
      mask: [n, block], which rows are real.
    """

    function: Callable[..., Any]
    arrays: tuple[jax.Array, ...]
    mask: jax.Array

    @staticmethod
    def of(
        function: Callable[..., Any], block: int, mask: jax.Array, **arrays: tuple[jax.Array, Any]
    ) -> InBlocks:
        """`function(**arrays)`, so many rows at once.

        Args:
          function: see the attributes.
          block: rows.
          mask: [T], which rows are real.
          arrays: each [T, …], and beside it the value that fills it up.
        """
        return InBlocks(
            lambda *rows: function(**dict(zip(arrays, rows, strict=True))),
            tuple(_cut(array, block, fill) for array, fill in arrays.values()),
            _cut(mask, block, False),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, with the rows that fill up."""
        return (self.mask.size, *self._of_block().shape[1:])

    @property
    def dtype(self) -> Any:
        """Of the array."""
        return self._of_block().dtype

    def then(self, function: Callable[[Any], Any]) -> InBlocks:
        """What `function` makes of these rows, each alone."""
        before = self.function
        return dataclasses.replace(self, function=lambda *rows: function(before(*rows)))

    def each(self, function: Callable[[Any, jax.Array], Any]) -> Any:
        """`function(rows, mask)` of every block, [n, …]: one pass."""

        def of_block(given: tuple[tuple[jax.Array, ...], jax.Array]) -> Any:
            rows, mask = given
            return function(self.function(*rows), mask)

        return jax.lax.map(_computed_anew(of_block), (self.arrays, self.mask))

    def total(self, function: Callable[[Any], jax.Array]) -> jax.Array:
        """The sum of `function(rows)` over the blocks: one pass."""
        of_block = _computed_anew(lambda rows: function(self.function(*rows)))
        like = jax.eval_shape(function, self._of_block())
        return jax.lax.scan(
            lambda so_far, rows: (so_far + of_block(rows), None),
            jnp.zeros(like.shape, like.dtype),
            self.arrays,
        )[0]

    def _of_block(self) -> Any:
        return jax.eval_shape(self.function, *(array[0] for array in self.arrays))


def _cut(array: jax.Array, block: int, fill: Any) -> jax.Array:
    """[T, …] as [n, block, …]."""
    missing = -len(array) % block
    if missing:
        ends = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
        array = jnp.pad(array, ends, constant_values=fill)
    return array.reshape(-1, block, *array.shape[1:])


def _computed_anew(of_block: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # A loop's forward and backward pass are two loops, between which XLA shares nothing: there is
    # no need for the barriers that keep it from doing so.
    return jax.checkpoint(of_block, prevent_cse=False)
