"""Compares web frameworks under the server's handler: decode, encode, answer 200 probabilities.

    pip install fastapi litestar granian
    python benchmarks/serve_frameworks.py --model model/

The model's computation is left out. The load is a closed loop of 8 connections from this process.
The last line is JSON: {framework: requests a second}.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ANSWER = np.linspace(0.01, 0.9, 200).tolist()
FRAMEWORKS = ("fastapi", "litestar", "starlette", "granian")


def application(framework: str, model: str) -> Any:
    """The same handler in a framework."""
    from din_jax.serve.scorer import Scorer

    encoder = Scorer(model, warm=False, verify=False).encoder

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        user = encoder.user(body["user"], body["behaviors"], body["context"])
        ads = encoder.ads(body["candidates"])
        return {"probabilities": ANSWER, "unknown_ids": user.unknown + ads.unknown}

    if framework == "fastapi":
        import fastapi
        import pydantic

        class Body(pydantic.BaseModel):
            user: dict[str, Any]
            context: dict[str, Any]
            behaviors: dict[str, Any]
            candidates: dict[str, list[Any]]

        app = fastapi.FastAPI()

        async def score(body):
            return answer(body.model_dump())

        score.__annotations__["body"] = Body
        app.post("/v1/score")(score)
        return app
    if framework == "litestar":
        import litestar

        async def score(data):
            return answer(data)

        score.__annotations__ = {"data": dict[str, Any], "return": dict[str, Any]}
        return litestar.Litestar([litestar.post("/v1/score")(score)], openapi_config=None)
    import msgspec
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def score(request):
        content = msgspec.json.encode(answer(msgspec.json.decode(await request.body())))
        return Response(content, media_type="application/json")

    return Starlette(routes=[Route("/v1/score", score, methods=["POST"])])


def serve(framework: str, model: str, port: int) -> None:
    """Serves until the process is killed."""
    app = application(framework, model)
    if framework == "granian":
        from granian.server.embed import Server

        asyncio.run(Server(app, port=port, interface="asgi").serve())
    else:
        import uvicorn

        uvicorn.run(app, port=port, log_level="error", access_log=False)


def request(model: str) -> bytes:
    """The probe with 200 candidates."""
    body = json.loads((Path(model) / "probe.json").read_text())["request"]
    body["candidates"] = {name: (v * 200)[:200] for name, v in body["candidates"].items()}
    content = json.dumps({k: v for k, v in body.items() if k != "time"}).encode()
    head = (
        "POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def load(port: int, content: bytes, seconds: float) -> int:
    """How many requests 8 connections have had answered."""
    end = time.perf_counter() + seconds

    async def connection() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        done = 0
        while time.perf_counter() < end:
            writer.write(content)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert b" 200" in head or b" 201" in head, head
            await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
            done += 1
        writer.close()
        return done

    return sum(await asyncio.gather(*[connection() for _ in range(8)]))


def main() -> None:
    """Compares the frameworks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--port", type=int, default=8970)
    parser.add_argument("--serve", default="")
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve, arguments.model, arguments.port)
    content = request(arguments.model)
    rates: dict[str, list[float]] = {name: [] for name in FRAMEWORKS}
    for _ in range(arguments.rounds):
        for i, name in enumerate(FRAMEWORKS):
            port = arguments.port + i
            flags = ["--model", arguments.model, "--serve", name, "--port", str(port)]
            server = subprocess.Popen([sys.executable, __file__, *flags])
            try:
                while True:
                    time.sleep(0.2)
                    try:
                        asyncio.run(load(port, content, 0.5))
                        break
                    except OSError:
                        assert server.poll() is None
                number = asyncio.run(load(port, content, arguments.seconds))
            finally:
                server.kill()
                server.wait()
            rates[name].append(number / arguments.seconds)
            print(f"{name}: {rates[name][-1]:,.0f} requests/s")
    print(json.dumps({name: round(max(rate)) for name, rate in rates.items()}))


if __name__ == "__main__":
    main()
