"""Time to a peer's best ranking: when each evaluation was printed, and what that says."""

import sys
from pathlib import Path

import pytest

from din_jax.errors import DinError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TRAINS = """
import sys, time
for auc in sys.argv[1:]:
    time.sleep(0.2)
    print(f"epoch: 10 s validation user_weighted_auc {auc}  auc 0.9999", flush=True)
"""


@pytest.fixture
def time_to_auc(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    import time_to_auc

    return time_to_auc


def test_an_evaluation_has_the_time_of_its_line(time_to_auc):
    first, second = time_to_auc.evaluations([sys.executable, "-c", TRAINS, "0.7012", "0.6900"])
    assert (first[1], second[1]) == (0.7012, 0.69)
    assert 0.2 <= first[0] <= second[0] - 0.15


@pytest.mark.parametrize(
    "program", ["print('no evaluation')", TRAINS + "sys.exit('no evaluation')"]
)
def test_a_run_that_fails_says_what_it_printed(time_to_auc, program):
    with pytest.raises(DinError, match=r"evaluations; its last lines:\n(.*\n)?no evaluation"):
        time_to_auc.evaluations([sys.executable, "-c", program, "0.5"])


def test_the_time_is_that_of_the_first_evaluation_at_the_peers_best(time_to_auc):
    peer = [(100.0, 0.70), (200.0, 0.75), (300.0, 0.72)]
    early = [(5.0, 0.60), (10.0, 0.75), (15.0, 0.74), (20.0, 0.76)]
    late = [(5.0, 0.60), (10.0, 0.74), (15.0, 0.74), (20.0, 0.76)]
    never = [(5.0, 0.60), (10.0, 0.61), (15.0, 0.62), (20.0, 0.63)]
    figures = time_to_auc.figures(peer, [early, late, never], 2)
    assert figures["target"] == 0.75
    assert figures["peer_seconds"] == 200.0
    assert figures["seconds"] == [10.0, 20.0, None]
    assert figures["ratio"] == 10.0
    assert figures["peer_after_epochs"] == [0.70, 0.75, 0.72]
    assert figures["after_epochs"] == [[0.75, 0.76], [0.74, 0.76], [0.61, 0.63]]
    assert time_to_auc.figures(peer, [never], 2)["ratio"] == 0


def test_an_environment_that_is_missing_is_reported(time_to_auc, monkeypatch):
    monkeypatch.setattr("sys.argv", ["time_to_auc.py", "--store=x", "--deepctr=none"])
    with pytest.raises(
        DinError, match=r"none is no virtual environment; make one with .*install\.sh"
    ):
        time_to_auc.main()
