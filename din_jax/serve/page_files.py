"""The page at `/`: its files, and the headers that keep a browser to them."""

from __future__ import annotations

from importlib import resources

from starlette.exceptions import HTTPException
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


class Page:
    """Serves the files of the page, which are read once.

    Attributes:
      routes: of the page and of its files.
      paths: of all that they answer.
    """

    def __init__(self) -> None:
        folder = resources.files("din_jax.serve").joinpath("page")
        self._files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.routes = [Route("/", self.start), Route("/page/{file}", self.file)]
        self.paths = frozenset(["/", *(f"/page/{name}" for name in self._files)])

    async def start(self, request: Request) -> Response:
        """GET /: the page."""
        return self._answer("index.html")

    async def file(self, request: Request) -> Response:
        """GET /page/FILE: what the page consists of."""
        name = request.path_params["file"]
        if name not in self._files:
            raise HTTPException(404, "no such file")
        return self._answer(name)

    def _answer(self, name: str) -> Response:
        kind = _TYPES[name.rpartition(".")[2]]
        return Response(self._files[name], headers={**_HEADERS, "Content-Type": kind})
