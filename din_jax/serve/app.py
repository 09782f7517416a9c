"""The HTTP server's routes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import din_jax
from din_jax.errors import DinError
from din_jax.export.encoding import InvalidRequest
from din_jax.serve import openapi
from din_jax.serve.batching import Batcher, DeadlinePassed, Overloaded
from din_jax.serve.guard import HEALTH, Guard, answer, problem
from din_jax.serve.id_search import IdSearch
from din_jax.serve.inputs import described
from din_jax.serve.monitoring import CONTENT_TYPE, Monitor
from din_jax.serve.page_files import Page
from din_jax.serve.ranking import ranking
from din_jax.serve.requests import (
    RankRequest,
    RollbackRequest,
    ScoreRequest,
    check_sizes,
    parse,
)
from din_jax.serve.scorer import Scored, Scorer
from din_jax.serve.versions import Version, Versions

TIMEOUT_HEADER = "X-Timeout-Ms"
_RETRY = {"Retry-After": "1"}
_BODIES = 4  # times max_queue: bodies that are read at a time
_SEARCHES = 2  # searches for ids at a time: they take cores from what scores
_FOUND = 100  # ids that a search gives, and that are looked up, at most
_QUERY = 200  # characters of a search
_Asked = TypeVar("_Asked", ScoreRequest, RankRequest)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
      timeout_ms: in which it is answered; its header may say less.
      body_bytes: of its JSON.
      candidates: that it has.
      history: behaviours of a sequence that it has.
    """

    timeout_ms: float = 1000
    body_bytes: int = 1 << 20
    candidates: int = 2000
    history: int = 10_000


class _Answered(NamedTuple):
    """A request that has been scored, and what all answers say."""

    asked: Any
    scored: Scored
    common: dict[str, Any]


class Server:
    """Answers the routes for scoring.

    Args:
      name: of the model.
      versions: of the model.
      batcher: that scores; it is closed with the app.
      monitor: that counts.
      limits: of a request.
      token: that all routes but health and the page ask for; None for no token.
      rollback: whether `/v1/rollback` is allowed.
    """

    def __init__(
        self,
        name: str,
        versions: Versions,
        batcher: Batcher,
        monitor: Monitor,
        limits: Limits = Limits(),
        *,
        token: str | None = None,
        rollback: bool = True,
    ):
        self.name, self.versions, self.batcher = name, versions, batcher
        self.monitor, self.limits = monitor, limits
        self._rollback_allowed = rollback
        self._bodies = 0  # that are being read
        self._searches = 0  # that are running
        self._searched: tuple[Scorer, IdSearch] | None = None
        monitor.queue(lambda: batcher.admitted)
        page = Page()
        routes = [
            *page.routes,
            Route("/v1/score", self.score, methods=["POST"]),
            Route("/v1/rank", self.rank, methods=["POST"]),
            Route("/v1/explain", self.explain, methods=["POST"]),
            Route("/v1/inputs", self.inputs),
            Route("/v1/ids/{table}", self.ids),
            Route("/v1/rollback", self.rollback, methods=["POST"]),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/v2", self.about),
            Route(HEALTH[0], self.live),
            Route(HEALTH[1], self.ready),
            Route("/v2/models/{name}", self.model),
            Route("/v2/models/{name}/ready", self.model_ready),
        ]
        guard = Middleware(
            Guard,
            monitor=monitor,
            routes=frozenset(r.path for r in routes),
            token=token,
            public=page.paths.union(HEALTH),
        )
        self.app = Starlette(
            routes=routes,
            middleware=[guard],
            lifespan=self._lifespan,
            exception_handlers={
                HTTPException: _http_problem,
                InvalidRequest: _invalid,
                Overloaded: _overloaded,
                DeadlinePassed: _deadline_passed,
            },
        )
        self.app.router.redirect_slashes = False

    async def score(self, request: Request) -> Response:
        """POST /v1/score: the probabilities of the candidates."""
        done = await self._scored(request, ScoreRequest)
        return answer({"probabilities": done.scored.probability.tolist(), **done.common})

    async def rank(self, request: Request) -> Response:
        """POST /v1/rank: the candidates in the order of CTR^α · bid."""
        done = await self._scored(request, RankRequest)
        ranked = ranking(done.scored.probability, done.asked.bids, done.asked.alpha)
        columns = {
            "indices": ranked.order.tolist(),
            "probabilities": ranked.probability.tolist(),
            "values": ranked.value.tolist(),
        }
        return answer({**columns, **done.common})

    async def explain(self, request: Request) -> Response:
        """POST /v1/explain: the activation weights of the behaviours."""
        manifest = self.versions.current.scorer.artifact.manifest
        if not manifest["activation_weights"]:
            name = manifest["config"]["model"]["name"]
            raise HTTPException(404, f"{name} has no activation unit; only din has one")
        done = await self._scored(request, ScoreRequest)
        weights = {name: w.tolist() for name, w in done.scored.weights.items()}
        probabilities = done.scored.probability.tolist()
        return answer({"weights": weights, "probabilities": probabilities, **done.common})

    async def inputs(self, request: Request) -> Response:
        """GET /v1/inputs: the fields of a request, and an example."""
        version = self.versions.current
        model = {"name": self.name, "version": version.name}
        return answer({**described(version.scorer), "model": model})

    async def ids(self, request: Request) -> Response:
        """GET /v1/ids/TABLE: ids that contain `query`, or the titles of each `id`."""
        table, asked = request.path_params["table"], request.query_params
        search = self._id_search()
        if table not in search.tables:
            known = ", ".join(search.tables) or "none"
            raise HTTPException(404, f"{_short(table)}: no table of ids; expected one of {known}")
        given, query = asked.getlist("id"), asked.get("query", "")
        if len(given) > _FOUND:
            raise InvalidRequest("id", f"{len(given):,} ids; at most {_FOUND} are looked up")
        if len(query) > _QUERY:
            raise InvalidRequest("query", f"{len(query):,} characters; at most {_QUERY} are taken")
        limit = asked.get("limit", "20")
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= _FOUND):
            raise InvalidRequest("limit", f"expected a whole number from 1 to {_FOUND}")
        if given:
            return answer({"ids": search.look_up(table, given)})
        if self._searches >= _SEARCHES:
            raise Overloaded
        deadline = self._deadline(request)
        self._searches += 1
        try:
            found = await asyncio.to_thread(search.search, table, query, int(limit), deadline)
        except TimeoutError:
            raise DeadlinePassed from None
        finally:
            self._searches -= 1
        return answer({"ids": found})

    def _id_search(self) -> IdSearch:
        """Of the version that serves."""
        scorer = self.versions.current.scorer
        if self._searched is None or self._searched[0] is not scorer:
            found = IdSearch(scorer.artifact.transform, scorer.artifact.titles)
            self._searched = scorer, found
        return self._searched[1]

    async def rollback(self, request: Request) -> Response:
        """POST /v1/rollback: back to the previous version."""
        if not self._rollback_allowed:
            raise HTTPException(
                403, "not here: others reach this server without a token, or it is one of several"
            )
        asked = parse(RollbackRequest, await self._body(request, self._deadline(request)))
        try:
            version = self.versions.rollback(asked.version)
        except DinError as error:
            raise HTTPException(409, str(error)) from error
        return answer({"model": {"name": self.name, "version": version.name}})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        text = self.monitor.text(self.versions.current.name)
        return Response(text, media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        version = self.versions.current
        return answer(openapi.document(self.name, version.name, version.scorer))

    async def about(self, request: Request) -> Response:
        """GET /v2: the server."""
        return answer({"name": "din_jax", "version": din_jax.__version__, "extensions": []})

    async def live(self, request: Request) -> Response:
        """GET /v2/health/live."""
        return answer({"live": True})

    async def ready(self, request: Request) -> Response:
        """GET /v2/health/ready: whether to send requests."""
        return answer({"ready": True})  # the model is loaded before the server listens

    async def model(self, request: Request) -> Response:
        """GET /v2/models/NAME: versions, inputs and outputs."""
        self._check_name(request)
        served = (self.versions.current, self.versions.previous)
        return answer(
            {
                "name": self.name,
                "versions": [version.name for version in served if version],
                "platform": "jax",
                "inputs": openapi.tensors(self.versions.current.scorer.encoder),
                "outputs": [{"name": "probabilities", "datatype": "FP64", "shape": [-1]}],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/NAME/ready."""
        self._check_name(request)
        return answer({"name": self.name, "ready": True})

    async def _scored(self, request: Request, kind: type[_Asked]) -> _Answered:
        deadline = self._deadline(request)
        # At once: bodies that can't be answered would only fill the memory.
        if self.batcher.full or self._bodies >= _BODIES * self.batcher.max_queue:
            raise Overloaded
        self._bodies += 1
        try:
            body = await self._body(request, deadline)
        finally:
            self._bodies -= 1
        limits = self.limits

        def encode() -> tuple[_Asked, Version, Any, Any]:
            version = self.versions.current
            asked = parse(kind, body)
            check_sizes(asked, max_candidates=limits.candidates, max_history=limits.history)
            scorer = version.scorer
            user = scorer.user(asked.user, asked.behaviors, asked.context, asked.time)
            return asked, version, user.encoded, scorer.ads(asked.candidates)

        async with self.batcher.admission(deadline):
            asked, version, user, ads = await self.batcher.encode(encode)
            scored = await self.batcher.score(version.scorer, user, ads, deadline)
        if not np.isfinite(scored.probability).all():
            raise InvalidRequest("body", "no finite probability: a number is out of range")
        self.monitor.candidates.inc(len(scored.probability))
        self.monitor.unknown.inc(user.unknown + ads.unknown)
        common = {
            "model": {"name": self.name, "version": version.name},
            "unknown_ids": user.unknown + ads.unknown,
        }
        return _Answered(asked, scored, common)

    def _deadline(self, request: Request) -> float:
        milliseconds = self.limits.timeout_ms
        if (header := request.headers.get(TIMEOUT_HEADER)) is not None:
            try:
                asked = float(header)
            except ValueError:
                asked = float("nan")
            if not asked > 0:
                raise InvalidRequest(TIMEOUT_HEADER, "expected milliseconds, over 0")
            milliseconds = min(milliseconds, asked)
        return asyncio.get_running_loop().time() + milliseconds / 1000

    async def _body(self, request: Request, deadline: float) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "expected Content-Type: application/json")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "expected no Content-Encoding")
        limit = self.limits.body_bytes
        body = bytearray()
        size = request.headers.get("content-length", "0")
        too_large = size.isdecimal() and int(size) > limit
        if not too_large:
            try:
                async with asyncio.timeout_at(deadline):
                    async for chunk in request.stream():
                        body += chunk
                        if too_large := len(body) > limit:
                            break
            except TimeoutError:
                raise HTTPException(408, "the body came too slowly") from None
        if too_large:
            close = {"Connection": "close"}  # what is left of the body is not read
            raise HTTPException(413, f"body: at most {limit:,} bytes are taken", close)
        return bytes(body)

    def _check_name(self, request: Request) -> None:
        if request.path_params["name"] != self.name:
            raise HTTPException(404, f"no such model; this is {self.name}")

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self.versions.close()
        await asyncio.to_thread(self.batcher.close)


def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return problem(error.status_code, error.detail, headers=error.headers)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidRequest)
    message = str(error).removeprefix(f"{error.field}: ")
    return problem(400, _short(message), _short(error.field))


def _overloaded(request: Request, error: Exception) -> Response:
    return problem(503, "as many requests as are admitted are being answered", headers=_RETRY)


def _deadline_passed(request: Request, error: Exception) -> Response:
    return problem(504, "not answered in its time")


def _short(text: str, most: int = 300) -> str:
    """Text without the length that a request's own values may have."""
    return text if len(text) <= most else f"{text[:most]}…"
