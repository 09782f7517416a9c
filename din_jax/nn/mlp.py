"""The multilayer perceptron."""

from __future__ import annotations

import jax
from flax import linen as nn

from din_jax.nn.activations import ActivationFactory


class MLP(nn.Module):
    """Hidden layers with an activation after each, then a linear output layer.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: width of the output layer.
      activation: what follows each hidden layer.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: ActivationFactory

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, *, train: bool, products: jax.Array | None = None
    ) -> jax.Array:
        """Maps x [N, F] to [N, outputs]; mask [N] says which rows are real.

        With `products` [N, P] they enter the first layer beside x, through a kernel of their own.
        """
        for i, width in enumerate(self.hidden):
            x = dense(width, f"hidden_{i}")(x)
            if i == 0 and products is not None:
                x += dense(width, "products", use_bias=False)(products)
            x = self.activation(name=f"activation_{i}")(x, mask, train=train)
        return dense(self.outputs, "output")(x)


def dense(width: int, name: str, *, use_bias: bool = True) -> nn.Dense:
    """A linear layer with Glorot's uniform initial values."""
    return nn.Dense(
        width, use_bias=use_bias, kernel_init=nn.initializers.glorot_uniform(), name=name
    )
