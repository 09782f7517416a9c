"""The server as a whole: overload, reloads under load, a model, the command."""

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from runs import ROOT, command
from stubs import REQUEST, StubScorer, client, listening, stub_server

from din_jax.serve.scorer import Scorer


def post(address, client=httpx, **headers):
    begin = time.monotonic()
    answer = client.post(f"{address}/v1/score", json=REQUEST, headers=headers, timeout=30)
    return answer, time.monotonic() - begin


def test_an_overload_refuses_what_it_can_not_answer_in_time(tmp_path):
    scorer = StubScorer(delay=0.03)
    batcher = {"max_batch": 1, "max_queue": 5}
    app = stub_server(tmp_path, scorer, batcher=batcher, timeout_ms=3000).app
    with listening(app) as address, ThreadPoolExecutor(20) as pool, httpx.Client() as one:
        done = list(pool.map(lambda _: post(address, one), range(40)))
    answers = {status: [d for d in done if d[0].status_code == status] for status in (200, 503)}
    assert len(answers[200]) + len(answers[503]) == 40
    assert min(map(len, answers.values())) >= 5
    assert len(scorer.calls) == len(answers[200])
    assert all(seconds < 3.2 for _, seconds in answers[200])
    for answer, _ in answers[503]:
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["field"] is None


def test_bodies_that_arrive_slowly_are_bounded(tmp_path):
    app = stub_server(tmp_path, StubScorer(), batcher={"max_queue": 1}, timeout_ms=20_000).app
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with listening(app) as address, contextlib.ExitStack() as slow:
        host, _, port = address.removeprefix("http://").partition(":")
        for _ in range(4):
            connection = slow.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(head + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.2)  # until all have been read so far
        refused, _ = post(address)
        slow.close()
        time.sleep(0.2)
        answered, _ = post(address)
    assert (refused.status_code, answered.status_code) == (503, 200)


def test_a_request_may_ask_for_less_time(tmp_path):
    scorer = StubScorer()
    scorer.gate.clear()
    with listening(stub_server(tmp_path, scorer).app) as address:
        answer, seconds = post(address, **{"X-Timeout-Ms": "50"})
        scorer.gate.set()
        again, _ = post(address)
    assert answer.status_code == 504
    assert answer.json() == {"error": {"field": None, "message": "not answered in its time"}}
    assert 0.05 <= seconds < 10
    assert again.status_code == 200


def more_answers(answers, loops):
    """Waits for five more."""
    begin = answers.qsize()
    while answers.qsize() < begin + 5 and not any(loop.done() for loop in loops):
        time.sleep(0.005)


def test_reloads_lose_no_request(tmp_path):
    server = stub_server(tmp_path)
    server.versions._load = lambda folder, current: StubScorer(folder.name)
    server.versions.watch(0.01)
    answers, stop = queue.Queue(), threading.Event()

    def ask(address):
        with httpx.Client(base_url=address, timeout=30) as one:
            while not stop.is_set():
                answers.put(one.post("/v1/score", json=REQUEST))

    with listening(server.app) as address, ThreadPoolExecutor(2) as pool:
        loops = [pool.submit(ask, address) for _ in range(2)]
        more_answers(answers, loops)
        for number in range(2, 7):
            folder = tmp_path / f"models/v{number}"
            folder.mkdir()
            (folder / "manifest.json").write_text("{}")
            end = time.monotonic() + 20
            while server.versions.current.name != folder.name and time.monotonic() < end:
                time.sleep(0.005)
        more_answers(answers, loops)
        stop.set()
        for loop in loops:
            loop.result()
    served = [answer.json()["model"]["version"] for answer in answers.queue]
    assert all(answer.status_code == 200 for answer in answers.queue)
    assert {"v1", "v6"} <= set(served)


def test_a_rollback_over_http(tmp_path):
    server = stub_server(tmp_path)
    (tmp_path / "models/v2").mkdir()
    server.versions.poll()
    assert server.versions.poll()
    with listening(server.app) as address, httpx.Client(base_url=address) as one:
        assert one.post("/v1/score", json=REQUEST).json()["model"]["version"] == "v2"
        assert one.post("/v1/rollback", json={"version": "v1"}).status_code == 409
        back = one.post("/v1/rollback", json={"version": "v2"})
        assert back.json() == {"model": {"name": "stub", "version": "v1"}}
        assert one.post("/v1/score", json=REQUEST).json()["model"]["version"] == "v1"
        text = one.get("/metrics").text
    assert 'din_jax_reloads_total{result="rolled_back"} 1.0' in text
    assert 'din_jax_model_info{name="stub",version="v1"} 1.0' in text
    assert 'version="v2"' not in text


def test_a_stop_answers_what_is_in_flight(tmp_path):
    scorer = StubScorer()
    scorer.gate.clear()
    server = stub_server(tmp_path, scorer)
    with ThreadPoolExecutor(1) as pool, listening(server.app) as address:
        asked = pool.submit(post, address)
        while not scorer.calls:
            time.sleep(0.002)
        threading.Timer(0.2, scorer.gate.set).start()
        begin = time.monotonic()
    assert time.monotonic() - begin > 0.15
    assert asked.result()[0].status_code == 200
    assert not server.batcher._worker.is_alive()


def test_http_gives_the_scores_of_the_scorer(artifact, tmp_path):
    scorer = Scorer(artifact, max_candidates=4, max_users=1, warm=False)
    request = scorer.artifact.probe["request"]
    with client(tmp_path, scorer) as server:
        score, rank, explain = (
            server.post(f"/v1/{route}", json=request).json()
            for route in ("score", "rank", "explain")
        )
    expected = 1 / (1 + np.exp(-np.array(scorer.artifact.probe["logits"])))
    np.testing.assert_allclose(score["probabilities"], expected, rtol=1e-5)
    assert score["unknown_ids"] == 0
    assert rank["indices"] == np.argsort(-expected, kind="stable").tolist()
    weights = scorer.explain(**request)["history"]
    np.testing.assert_allclose(explain["weights"]["history"], weights, rtol=1e-5)


# The command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--host", "0.0.0.0"], {}, "--host 0.0.0.0: others can reach it; set $DIN_JAX_TOKEN"),
        (["--host", "::"], {}, "--host ::: others can reach it"),
        (["--host", "example.org"], {}, "others can reach it"),
        ([], {"DIN_JAX_TOKEN": " "}, "$DIN_JAX_TOKEN: the token is empty"),
        (["--token_file", "missing.txt"], {}, "--token_file missing.txt can't be read"),
        (["--max_batch", "0"], {}, "--max_batch=0: expected 1 or more"),
        (["--timeout_ms", "nan"], {}, "--timeout_ms=nan: expected 1 or more"),
        (["--no_token", "--host", "0.0.0.0"], {}, "missing is no exported model"),
        (["--host", "0.0.0.0"], {"DIN_JAX_TOKEN": "secret"}, "missing is no exported model"),
    ],
)
def test_flags_that_can_not_be_are_said_in_one_line(
    flags, environment, message, monkeypatch, capsys
):
    from din_jax.serve import __main__ as serve

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["serve", "--model", "missing", *flags])
    with pytest.raises(SystemExit) as ended:
        serve.main()
    assert ended.value.code == 1
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("error: ")
    assert message in printed


def test_a_missing_extra_is_named(monkeypatch, capsys):
    from din_jax.serve import __main__ as serve

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr(sys, "argv", ["serve", "--model", "missing"])
    with pytest.raises(SystemExit):
        serve.main()
    assert "uvicorn is missing: pip install 'din_jax[serve]'" in capsys.readouterr().err


@pytest.mark.long
def test_the_command_serves_and_drains_on_sigterm(artifact, tmp_path):
    flags = ["--model", artifact, "--port", 0, "--max_batch", 2, "--candidates_per_call", 4]
    flags += ["--max_wait_ms", 1500, "--timeout_ms", 10_000]
    (tmp_path / "token").write_text("secret\n")
    flags += ["--token_file", tmp_path / "token", "--name", "shop"]
    server = subprocess.Popen(
        [sys.executable, "-m", "din_jax.serve", *map(str, flags)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        log = []
        while not (log and (address := re.search(r"running on (http://\S+)", log[-1]))):
            log.append(server.stderr.readline())
            assert log[-1], log
        address = address[1]
        request = json.loads((artifact / "probe.json").read_text())["request"]
        request = {k: v for k, v in request.items() if v is not None}
        headers = {"Authorization": "Bearer secret"}
        assert httpx.get(f"{address}/v2/health/ready").status_code == 200
        assert httpx.get(f"{address}/metrics").status_code == 401
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(
                httpx.post, f"{address}/v1/score", json=request, headers=headers, timeout=30
            )
            time.sleep(0.5)  # it waits for others
            server.send_signal(signal.SIGTERM)
            answer = asked.result()
        assert answer.status_code == 200
        assert answer.json()["model"]["name"] == "shop"
        assert server.wait(timeout=60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/v2/health/live")
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


@pytest.mark.long
def test_the_command_says_how_it_is_used():
    done = command("-m", "din_jax.serve", "--help")
    assert done.returncode == 0
    assert "--reload_seconds" in done.stdout
