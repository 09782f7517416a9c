"""The local activation unit of Eq. 3."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from din_jax.nn.activations import ActivationFactory, Activations, Dice
from din_jax.nn.blocks import InBlocks
from din_jax.nn.codes import Code
from din_jax.nn.mlp import dense
from din_jax.nn.pooling import rows_of_samples


class ActivationUnit(nn.Module):
    """The local activation unit a(e_j, v_A) of Eq. 3: one raw weight per behaviour, no softmax.

    Its input is [v_A, e_j, v_A − e_j if `difference`, v_A ∘ e_j (or v_A ⊗ e_j if `outer`)]. The
    paper's figure 2 calls the last term "out product"; the first author says that it means the
    element-wise product (issue 18 of the authors' repository).

    The first layer is not applied to the concatenation. With kernel blocks W_q, W_k, W_d, W_p

        W·[q, k, q − k, q ∘ k] = (W_q + W_d)·q + (W_k − W_d)·k + W_p·(q ∘ k),

    whose first term is computed once per sample.

    Attributes:
      hidden: widths of the hidden layers; the paper has one of 36.
      activation: makes the module after each hidden layer, for example `Dice`.
      difference, outer: see above.
      bias_init: initial value of the output's bias: about what all weights are at first.
      block: the number of behaviours that are computed at a time; 0 computes all together. With
        blocks no array [T, hidden width] is stored: the backward pass recomputes each block. Each
        Dice needs one more pass over all blocks, for its statistics.
    """

    hidden: tuple[int, ...] = (36,)
    activation: ActivationFactory = Dice
    difference: bool = False
    outer: bool = False
    block: int = 0
    bias_init: float = 0.0

    @nn.compact
    def __call__(
        self,
        behaviors: jax.Array,
        ad: jax.Array,
        segment_ids: jax.Array | None = None,
        mask: jax.Array | None = None,
        *,
        codes: Sequence[Code] = (),
        weight: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Computes the weights of packed or padded behaviours.

        Args:
          behaviors: e_j, packed [T, E] or padded [B, H, E].
          ad: v_A, [B, E].
          segment_ids: int32[T], ascending: the sample of each packed behaviour; B for padding.
          mask: bool[T] or bool[B, H], False for padding. By default padding has the segment id B
            in packed behaviours, and padded behaviours have none.
          codes: further inputs of packed behaviours (`din_jax.nn.codes`). Their part of the first
            layer begins at zero.
          weight: float[B], the samples' weights, with which their behaviours count in the
            statistics of Dice; by default 1.
          train: whether Dice uses the mini-batch's statistics.

        Returns:
          [T] or [B, H]; 0 for padding.

        Raises:
          ValueError: packed behaviours have no segment ids, or padded behaviours have, or codes.
        """
        if (segment_ids is None) != (behaviors.ndim == 3):
            raise ValueError(
                f"ActivationUnit: behaviors {behaviors.shape} "
                + ("need segment_ids [T]" if segment_ids is None else "take no segment_ids")
                + "; expected packed [T, E] with segment_ids, or padded [B, H, E] without"
            )
        if codes and segment_ids is None:
            raise ValueError("ActivationUnit: codes are for packed behaviours, with segment_ids")
        if segment_ids is not None:
            mask = segment_ids < len(ad) if mask is None else mask
            return self._packed_weights(
                behaviors, ad, segment_ids, mask, codes, weight, train=train
            )
        samples, length, width = behaviors.shape
        mask = jnp.ones((samples, length), bool) if mask is None else mask
        weights = self._packed_weights(
            behaviors.reshape(-1, width),
            ad,
            jnp.repeat(jnp.arange(samples), length),
            mask.reshape(-1),
            (),
            weight,
            train=train,
        )
        return weights.reshape(samples, length)

    def _packed_weights(
        self,
        behaviors: jax.Array,
        ad: jax.Array,
        segment_ids: jax.Array,
        mask: jax.Array,
        codes: Sequence[Code],
        weight: jax.Array | None,
        *,
        train: bool,
    ) -> jax.Array:
        width = behaviors.shape[-1]
        widths = [width, width] + [width] * self.difference + [width**2 if self.outer else width]
        kernel = self.param(
            "kernel", nn.initializers.glorot_uniform(), (sum(widths), self.hidden[0])
        )
        bias = self.param("bias", nn.initializers.zeros, (self.hidden[0],))
        w_ad, w_behavior = kernel[:width], kernel[width : 2 * width]
        if self.difference:
            w_difference = kernel[2 * width : 3 * width]
            w_ad, w_behavior = w_ad + w_difference, w_behavior - w_difference
        w_product = kernel[sum(widths[:-1]) :]

        ad_term = ad @ w_ad + bias[None]
        names = [f"code_{i}" for i in range(len(codes))]
        w_codes = [
            self.param(name, nn.initializers.zeros, (code.size, self.hidden[0]))
            for name, code in zip(names, codes, strict=True)
        ]

        def first_layer(
            behaviors: jax.Array, segment_ids: jax.Array, **code_ids: jax.Array
        ) -> jax.Array:
            ads = rows_of_samples(ad, segment_ids)
            if self.outer:
                product = (ads[:, :, None] * behaviors[:, None, :]).reshape(behaviors.shape[0], -1)
            else:
                product = ads * behaviors
            encoded = [
                Code(code_ids[name], code.size).encoded()
                for name, code in zip(names, codes, strict=True)
            ]
            terms = behaviors @ w_behavior + rows_of_samples(ad_term, segment_ids)
            if len(ad) == 1:  # what does not depend on the ad is computed once for all candidates
                for code, w_code in zip(encoded, w_codes, strict=True):
                    terms += code @ w_code
                return terms + product @ w_product
            if codes:  # one product of matrices is faster than one for each code
                product = jnp.concatenate([product, *encoded], axis=1)
                return terms + product @ jnp.concatenate([w_product, *w_codes])
            return terms + product @ w_product

        counted = mask  # in the statistics of Dice
        if weight is not None:
            counted = jnp.where(mask, rows_of_samples(weight, segment_ids), 0)
        code_ids = {name: code.ids for name, code in zip(names, codes, strict=True)}
        x: Any
        if 0 < self.block < behaviors.shape[0] and not self.is_initializing():
            x = InBlocks.of(
                first_layer,
                self.block,
                counted,
                behaviors=(behaviors, 0),
                segment_ids=(segment_ids, len(ad)),
                **{name: (ids, 0) for name, ids in code_ids.items()},
            )
        else:
            x = first_layer(behaviors, segment_ids, **code_ids)
        for i, units in enumerate(self.hidden):
            if i:
                x = _apply(dense(units, f"hidden_{i}"), x)
            x = self.activation(name=f"activation_{i}")(x, counted, train=train)
        x = _apply(dense(1, "output", bias_init=self.bias_init), x)
        if isinstance(x, InBlocks):
            x = x.each(lambda weights, _: weights).reshape(-1, 1)[: mask.shape[0]]
        return jnp.where(mask, x[:, 0], 0)


def _apply(module: nn.Module, rows: Activations) -> Activations:
    """Applies a row-wise module that has only parameters to an array or to `InBlocks`."""
    if not isinstance(rows, InBlocks):
        return module(rows)
    pure, variables = module.unbind()
    return rows.then(functools.partial(pure.apply, variables))
