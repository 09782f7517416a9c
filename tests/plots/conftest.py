import pytest
from logged_curves import with_log
from untrained import prepare_log, random_run

from din_jax.plots.scored_run import ScoredRun


@pytest.fixture(scope="session")
def log_folder(tmp_path_factory):
    """A log with every kind of input, prepared, and runs of random weights on it."""
    folder = tmp_path_factory.mktemp("plots")
    prepare_log(folder, rows=1500)
    keys = {"model.attention.position": True, "model.attention.match": True}
    random_run(
        folder / "store",
        folder / "softmax",
        **keys,
        **{
            "model.attention.normalize": "softmax",
            "model.match_counts": True,
            "model.intensity": True,
        },
    )
    random_run(folder / "store", folder / "raw", **{"model.activation": "prelu"})
    base = {"model.name": "base", "model.attention.age": False}
    random_run(folder / "store", folder / "base", **base)
    for name in ("softmax", "raw", "base"):
        with_log(folder / name)
    return folder


@pytest.fixture(scope="session", params=["softmax", "raw"])
def scored(request, log_folder):
    return ScoredRun.load(log_folder / request.param)


@pytest.fixture(scope="session")
def base(log_folder):
    return ScoredRun.load(log_folder / "base")


@pytest.fixture(scope="session")
def softmax(log_folder):
    return ScoredRun.load(log_folder / "softmax")
