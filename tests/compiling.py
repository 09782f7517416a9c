"""How tests compile: quickly, or as training does."""

import functools

import jax
import numpy as np


@functools.cache
def _quick_options():
    options = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # a later XLA, which has no other emitters
        del options["xla_cpu_use_fusion_emitters"]
    return options


def quick_jit(function, **options):
    """A function that is compiled with few optimizations, in a fraction of the usual time.

    It returns NumPy arrays.
    """
    run = functools.cache(lambda: jax.jit(function, compiler_options=_quick_options(), **options))
    return lambda *args, **kwargs: jax.tree.map(np.asarray, run()(*args, **kwargs))


def optimized_jit(function):
    """A function that is compiled as in training, however the suite is: for rounding errors."""
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    return jax.jit(function, compiler_options=options)
