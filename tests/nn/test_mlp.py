import functools

import numpy as np
import oracles
from compiling import quick_jit
from layer_cases import dense, f64, f64_layers, factory, mlp_variables, normal, some_mask, with_dice

from din_jax.nn.mlp import MLP


def test_mlp_matches_the_oracle():
    """In training and evaluation; products enter as further columns of x would."""
    rng = np.random.default_rng(14)
    layers = [
        dense(rng, 6, 5, with_dice(rng, 5)),
        dense(rng, 5, 3, with_dice(rng, 3)),
        dense(rng, 3, 2, None),
    ]
    x, mask = normal(rng, 24, 6), some_mask(rng, 24)
    variables = mlp_variables(layers)
    beside = mlp_variables(layers)
    kernel = beside["params"]["hidden_0"]["kernel"]
    beside["params"]["hidden_0"]["kernel"], products = kernel[:4], kernel[4:]
    beside["params"]["products"] = {"kernel": products}
    module = MLP((5, 3), 2, factory("dice"))

    @quick_jit
    def run(variables, beside, x):
        apply = functools.partial(module.apply, mutable=["batch_stats"])
        return {
            train: (
                apply(variables, x, mask, train=train)[0],
                apply(beside, x[:, :4], mask, train=train, products=x[:, 4:])[0],
            )
            for train in (True, False)
        }

    for train, results in run(variables, beside, x).items():
        expected, _ = oracles.mlp(f64(x[mask]), f64_layers(layers), train)
        for out in results:
            np.testing.assert_allclose(out[mask], expected, rtol=1e-4, atol=1e-5)
