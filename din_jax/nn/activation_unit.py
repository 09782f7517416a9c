"""The local activation unit of Eq. 3."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.nn.activations import ActivationFactory, Rows
from din_jax.nn.blocks import InBlocks
from din_jax.nn.mlp import dense
from din_jax.nn.pooling import rows_of_samples


class ActivationUnit(nn.Module):
    """The local activation unit a(e_j, v_A) of Eq. 3: one raw weight a behaviour, no softmax.

    Its input is [v_A, e_j, v_A − e_j if `difference`, v_A ∘ e_j (or v_A ⊗ e_j if `outer`)]. The
    paper's figure 2 calls the last "out product"; the first author says that the element-wise
    product is meant (issue 18 of the authors' repository).

    The first layer is not computed on the concatenation. With kernel blocks W_q, W_k, W_d, W_p

        W·[q, k, q − k, q ∘ k] = (W_q + W_d)·q + (W_k − W_d)·k + W_p·(q ∘ k),

    whose first term is the same for all behaviours of a sample.

    Attributes:
      hidden: widths of the hidden layers; the paper has one of 36.
      activation: what follows each hidden layer.
      difference, outer: see above.
      block: behaviours computed at once; 0 is all. Where there are more, no array of T rows and a
        hidden width is made or kept: the backward pass computes each block anew. A Dice needs a
        pass of its own over all blocks, to have its statistics.
    """

    hidden: tuple[int, ...]
    activation: ActivationFactory
    difference: bool = False
    outer: bool = False
    block: int = 0

    @nn.compact
    def __call__(
        self,
        behaviors: jax.Array,
        ad: jax.Array,
        segment_ids: jax.Array,
        mask: jax.Array,
        *,
        train: bool,
    ) -> jax.Array:
        """Weights of behaviours.

        Args:
          behaviors: e_j, [T, E].
          ad: v_A, [B, E].
          segment_ids: [T], which ad each behaviour is compared with.
          mask: [T], which behaviours are real.
          train: whether Dice takes the mini-batch's statistics.

        Returns:
          [T]; 0 for padding.
        """
        width = behaviors.shape[-1]
        blocks = [width, width] + [width] * self.difference + [width**2 if self.outer else width]
        kernel = self.param(
            "kernel", nn.initializers.glorot_uniform(), (sum(blocks), self.hidden[0])
        )
        bias = self.param("bias", nn.initializers.zeros, (self.hidden[0],))
        w_ad, w_behavior = kernel[:width], kernel[width : 2 * width]
        if self.difference:
            w_difference = kernel[2 * width : 3 * width]
            w_ad, w_behavior = w_ad + w_difference, w_behavior - w_difference
        w_product = kernel[sum(blocks[:-1]) :]

        of_ad = ad @ w_ad + bias[None]

        def first_layer(behaviors: jax.Array, segment_ids: jax.Array) -> jax.Array:
            own_ad = rows_of_samples(ad, segment_ids)
            if self.outer:
                product = (own_ad[:, :, None] * behaviors[:, None, :]).reshape(len(behaviors), -1)
            else:
                product = own_ad * behaviors
            return (
                behaviors @ w_behavior + product @ w_product + rows_of_samples(of_ad, segment_ids)
            )

        x: Any
        if 0 < self.block < len(behaviors) and not self.is_initializing():
            x = InBlocks.of(
                first_layer,
                self.block,
                mask,
                behaviors=(behaviors, 0),
                segment_ids=(segment_ids, len(ad)),
            )
        else:
            x = first_layer(behaviors, segment_ids)
        for i, units in enumerate(self.hidden):
            if i:
                x = _apply(dense(units, f"hidden_{i}"), x)
            x = self.activation(name=f"activation_{i}")(x, mask, train=train)
        x = _apply(dense(1, "output"), x)
        if isinstance(x, InBlocks):
            x = x.each(lambda weights, _: weights).reshape(-1, 1)[: len(mask)]
        return jnp.where(mask, x[:, 0], 0)


def _apply(module: nn.Module, rows: Rows) -> Rows:
    """A module of parameters alone, on rows."""
    if not isinstance(rows, InBlocks):
        return module(rows)
    pure, variables = module.unbind()
    return rows.then(functools.partial(pure.apply, variables))
