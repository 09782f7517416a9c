"""`python -m din_jax.serve --model model/`: scores requests over HTTP (docs/serving.md).

`--model` is an exported model, or a folder of several, each a version: the newest serves, and newer
ones are loaded while it does.
"""

import argparse
import dataclasses
import ipaddress
import logging
import os
import signal
import sys
from typing import NoReturn

from din_jax import cli
from din_jax.errors import DinError
from din_jax.serve.options import Options
from din_jax.serve.token import TOKEN_VARIABLE, read_token

_KEEP_ALIVE = 75  # seconds that a connection may idle: longer than proxies keep theirs


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(
        prog="python -m din_jax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--model", required=True, help="folder of an exported model, or of several")
    result.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    result.add_argument("--port", type=int, default=8000, help="default: 8000; 0 for a free one")
    result.add_argument(
        "--token_file", default="", help=f"file with the token (or ${TOKEN_VARIABLE})"
    )
    result.add_argument(
        "--no_token", action="store_true", help="listen on another address without a token"
    )
    for field in dataclasses.fields(Options):
        result.add_argument(
            f"--{field.name}",
            type=type(field.default),
            default=field.default,
            help=field.metadata["help"]
            + ("" if field.default == "" else " (default: %(default)s)"),
        )
    result.add_argument(
        "--drain_seconds", type=int, default=30, help="to end requests after SIGTERM (default: 30)"
    )
    result.add_argument("--traceback", action="store_true", help="show where an error came from")
    return result


def main() -> None:
    """Serves as the flags say."""
    arguments = parser().parse_args()
    sys.exit(cli.guarded(lambda: serve(arguments), sys.argv))


def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT, and then answers what has been asked.

    Raises:
      DinError: a flag is wrong, the model can't be loaded, or the token is missing.
    """
    try:
        options = Options(
            **{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Options)}
        )
    except DinError as error:
        raise DinError(f"--{error}") from None
    for flag in ("port", "drain_seconds"):
        if not getattr(arguments, flag) >= 0:
            raise DinError(f"--{flag}={getattr(arguments, flag)}: expected 0 or more")
    token = read_token(arguments.token_file)
    loopback = is_loopback(arguments.host)
    if token is None and not loopback and not arguments.no_token:
        raise DinError(
            f"--host {arguments.host}: others can reach it; set ${TOKEN_VARIABLE} or --token_file, "
            "or say --no_token"
        )
    try:
        import uvicorn

        from din_jax.serve.opening import open_server
    except ModuleNotFoundError as error:
        raise DinError(f"{error.name} is missing: pip install 'din_jax[serve]'") from error
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    for name in ("absl", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    server = open_server(
        arguments.model, options, token=token, rollback=loopback or token is not None
    )
    uvicorn.run(
        server.app,
        host=arguments.host,
        port=arguments.port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=arguments.drain_seconds,
    )


def _leave(number: int, frame: object) -> NoReturn:
    """Ends the process at a signal: before it listens, or when the server has drained.

    At once, since a version may be compiling in a thread, which Python would not end well.
    """
    logging.shutdown()
    os._exit(0)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
