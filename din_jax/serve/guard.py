"""Around all routes: the token, the metrics, and errors that nobody expected."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from din_jax.serve.monitoring import Monitor

_log = logging.getLogger("din_jax.serve")

HEALTH = ("/v2/health/live", "/v2/health/ready")
_MODELS = "/v2/models/"
_WITH_NAMES = {"/v1/ids/": "/v1/ids/{table}", "/page/": "/page/{file}"}
_CLIENT_LEFT = 499  # as nginx counts it


def answer(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response of JSON."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def problem(
    status: int,
    message: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
    **more: str,
) -> Response:
    """An error's response: {"error": {"field": …, "message": …}}."""
    return answer({"error": {"field": field, "message": message, **more}}, status, headers)


class Guard:
    """ASGI middleware: asks for the token, counts and times, and hides what went wrong inside.

    Args:
      app: to protect.
      monitor: is told every request.
      routes: paths that the metrics tell apart.
      token: that all routes ask for but public ones; None for no token.
      public: paths that need no token.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        monitor: Monitor,
        routes: frozenset[str],
        token: str | None,
        public: frozenset[str] = frozenset(HEALTH),
    ):
        self._app, self._monitor, self._routes = app, monitor, routes
        self._token = None if token is None else token.encode()
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._allowed(scope):
                await self._app(scope, receive, sending)
            else:
                ask = {"WWW-Authenticate": "Bearer"}
                refusal = problem(401, "expected a valid bearer token", "Authorization", ask)
                await refusal(scope, receive, sending)
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except Exception:
            name = secrets.token_hex(8)
            _log.exception("error %s of %s", name, scope["path"])
            if status:  # the answer has begun
                raise
            await problem(500, "internal error; the log has it by this id", id=name)(
                scope, receive, sending
            )
        finally:
            route = self._route(scope["path"])
            self._monitor.requests.labels(route, status).inc()
            self._monitor.seconds.labels(route).observe(time.perf_counter() - begin)

    def _allowed(self, scope: Scope) -> bool:
        if self._token is None or scope["path"] in self._public:
            return True
        header = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
        scheme, _, given = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)

    def _route(self, path: str) -> str:
        if path in self._routes:
            return path
        if path.startswith(_MODELS):
            return f"{_MODELS}{{name}}{'/ready' if path.endswith('/ready') else ''}"
        found = (route for start, route in _WITH_NAMES.items() if path.startswith(start))
        return next(found, "other")
