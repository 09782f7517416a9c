"""The server under Ray Serve."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from runs import ROOT

from din_jax.serve.scorer import Scorer

pytestmark = pytest.mark.long

# In a process of its own: Ray starts others, and keeps threads.
SERVE = """
import json, sys
import httpx, ray
from ray import serve
from din_jax.errors import DinError
from din_jax.serve.options import Options
from din_jax.serve.ray_serve import app, application

model, port, request = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
problems = []
for arguments in (
    {}, {"model": model, "batch": "4"}, {"model": model, "max_queue": "0"},
    {"model": model, "max_queue": "many"}, {"model": model + "/missing"},
):
    try:
        app(arguments)
    except DinError as error:
        problems.append(str(error))
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"port": port})
options = Options(name="shop", candidates_per_call=4, max_batch=2)
scaling = {"min_replicas": 2, "max_replicas": 2}
cpus = {"num_cpus": 0.5}
serve.run(application(model, options, autoscaling_config=scaling, ray_actor_options=cpus))
client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
token = {"Authorization": "Bearer secret"}
answers = [client.post("/v1/score", json=request, headers=token) for _ in range(20)]
states = serve.status().applications["default"].deployments["din_jax"].replica_states
print(json.dumps({
    "problems": problems,
    "answers": [answer.json() for answer in answers],
    "without_token": client.post("/v1/score", json=request).status_code,
    "rollback": client.post("/v1/rollback", json={}, headers=token).status_code,
    "replicas": states["RUNNING"],
}))
serve.shutdown()
ray.shutdown()
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_replicas_answer_as_a_scorer_does(artifact):
    pytest.importorskip("ray", reason="needs the extra ray")
    probe = json.loads((artifact / "probe.json").read_text())["request"]
    request = {name: value for name, value in probe.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(artifact), str(free_port()), json.dumps(request)],
        cwd=ROOT,
        env={**os.environ, "DIN_JAX_TOKEN": "secret", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found = json.loads(line)
    missing, unknown, small, no_number, no_folder = found["problems"]
    assert missing.startswith("no model: expected model=FOLDER")
    assert unknown.startswith("batch: expected model=FOLDER")
    assert small == "max_queue=0: expected 1 or more"
    assert "many" in no_number
    assert "missing: no such folder" in no_folder
    expected = Scorer(artifact).score(**probe)
    for answer in found["answers"]:
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-6)
        assert answer["model"]["name"] == "shop"
    assert (found["without_token"], found["rollback"], found["replicas"]) == (401, 403, 2)
