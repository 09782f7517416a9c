"""The page at `/`: its files, and the headers that keep a browser to them."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # files of another version would not fit together
}
_START = "index.html"


def page_routes() -> list[Route]:
    """The routes of the page: `/`, and a route a file that it uses. They need no token."""
    files = sorted(
        (file for file in resources.files("din_jax.serve").joinpath("page").iterdir()),
        key=lambda file: file.name,
    )
    return [_route(file.name, file.read_bytes()) for file in files]


def _route(name: str, content: bytes) -> Route:
    headers = {**_HEADERS, "Content-Type": _TYPES[name.rpartition(".")[2]]}

    async def file(request: Request) -> Response:
        return Response(content, headers=headers)

    return Route("/" if name == _START else f"/page/{name}", file, name=name)
