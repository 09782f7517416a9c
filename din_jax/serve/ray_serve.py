"""The server as a Ray Serve deployment: replicas, on one machine or many (docs/serving.md).

serve run din_jax.serve.ray_serve:app model=/models/mine
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from din_jax.errors import DinError
from din_jax.serve.options import Options
from din_jax.serve.token import read_token

try:
    from ray import serve
except ModuleNotFoundError as error:
    raise DinError(f"{error.name} is missing: pip install 'din_jax[ray]'") from error


@serve.ingress(None)
class Replica:
    """A server in a replica: all of its routes but `/v1/rollback`, which would reach one alone.

    Each replica loads the model, merges the requests that reach it, and reloads new versions.

    Args:
      model: see `din_jax.serve.opening.open_server`; a path that all machines have.
      options: see `Options`.
    """

    def __init__(self, model: str, options: Options):
        from din_jax.serve.opening import open_server

        self._server = open_server(model, options, token=read_token(), rollback=False)

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application."""
        return self._server.app


def application(
    model: str | os.PathLike[str], options: Options | None = None, **deployment: Any
) -> serve.Application:
    """Makes an application for `ray.serve.run`.

    If the environment of a replica has `DIN_JAX_TOKEN`, requests need it.

    Args:
      model: the folder of an exported model, or of several; all machines need it.
      options: see `Options`.
      deployment: of Ray's `Deployment.options`, for example `num_replicas` or
        `autoscaling_config`. By default a replica gets `max_queue` requests at a time.

    Raises:
      DinError: there is no such folder.
    """
    options = Options() if options is None else options
    folder = Path(model).resolve()
    if not folder.is_dir():
        raise DinError(f"{folder}: no such folder; expected an exported model")
    quiet = {"enable_access_log": False}  # a line a request
    fitting = {"max_ongoing_requests": options.max_queue, "logging_config": quiet}
    replica: Any = serve.deployment(Replica, name="din_jax")
    return replica.options(**{**fitting, **deployment}).bind(str(folder), options)


def app(arguments: Mapping[str, str]) -> serve.Application:
    """Makes an application of `model=FOLDER` and of `Options`, for `serve run` and config files.

    Raises:
      DinError: an argument is missing, unknown or out of its range.
    """
    given = dict(arguments)
    model = given.pop("model", None)
    types = {name: type(value) for name, value in dataclasses.asdict(Options()).items()}
    if model is None or not given.keys() <= types.keys():
        unknown = ", ".join(sorted(given.keys() - types.keys())) or "no model"
        raise DinError(f"{unknown}: expected model=FOLDER and of {', '.join(types)}")
    try:
        options = Options(**{name: types[name](value) for name, value in given.items()})
    except ValueError as error:
        raise DinError(f"an option is no number: {error}") from error
    return application(model, options)
