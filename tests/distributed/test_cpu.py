"""What the commands have the C library and XLA do on a CPU."""

import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from runs import ROOT, small_config

from din_jax.distributed import cpu
from din_jax.distributed.devices import one_device
from din_jax.distributed.mapping import over_devices
from din_jax.training.run import open_run

FAULTS_A_CALL = """
import resource
from din_jax.distributed import cpu
import jax, jax.numpy as jnp

cpu.keep_freed_memory()
assert cpu.in_own_thread(lambda: 7) == 7  # gives memory back, and ends it
x = jnp.ones(10000)

@jax.jit
def call(x):  # makes a block of 400 MB, for a while
    return (x[:, None] @ x[None]) @ x

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(20):  # until the heap has blocks enough that nothing else stands in
    call(x).block_until_ready()
found = []
for _ in range(9):
    before = faults()
    call(x).block_until_ready()
    found.append(faults() - before)
print(sorted(found)[4])
"""

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about CPUs")


@pytest.mark.long
@on_cpu
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's alone")
def test_the_pages_of_a_large_block_are_kept():
    """A call maps no page again of a block of 400 MB: 97,656 pages of 4 KiB."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS_A_CALL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 2000


def test_training_needs_no_polars():
    """It takes 20 MB, and a third of a second at the start."""
    code = "import sys; import din_jax.training.loop; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@on_cpu
def test_a_step_compiles_in_a_thread_that_ends_and_runs_in_the_callers():
    """What compiling leaves in a heap is in no step's way then."""
    threads = []

    def share(x, y):
        threads.append(threading.current_thread())
        return x + y["of"]

    call = over_devices(share, one_device(), None, None)
    for size in (2, 3, 2, 3):
        found = call(jax.numpy.ones(size), {"of": np.ones(size, np.float32)})
        np.testing.assert_array_equal(found, np.full(size, 2))
    assert len(threads) == 2  # traced once for each shape
    assert threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


@on_cpu
def test_a_step_is_called_with_arrays_that_are_there():
    given = [np.arange(3), jax.numpy.ones(2), np.int32(5), 7]
    array, on_device, scalar, number = cpu.ready(given)
    assert isinstance(array, jax.Array) and isinstance(scalar, jax.Array)
    assert on_device is given[1] and number == 7
    np.testing.assert_array_equal(array, given[0])
    assert scalar == 5 and scalar.dtype == np.int32


@on_cpu
def test_a_step_has_no_products_of_ynnpack(planted_store):
    run = open_run(small_config(planted_store))
    step = run.step()
    lowered = step.func.lower(run.init(), run.source[0], **step.keywords)
    text = lowered.compile().as_text()
    assert " dot(" in text and "ynn_fusion" not in text
