"""A disk that is full is one clear error, and what was there stays as it was."""

import contextlib
import resource
import signal
import time

import numpy as np
import pytest
from damage import files_of
from runs import tiny_config

from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.data.store import Store
from din_jax.errors import DinError
from din_jax.prepare import planted
from din_jax.training.run import open_run


@contextlib.contextmanager
def files_at_most(size):
    """Writing more than so many bytes into a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def sizes(folder):
    """Limits that each are too small for one more of the folder's files."""
    found = sorted({(folder / name).stat().st_size for name in files_of(folder)})
    return [size - 1 for size in found]


def test_a_preparation_leaves_nothing_behind(tmp_path):
    planted.prepare(tmp_path / "whole", users=60)
    limits = sizes(tmp_path / "whole")
    assert len(limits) >= 10
    for limit in limits:
        with files_at_most(limit), pytest.raises((OSError, DinError)) as error:
            planted.prepare(tmp_path / "store", users=60)
        assert str(tmp_path / "store") in str(error.value)
        assert [f.name for f in tmp_path.iterdir()] == ["whole"]
    planted.prepare(tmp_path / "store", users=60)
    assert Store(tmp_path / "store").fingerprint == Store(tmp_path / "whole").fingerprint


# Orbax writes in threads, which may outlive the first one's exception for a moment.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_checkpoint_that_cannot_be_written_changes_no_other(planted_store, tmp_path):
    config = tiny_config(planted_store, **{"model.name": "base"})
    run = open_run(config)
    meta = compatibility.describe(config, run.store.schema, run.source) | {"best": None}
    first = run.init()
    second = first.replace(step=first.step + 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("last", first, meta)
    limits = sizes(tmp_path)[:-1:2]  # the arrays, the last, may be in several files another time
    assert len(limits) >= 6
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    for limit in limits:
        with (
            files_at_most(limit),
            pytest.raises(DinError, match="of step 1 can't be written"),
        ):
            checkpoints.save("last", second, meta)
        assert checkpoints.steps("last") == [0]
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
    for _ in range(50):  # until the threads of the last attempt have ended
        with contextlib.suppress(DinError):
            checkpoints.save("last", second, meta)
            break
        time.sleep(0.1)
    assert checkpoints.steps("last") == [1, 0]
    assert not [name for name in files_of(tmp_path) if "tmp" in name]
    np.testing.assert_array_equal(checkpoints.restore("last", run.state_shapes())[0].step, 1)
