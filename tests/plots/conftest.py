import json

import pytest
from untrained import prepare_log, random_run

from din_jax.plots.scored_run import ScoredRun

CURVES = [
    {"step": 2, "split": "train", "loss": 0.8, "epoch": 0.5},
    {"step": 6, "split": "train", "loss": 0.5, "epoch": 1.0},
    {"step": 6, "split": "validation", "log_loss": 0.6, "auc": 0.6, "user_weighted_auc": None},
    {"step": 12, "split": "train", "loss": 0.4, "epoch": 2.0},
    {"step": 12, "split": "validation", "log_loss": 0.7, "auc": 0.7, "user_weighted_auc": 0.65},
]


def with_log(workdir, lines=CURVES):
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


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
