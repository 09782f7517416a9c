"""Arrays of the packed axis that are computed a block of rows at a time, and never stored whole.

Most arrays [T, F] of a long packed axis are needed twice: to compute the next array, and in the
backward pass. `InBlocks` represents such an array by the function and the inputs that it is
computed from. A pass over it computes one block after the other and stores only the results that
are asked for; the backward pass computes each block again. So each pass costs one more computation,
and memory holds F columns of a block's rows instead of T.
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
      function: of any number of rows of each array; each row's result depends on that row alone.
      arrays: [n, block, …] each: T rows, and padding that fills the last block up.
      mask: [n, block], which rows are real.
    """

    function: Callable[..., Any]
    arrays: tuple[jax.Array, ...]
    mask: jax.Array

    @staticmethod
    def of(
        function: Callable[..., Any], block: int, mask: jax.Array, **arrays: tuple[jax.Array, Any]
    ) -> InBlocks:
        """`function(**arrays)`, in blocks of so many rows.

        Args:
          function: see the attributes.
          block: rows.
          mask: [T], which rows are real.
          arrays: {name: (array [T, …], value of its padding)}.
        """
        return InBlocks(
            lambda *rows: function(**dict(zip(arrays, rows, strict=True))),
            tuple(_cut(array, block, fill) for array, fill in arrays.values()),
            _cut(mask, block, False),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, padding included."""
        return (self.mask.size, *self._of_block().shape[1:])

    @property
    def dtype(self) -> Any:
        """Of the array."""
        return self._of_block().dtype

    def then(self, function: Callable[[Any], Any]) -> InBlocks:
        """`function` of these rows; each row's result depends on that row alone."""
        before = self.function
        return dataclasses.replace(self, function=lambda *rows: function(before(*rows)))

    def each(self, function: Callable[[Any, jax.Array], Any]) -> Any:
        """`function(rows, mask)` of every block, [n, …]: one pass."""

        def of_block(given: tuple[tuple[jax.Array, ...], jax.Array]) -> Any:
            rows, mask = given
            return function(self.function(*rows), mask)

        return jax.lax.map(_recomputed(of_block), (self.arrays, self.mask))

    def total(self, function: Callable[[Any], jax.Array]) -> jax.Array:
        """The sum of `function(rows)` over the blocks: one pass."""
        of_block = _recomputed(lambda rows: function(self.function(*rows)))
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


def _recomputed(of_block: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # The forward and the backward pass are two loops, and XLA shares no computation between loops:
    # no barriers are needed against that.
    return jax.checkpoint(of_block, prevent_cse=False)
