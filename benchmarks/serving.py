"""Times the scorer and the server: 200 candidates, a history of 50, vectors of 36 numbers.

    python benchmarks/serving.py --folder build/serving [--seconds 10] [--rate 50]
    python benchmarks/serving.py --folder build/paper --preset paper --deepctr .venv-deepctr

The model has random weights, 60,000 goods and 800 categories; it is made in the folder, once. The
load is open: a request is sent at its time whether or not others are answered, and its latency
counts from then. Measured are

- the scorer by itself, and with a copy of the user for each candidate (tiled);
- the server at the same rate, from another process;
- its requests a second at saturation, with and without merging requests;
- requests while the model is reloaded 20 times;
- with `--overload 60`, so many seconds at three times the rate at saturation, then at `--rate`. Its
  requests have five times the candidates, so that one load generator can send enough of them.

With `--deepctr`, the environment of a peer (`benchmarks/peers/install.sh`), only the scorer is
measured, in turns with DeepCTR's DIN on rows of ids, in three ways
(`benchmarks/peers/serve_deepctr.py`): each has one or four requests in a call, whichever is faster.
The scorer begins with raw values. `--preset paper` has DeepCTR's inputs.

The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOODS, CATEGORIES, HISTORY, CANDIDATES, SIZE = 60_000, 800, 50, 200, 18
RELOADS = 20


def make_model(folder: Path, preset: str) -> None:
    """Trains one step on random samples, and exports it: FOLDER/store, run, model."""
    import polars as pl

    import din_jax
    from din_jax.data.store_writer import StoreWriter
    from din_jax.export.exporting import export_run

    tables = {"goods": GOODS, "category": CATEGORIES}
    schema = din_jax.Schema(
        tuple(din_jax.Table(name, rows + 1) for name, rows in tables.items()),
        tuple(din_jax.Field(name, name, "ad") for name in tables),
        (din_jax.Sequence("history", tuple(din_jax.BehaviorField(n, n, ad=n) for n in tables)),),
    )
    rng = np.random.default_rng(0)
    splits = {"train": (0, 64), "validation": (64, 128), "test": (128, 128 + CANDIDATES)}
    samples = 128 + CANDIDATES
    with StoreWriter(folder / "store", schema) as writer:
        writer.append("samples/label", rng.integers(0, 2, samples).astype(np.uint8))
        writer.append("samples/user", np.zeros(samples, np.uint8))
        for name, rows in tables.items():
            values = rng.integers(1, rows + 1, samples).astype(np.uint32)
            writer.append(f"fields/{name}", values)
            values = rng.integers(1, rows + 1, HISTORY).astype(np.uint32)
            writer.append(f"events/history/{name}", values)
            ids = pl.Series([f"{name}{i:07}" for i in range(rows)])
            writer.vocabulary(name, ids, np.ones(rows, np.int64))
        writer.append("sequences/history.start", np.zeros(samples, np.uint8))
        writer.append("sequences/history.end", np.full(samples, HISTORY, np.uint8))
        writer.finish(splits, {})
    config = din_jax.default_config()
    config.data.store = str(folder / "store")
    config.data.max_history = HISTORY
    config.eval.baselines = False
    config.model.preset = preset
    config.model.embedding_dim = SIZE
    config.optimizer.decay_samples = 1_000_000
    config.train.batch_size = 64
    config.train.epochs = 1
    din_jax.train(config, folder / "run", test=False)
    export_run(folder / "run", folder / "model")


def make_request(folder: Path) -> dict[str, Any]:
    """The user of the store and the candidates of its test samples, as raw values."""
    from din_jax.data.store import Store
    from din_jax.export.probing import probe_request

    store = Store(folder / "store")
    request = probe_request(store, store.schema, max_history=HISTORY)
    names = list(request["candidates"])
    for name in names:
        rows = store.column(f"fields/{name}")[-CANDIDATES:]
        request["candidates"][name] = [f"{name}{row - 1:07}" for row in rows]
    return request


class Latencies(NamedTuple):
    """Milliseconds."""

    p50: float
    p99: float


def latencies(seconds: list[float]) -> Latencies:
    """The median and the 99th percentile."""
    return Latencies(*(round(float(np.quantile(seconds, q)) * 1e3, 2) for q in (0.5, 0.99)))


def time_scorer(folder: Path, request: dict[str, Any], rate: float, seconds: float) -> Any:
    """The scorer at a rate; then one request at a time, the user once or for each candidate."""
    from din_jax.serve.scorer import Scorer

    scorer = Scorer(folder / "model", max_candidates=CANDIDATES, max_users=1)
    tiling = Scorer(folder / "model", max_candidates=1, max_users=CANDIDATES, warm=False)
    whole = []
    begin = time.perf_counter() + 0.5
    for i in range(int(rate * seconds)):
        intended = begin + i / rate
        time.sleep(max(0, intended - time.perf_counter()))
        scorer.score(**request)
        whole.append(time.perf_counter() - intended)
    encoded = scorer.user(request["user"], request["behaviors"]).encoded
    ads = scorer.ads(request["candidates"])
    columns = request["candidates"]
    each = [scorer.ads({n: [c[i]] for n, c in columns.items()}) for i in range(CANDIDATES)]
    functions = {
        "encode": lambda: (
            scorer.user(request["user"], request["behaviors"]),
            scorer.ads(request["candidates"]),
        ),
        "user_once": lambda: scorer.score_encoded([(encoded, ads)])[0].logit,
        "tiled": lambda: np.concatenate(
            [scored.logit for scored in tiling.score_encoded([(encoded, ad) for ad in each])]
        ),
    }
    assert np.abs(functions["user_once"]() - functions["tiled"]()).max() < 1e-4
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return latencies(whole), {name: latencies(t).p50 for name, t in times.items()}


def compare_with_deepctr(
    folder: Path, request: dict[str, Any], seconds: float, environment: Path
) -> dict[str, Any]:
    """Requests a second of the scorer and of DeepCTR, medians of three turns."""
    from din_jax.serve.scorer import Scorer

    scorer = Scorer(folder / "model", max_candidates=CANDIDATES, max_users=4)
    here = Path(__file__).parent
    peer = [str(environment / "bin/python"), str(here / "peers/serve_deepctr.py")]
    peer += [f"--candidates={CANDIDATES}", f"--history={HISTORY}", f"--dim={SIZE}"]
    rates: dict[str, list[float]] = {"din_jax": []}
    for _ in range(3):
        best = 0.0
        for merged in (1, 4):
            done, begin = 0, time.perf_counter()
            while time.perf_counter() < begin + seconds:
                requests = [
                    (
                        scorer.user(request["user"], request["behaviors"]).encoded,
                        scorer.ads(request["candidates"]),
                    )
                    for _ in range(merged)
                ]
                scorer.score_encoded(requests)
                done += merged
            best = max(best, done / (time.perf_counter() - begin))
        rates["din_jax"].append(best)
        output = subprocess.run(
            [*peer, f"--seconds={seconds}"], check=True, capture_output=True, text=True
        )
        for name, value in json.loads(output.stdout.splitlines()[-1]).items():
            rates.setdefault(f"deepctr_{name}", []).append(value)
    medians = {name: float(np.median(each)) for name, each in rates.items()}
    ours = medians["din_jax"]
    return {
        **{f"{name}_requests_per_s": round(value, 1) for name, value in medians.items()},
        **{
            f"over_{name}": round(ours / value, 2)
            for name, value in medians.items()
            if name != "din_jax"
        },
        "cores": os.cpu_count(),
    }


class Server(NamedTuple):
    """A server that runs."""

    port: int
    pid: int

    def resident_mib(self) -> float:
        """Its resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024


@contextlib.contextmanager
def serving(model: Path, *flags: str) -> Iterator[Server]:
    """A server in another process."""
    command = [sys.executable, "-m", "din_jax.serve", "--model", str(model), "--port", "0", *flags]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server has not started")
        yield Server(int(found[1]), server.pid)
    finally:
        server.terminate()
        server.communicate()


class Connections:
    """Connections to a server, which are used again; at most 256."""

    def __init__(self, port: int, request: dict[str, Any]):
        self._allowed = asyncio.Semaphore(256)
        body = json.dumps(request).encode()
        head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._content = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n" + head.encode() + body
        self._port = port
        self._free: list[Any] = []

    async def post(self) -> tuple[int, bytes]:
        """The status and the body of an answer."""
        async with self._allowed:
            return await self._post()

    async def _post(self) -> tuple[int, bytes]:
        if self._free:
            reader, writer = self._free.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self._content)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        self._free.append((reader, writer))
        return int(head.split()[1]), body

    def close(self) -> None:
        """Closes all."""
        for _, writer in self._free:
            writer.close()


class Load(NamedTuple):
    """What a load has seen.

    Attributes:
      seconds: latencies of the requests that were answered by 200.
      others: the statuses of the others; 503 is an overload.
      versions: that have answered.
    """

    seconds: list[float]
    others: list[int]
    versions: set[str]


async def open_load(port: int, request: dict[str, Any], rate: float, seconds: float) -> Load:
    """Sends requests at a rate."""
    connections = Connections(port, request)
    load = Load([], [], set())

    async def one(intended: float) -> None:
        status, body = await connections.post()
        if status == 200:
            load.seconds.append(time.perf_counter() - intended)
            load.versions.add(json.loads(body)["model"]["version"])
        else:
            load.others.append(status)

    begin = time.perf_counter() + 0.5
    async with asyncio.TaskGroup() as tasks:
        for i in range(int(rate * seconds)):
            intended = begin + i / rate
            if (wait := intended - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(one(intended))
            if i % 100 == 0:
                await asyncio.sleep(0)  # late: the others must be sent and read as well
    connections.close()
    return load


async def closed_load(port: int, request: dict[str, Any], seconds: float, number: int) -> float:
    """Requests a second, with as many at a time as `number`."""
    connections = Connections(port, request)
    begin = time.perf_counter()

    async def loop() -> int:
        done = 0
        while time.perf_counter() < begin + seconds:
            status, _ = await connections.post()
            done += status == 200
        return done

    done = sum(await asyncio.gather(*(loop() for _ in range(number))))
    connections.close()
    return done / (time.perf_counter() - begin)


async def reloading_load(
    port: int, request: dict[str, Any], rate: float, seconds: float, model: Path, versions: Path
) -> Load:
    """An open load while new versions appear."""

    async def publish() -> None:
        for i in range(RELOADS):
            await asyncio.sleep(seconds / (RELOADS + 1))
            hidden = versions / ".next"
            await asyncio.to_thread(shutil.copytree, model, hidden)
            hidden.rename(versions / f"v{i + 1}")

    load, _ = await asyncio.gather(open_load(port, request, rate, seconds), publish())
    return load


def overload(folder: Path, request: dict[str, Any], rate: float, seconds: float) -> dict[str, Any]:
    """Three times the capacity, then the usual rate. Each request has a second."""
    large = {name: 5 * values for name, values in request["candidates"].items()}
    large = {**request, "candidates": large}
    flags = ("--candidates_per_call", str(CANDIDATES), "--timeout_ms", "1000")
    with serving(folder / "model", *flags) as server:
        capacity = asyncio.run(closed_load(server.port, large, 8, 16))
        asyncio.run(open_load(server.port, request, rate, 3))
        before = server.resident_mib()
        begin = time.perf_counter()
        load = asyncio.run(open_load(server.port, large, 3 * capacity, seconds))
        took = time.perf_counter() - begin
        after = server.resident_mib()
        asyncio.run(open_load(server.port, request, rate, 4))
        again = latencies(asyncio.run(open_load(server.port, request, rate, 5)).seconds)
    answered = latencies(load.seconds)
    return {
        "overload_capacity_per_s": round(capacity, 1),
        "overload_sent_per_s": round((len(load.seconds) + len(load.others)) / took, 1),
        "overload_answered": len(load.seconds),
        "overload_p50_ms": answered.p50,
        "overload_p99_ms": answered.p99,
        "overload_503": load.others.count(503),
        "overload_504": load.others.count(504),
        "overload_others": sum(status not in (503, 504) for status in load.others),
        "overload_grown_mib": round(after - before, 1),
        "p99_ms_5_s_later": again.p99,
    }


def main() -> None:
    """Measures all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--max_batch", default="4", help="requests that are merged at most")
    parser.add_argument("--preset", default="recommended", help="of the model")
    parser.add_argument("--deepctr", type=Path, help="compare with the peer of this environment")
    parser.add_argument("--overload", type=float, default=0, help="seconds of overload")
    arguments = parser.parse_args()
    folder, rate, seconds = arguments.folder, arguments.rate, arguments.seconds
    if not (folder / "model").exists():
        shutil.rmtree(folder, ignore_errors=True)
        make_model(folder, arguments.preset)
    request = make_request(folder)
    if arguments.deepctr:
        figures = compare_with_deepctr(folder, request, seconds, arguments.deepctr)
        print(json.dumps(figures))
        return
    scorer, medians = time_scorer(folder, request, rate, seconds)
    print(f"scorer at {rate:g} requests/s: p50 {scorer.p50} ms, p99 {scorer.p99} ms")
    print(f"medians of single parts, ms: {medians}")
    flags = ("--candidates_per_call", str(CANDIDATES), "--timeout_ms", "10000")
    with serving(folder / "model", *flags) as server:
        load = asyncio.run(open_load(server.port, request, rate, seconds))
    http = latencies(load.seconds)
    print(f"HTTP at {rate:g} requests/s: p50 {http.p50} ms, p99 {http.p99} ms")
    saturated: dict[str, list[float]] = {arguments.max_batch: [], "1": []}
    for _ in range(2):
        for batch, rates in saturated.items():
            with serving(folder / "model", "--max_batch", batch, *flags) as server:
                rates.append(asyncio.run(closed_load(server.port, request, seconds, 32)))
    merged, single = (max(rates) for rates in saturated.values())
    print(f"saturated: {merged:.1f} requests/s merged, {single:.1f} one by one")
    versions = folder / "versions"
    shutil.rmtree(versions, ignore_errors=True)
    shutil.copytree(folder / "model", versions / "v0")
    with serving(versions, "--reload_seconds", "0.1", *flags) as server:
        reload = asyncio.run(
            reloading_load(server.port, request, rate, 6 * seconds, folder / "model", versions)
        )
        during = latencies(reload.seconds)
    print(
        f"during reloads: p50 {during.p50} ms, p99 {during.p99} ms; "
        f"{len(reload.versions)} versions have scored, {len(reload.others)} requests have none"
    )
    figures = {
        "scorer_p50_ms": scorer.p50,
        "scorer_p99_ms": scorer.p99,
        "encode_ms": medians["encode"],
        "user_once_ms": medians["user_once"],
        "tiled_ms": medians["tiled"],
        "http_p50_ms": http.p50,
        "http_p99_ms": http.p99,
        "merged_requests_per_s": round(merged, 1),
        "single_requests_per_s": round(single, 1),
        "reload_p50_ms": during.p50,
        "reload_p99_ms": during.p99,
        "reload_versions": len(reload.versions),
        "overloads": (load.others + reload.others).count(503),
        "failed": sum(status != 503 for status in load.others + reload.others),
        "cores": os.cpu_count(),
    }
    if arguments.overload:
        figures |= overload(folder, request, rate, arguments.overload)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
