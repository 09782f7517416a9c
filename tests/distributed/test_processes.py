"""Several processes that train together."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from runs import small_config

from configs import quickstart
from din_jax import cli
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.data.store import Store
from din_jax.distributed import processes
from din_jax.errors import DinError, Interrupted
from din_jax.training.loop import train
from din_jax.training.run import open_run
from din_jax.training.trained import reopen

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def two_processes(arguments):
    """Starts the same command twice, as processes that train together."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
                "JAX_NUM_CPU_DEVICES": "1",
            },
        )
        for i in range(2)
    ]


_LOSSES = """
import json, os, sys
from pathlib import Path
from ml_collections import ConfigDict
import jax
from din_jax.distributed import devices
from din_jax.distributed import processes
from din_jax.training.run import open_run
from din_jax.training.trained import reopen
from din_jax.training.loop import train
from din_jax.errors import DinError
from configs.quickstart import get_config

config = get_config()
config.update_from_flattened_dict(json.loads(sys.argv[1]))
run = open_run(config)
folder, index = Path(sys.argv[2]), os.environ["JAX_PROCESS_ID"]
for wrong in (folder / index, folder / "file"):
    try:
        processes.check_shared(wrong, "--workdir")
    except DinError as error:
        print(error)
processes.check_shared(folder / "both", "--workdir")
step, state = run.step(), run.init()
for i in range(20):
    state, loss = step(state, run.source[i])
    print(float(jax.block_until_ready(loss)))
processes.wait_for_all("end")  # gRPC may abort the first process if it leaves earlier
"""


@pytest.mark.long
def test_two_processes_have_the_losses_of_one_and_see_one_folder(planted_store, tmp_path):
    keys = {
        "data.store": str(planted_store),
        "data.prepare": "",
        "data.max_history": 2,
        "train.batch_size": 64,
        "regularizer.name": "mba",
        "optimizer.clip_norm": 0.1,
        "placement": "item=sharded",
    }
    config = quickstart.get_config()
    config.update_from_flattened_dict(keys)
    run = open_run(config)
    step, state = run.step(), run.init()
    expected = []
    for i in range(20):
        state, loss = step(state, run.source[i])
        expected.append(float(loss))
    (tmp_path / "file").touch()
    started = two_processes(["-c", _LOSSES, json.dumps(keys | {"devices": 2}), tmp_path])
    for i, process in enumerate(started):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        unseen = "what process 0 writes there is not seen by process 1"
        assert f"--workdir={tmp_path / str(i)}: {unseen}" in out
        assert f"--workdir={tmp_path / 'file'}: process 0 can't write there" in out
        losses = [float(line) for line in out.splitlines() if re.fullmatch(r"[\d.e-]+", line)]
        assert losses == pytest.approx(expected, rel=1e-5)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["both", "file"]


_EVALUATIONS = """
import os, sys
import eval
from din_jax import cli

eval.main()
sys.argv.append("--split=" + ("test", "train")[int(os.environ["JAX_PROCESS_ID"])])
sys.exit(cli.guarded(eval.main, sys.argv))
"""


@pytest.mark.long
def test_a_run_outlives_a_process_that_is_killed(planted_store, tmp_path):
    config = quickstart.get_config()
    small = {"data.max_history": 4, "train.batch_size": 64, "train.epochs": 3}
    config.update_from_flattened_dict(small | {"data.store": str(planted_store)})
    one = train(config, tmp_path / "one")
    workdir = tmp_path / "two"
    command = [
        "train.py",
        "--config=configs/quickstart.py",
        f"--config.data.store={planted_store}",
        "--config.data.prepare=",
        "--config.data.max_history=4",
        "--config.train.batch_size=64",
        "--config.train.epochs=3",
        "--config.devices=all",
        f"--workdir={workdir}",
    ]
    first, second = two_processes(command)
    until = time.monotonic() + 240
    while not list(workdir.glob("checkpoints/last/94")):  # the first epoch's
        assert time.monotonic() < until and first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, err = first.communicate(timeout=60)
    second.communicate()
    assert time.monotonic() - killed < 60
    assert first.returncode == 1
    assert "error: another process of this run failed or was killed" in err
    assert "Traceback" not in err

    started = two_processes(command)
    results = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], results
    (out, _), (quiet, _) = results
    assert re.search(r"the run goes on at step (94|188) of 282", out)
    assert "test metrics" in out
    assert "step" not in quiet and "metrics" not in quiet, "only the first one prints"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    test = [line for line in lines if line["split"] == "test"]
    assert len(test) == 1
    for name, value in one.metrics.items():
        assert test[0][name] == pytest.approx(value, rel=1e-3)
    assert [line["step"] for line in lines if line["split"] == "validation"] == [94, 188, 282]
    started = two_processes(["-c", _EVALUATIONS, f"--workdir={workdir}", "--devices=all"])
    (evaluated, err), (_, err2) = (process.communicate(timeout=300) for process in started)
    table, best, _ = out[out.index("test metrics") :].partition("best simple baseline: ")
    assert best
    assert evaluated.endswith(table)  # Gloo prints before it
    for i, errors in enumerate((err, err2)):
        split = ("test", "train")[i]
        assert f"error: the processes differ in --split: this one has {split}" in errors
    # One process goes on from, or scores, what two have saved.
    run = reopen(workdir, devices=1)
    state, _ = Checkpoints(workdir).restore("last", run.state_shapes())
    assert int(state.step) == 282


_ALONE = """
import sys, time
from configs.quickstart import get_config
from din_jax.distributed import processes

processes.connect(get_config().processes)
processes.first_alone(lambda: print("worked", time.sleep(40)))
"""


@pytest.mark.long
def test_processes_wait_for_the_first_one_however_long_it_works():
    """They would fail after 30 seconds in one collective."""
    started = two_processes(["-c", _ALONE])
    (out, err), (quiet, _) = (process.communicate(timeout=300) for process in started)
    assert [process.returncode for process in started] == [0, 0], err
    assert "worked" in out and "worked" not in quiet


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"count": 2}, "count=2, but no config.processes.coordinator: give HOST:PORT"),
        ({"index": 0}, "index=0, but no config.processes.coordinator: give HOST:PORT"),
        ({"coordinator": "host"}, "coordinator='host': expected HOST:PORT"),
        ({"coordinator": "host:0"}, "coordinator='host:0': expected HOST:PORT of process 0, with"),
        ({"coordinator": "host:65536", "count": 2, "index": 1}, "coordinator='host:65536': exp"),
        ({"coordinator": "host:1", "count": 0, "index": 0}, "count=0: expected at least 1"),
        ({"coordinator": "host:1"}, "count='': expected a whole number"),
        ({"coordinator": "host:1", "count": 2}, "index='': expected a whole number"),
        ({"coordinator": "host:1", "count": 2, "index": 2}, "index=2: expected 0 to 1"),
        (
            {"coordinator": "localhost:9", "count": 2, "index": 1, "join_timeout_s": 1},
            "coordinator='localhost:9': process 0 was not reached in 1 s",
        ),
    ],
)
def test_processes_that_cannot_come_together_say_why(planted_store, keys, message):
    config = small_config(planted_store, **{f"processes.{k}": v for k, v in keys.items()})
    with pytest.raises(DinError, match=re.escape(f"config.processes.{message}")):
        open_run(config)
    assert jax.process_count() == 1


@pytest.mark.parametrize("seen", [False, True])
def test_every_process_waits_for_the_embedded_data_set(planted_store, tmp_path, monkeypatch, seen):
    """Also one that sees it already: the first one waits for all."""
    path, waits = tmp_path / "store", []
    if seen:
        path.symlink_to(planted_store)

    def first_process_makes_it(name):
        waits.append(name)
        if not seen:
            path.symlink_to(planted_store)

    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "wait_for_all", first_process_makes_it)
    run = open_run(small_config(path, **{"data.prepare": str(path)}))
    assert run.store.fingerprint == Store(planted_store).fingerprint
    assert len(waits) == 1


@pytest.mark.parametrize("variable", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_an_environment_without_a_coordinator_is_refused(planted_store, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DinError, match=f"{variable}=1, but no config.processes.coordinator"):
        open_run(small_config(planted_store))


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (DinError("no"), [1]),
        (KeyboardInterrupt(), [130]),
        (Interrupted("saved", signal.SIGINT), []),  # all stop together
    ],
)
def test_a_process_that_stops_without_the_others_leaves_at_once(monkeypatch, error, left):
    def main():
        raise error

    found = []
    monkeypatch.setattr(processes, "leave", found.append)
    assert cli.guarded(main, []) in (1, 130)
    assert found == left


@pytest.mark.long
def test_processes_with_different_flags_are_stopped(planted_store, tmp_path):
    started = two_processes(
        [
            "-c",
            "import sys, os; sys.argv.append('--config.seed=' + os.environ['JAX_PROCESS_ID']);"
            "import runpy; runpy.run_path('train.py', run_name='__main__')",
            "--config=configs/quickstart.py",
            f"--config.data.store={planted_store}",
            "--config.data.prepare=",
            "--config.devices=all",
            f"--workdir={tmp_path / 'run'}",
        ]
    )
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "error: the processes differ in config.seed: this one has" in err
    assert not (tmp_path / "run").exists()
