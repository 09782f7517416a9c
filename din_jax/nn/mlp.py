"""The multilayer perceptron."""

from __future__ import annotations

import jax
from flax import linen as nn

from din_jax.nn.activations import ActivationFactory


class MLP(nn.Module):
    """Hidden layers, each followed by an activation, and a linear output layer.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: width of the output layer.
      activation: makes the module after each hidden layer.
    """

    hidden: tuple[int, ...]
    outputs: int
    activation: ActivationFactory

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array, *, train: bool, products: jax.Array | None = None
    ) -> jax.Array:
        """Applies the MLP.

        Args:
          x: [N, F].
          mask: bool[N], True for real rows, False for padding; or float[N], the rows' weights in
            the statistics of Dice, 0 for padding.
          train: see the activation.
          products: [N, P], additional inputs of the first layer, with a separate kernel; or None.

        Returns:
          [N, outputs].
        """
        for i, width in enumerate(self.hidden):
            x = dense(width, f"hidden_{i}")(x)
            if i == 0 and products is not None:
                x += dense(width, "products", use_bias=False)(products)
            x = self.activation(name=f"activation_{i}")(x, mask, train=train)
        return dense(self.outputs, "output")(x)


def dense(width: int, name: str, *, use_bias: bool = True, bias_init: float = 0.0) -> nn.Dense:
    """A linear layer with Glorot uniform initialization; its bias begins at `bias_init`."""
    return nn.Dense(
        width,
        use_bias=use_bias,
        kernel_init=nn.initializers.glorot_uniform(),
        bias_init=nn.initializers.constant(bias_init),
        name=name,
    )
