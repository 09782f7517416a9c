import jax
import numpy as np
from compiling import quick_jit
from hypothesis import given
from layer_cases import examples, seeds

from din_jax.nn.embedding import Lookup, lookup


@quick_jit
def looked_up(table, ids, mask, g):
    out, pull = jax.vjp(lambda t: lookup(t, Lookup(ids, mask, scale=2.0)), table)
    return out, pull(g)[0]


@examples
@given(seeds)
def test_masked_ids_give_nothing_and_have_no_gradient(seed):
    """Whatever they are: padding may hold ids that no table has."""
    rng = np.random.default_rng(seed)
    table, g = (rng.standard_normal((n, 3)).astype(np.float32) for n in (6, 16))
    mask = rng.random(16) < 0.6
    ids = np.where(mask, rng.integers(0, 6, 16), rng.integers(-(2**31), 2**31, 16)).astype(np.int32)
    out, of_table = looked_up(table, ids, mask, g)
    expected, gradient = np.zeros((16, 3)), np.zeros((6, 3))
    for i in range(16):
        if mask[i]:
            expected[i] = 2 * table[ids[i]]
            gradient[ids[i]] += 2 * g[i]
    np.testing.assert_array_equal(out, expected.astype(np.float32))
    np.testing.assert_allclose(of_table, gradient, rtol=1e-4, atol=1e-6)
