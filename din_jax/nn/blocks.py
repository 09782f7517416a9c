"""Lazy arrays over the packed axis, which are computed in blocks of rows and never stored in full.

An array [T, F] over a long packed axis is used twice: to compute the next array, and in the
backward pass. `InBlocks` represents such an array by a function and its inputs. A pass over it
computes one block after another and stores only the reduced results; the backward pass recomputes
each block (rematerialization). Each pass costs one more forward computation, and memory holds F
columns of a block's rows instead of T rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class InBlocks:
    """A lazy array [T, F], or a pytree of such arrays, as a row-wise function of other arrays.

    Attributes:
      function: maps any number of rows of `arrays`; each row of its result depends only on the same
        row of `arrays`.
      arrays: each is [n, block, …]: T rows, then padding in the last block.
      mask: bool[n, block], True for real rows; or float[n, block], their weights, 0 for padding.
    """

    function: Callable[..., Any]
    arrays: tuple[jax.Array, ...]
    mask: jax.Array

    @staticmethod
    def of(
        function: Callable[..., Any], block: int, mask: jax.Array, **arrays: tuple[jax.Array, Any]
    ) -> InBlocks:
        """Makes `function(**arrays)` in blocks.

        Args:
          function: see the attributes.
          block: the number of rows in a block.
          mask: [T], see the attributes.
          arrays: {name: (array [T, …], value of its padding)}.
        """
        return InBlocks(
            lambda *rows: function(**dict(zip(arrays, rows, strict=True))),
            tuple(_split(array, block, fill) for array, fill in arrays.values()),
            _split(mask, block, False),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array, including padding."""
        return (self.mask.size, *self._block_shape().shape[1:])

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        return self._block_shape().dtype

    def then(self, function: Callable[[Any], Any]) -> InBlocks:
        """Composes with another row-wise function; computes nothing yet."""
        inner = self.function
        return dataclasses.replace(self, function=lambda *rows: function(inner(*rows)))

    def each(self, function: Callable[[Any, jax.Array], Any]) -> Any:
        """Computes `function(rows, mask)` of every block, stacked to [n, …], in one pass."""

        def block_result(block: tuple[tuple[jax.Array, ...], jax.Array]) -> Any:
            rows, mask = block
            return function(self.function(*rows), mask)

        return jax.lax.map(_rematerialized(block_result), (self.arrays, self.mask))

    def total(self, function: Callable[[Any], jax.Array]) -> jax.Array:
        """Computes the sum of `function(rows)` over the blocks, in one pass."""
        block_result = _rematerialized(lambda rows: function(self.function(*rows)))
        like = jax.eval_shape(function, self._block_shape())
        total, _ = jax.lax.scan(
            lambda partial, rows: (partial + block_result(rows), None),
            jnp.zeros(like.shape, like.dtype),
            self.arrays,
        )
        return total

    def _block_shape(self) -> Any:
        return jax.eval_shape(self.function, *(array[0] for array in self.arrays))


def _split(array: jax.Array, block: int, fill: Any) -> jax.Array:
    """Splits [T, …] into blocks [n, block, …], of which the last is padded with `fill`."""
    padding = -len(array) % block
    if padding:
        pad_width = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
        array = jnp.pad(array, pad_width, constant_values=fill)
    return array.reshape(-1, block, *array.shape[1:])


def _rematerialized(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # The forward and the backward pass are separate loops, between which XLA eliminates no common
    # subexpressions: the barriers of `prevent_cse` are not needed.
    return jax.checkpoint(function, prevent_cse=False)
