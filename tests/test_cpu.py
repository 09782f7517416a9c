"""What the commands have the C library and XLA do on a CPU."""

import subprocess
import sys

import jax
import pytest
from runs import ROOT, small_config

from din_jax import training

FAULTS_A_CALL = """
import resource
from din_jax import cli, cpu
import jax, jax.numpy as jnp

cpu.keep_freed_memory()
x = jnp.ones(5000)

@jax.jit
def call(x):  # makes a block of 100 MB, for a while
    return (x[:, None] @ x[None]) @ x

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(40):  # until the heap has blocks enough that nothing else stands in
    call(x).block_until_ready()
before = faults()
for _ in range(5):
    call(x).block_until_ready()
print((faults() - before) / 5)
"""

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about CPUs")


@on_cpu
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's alone")
def test_the_pages_of_a_large_block_are_kept():
    """100 MB are 24,414 pages of 4 KiB; to be mapped anew in each call, if it were not kept."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS_A_CALL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 2000


@on_cpu
def test_a_step_has_no_products_of_ynnpack(planted_store):
    run = training.open_run(small_config(planted_store))
    step = run.step()
    lowered = step.func.lower(run.init(), run.source[0], **step.keywords)
    text = lowered.compile().as_text()
    assert " dot(" in text and "ynn_fusion" not in text
