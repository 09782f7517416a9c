"""`python -m din_jax.serve --model model/`: scores requests over HTTP (docs/serving.md).

`--model` is an exported model, or a folder of several, each a version: the newest serves, and newer
ones are loaded while it does.
"""

import argparse
import ipaddress
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from din_jax import cli
from din_jax.errors import DinError

TOKEN_VARIABLE = "DIN_JAX_TOKEN"
_SWITCH_SECONDS = 0.0005  # Python's default is ten times as long
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
        "--name", default="", help="of the model in answers (default: the folder's)"
    )
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
    result.add_argument(
        "--max_batch", type=int, default=4, help="most requests in one computation (default: 4)"
    )
    result.add_argument(
        "--max_wait_ms", type=float, default=0, help="wait for others to merge with (default: 0)"
    )
    result.add_argument(
        "--max_queue", type=int, default=64, help="requests that are admitted (default: 64)"
    )
    result.add_argument(
        "--timeout_ms", type=float, default=1000, help="of a request (default: 1000)"
    )
    result.add_argument(
        "--candidates_per_call", type=int, default=256, help="computed at a time (default: 256)"
    )
    result.add_argument(
        "--max_candidates_per_request", type=int, default=2000, help="default: 2000"
    )
    result.add_argument(
        "--max_history_per_request", type=int, default=10_000, help="default: 10000"
    )
    result.add_argument(
        "--max_body_bytes", type=int, default=1 << 20, help="of a request (default: 1048576)"
    )
    result.add_argument(
        "--reload_seconds", type=float, default=10, help="look for versions; 0: never (default 10)"
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
    check(arguments)
    token = read_token(arguments.token_file)
    loopback = is_loopback(arguments.host)
    if token is None and not loopback and not arguments.no_token:
        raise DinError(
            f"--host {arguments.host}: others can reach it; set ${TOKEN_VARIABLE} or --token_file, "
            "or say --no_token"
        )
    try:
        import uvicorn

        from din_jax.serve.app import Limits, Server
        from din_jax.serve.batching import Batcher
        from din_jax.serve.monitoring import Monitor
    except ModuleNotFoundError as error:
        raise DinError(f"{error.name} is missing: pip install 'din_jax[serve]'") from error
    from din_jax.serve.scorer import Scorer
    from din_jax.serve.versions import Versions

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    for name in ("absl", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    # A request waits for the interpreter several times, each time up to this while a version loads.
    sys.setswitchinterval(_SWITCH_SECONDS)
    name = arguments.name or Path(arguments.model).resolve().name
    monitor = Monitor(name)

    def load(folder: Path, current: Scorer | None) -> Scorer:
        return Scorer(
            folder,
            max_candidates=arguments.candidates_per_call,
            max_users=arguments.max_batch,
            like=current,
        )

    versions = Versions(arguments.model, load, monitor.event)
    batcher = Batcher(
        max_batch=arguments.max_batch,
        max_wait_ms=arguments.max_wait_ms,
        max_queue=arguments.max_queue,
        on_batch=monitor.batch.observe,
    )
    limits = Limits(
        timeout_ms=arguments.timeout_ms,
        body_bytes=arguments.max_body_bytes,
        candidates=arguments.max_candidates_per_request,
        history=arguments.max_history_per_request,
    )
    server = Server(
        name,
        versions,
        batcher,
        monitor,
        limits,
        token=token,
        rollback=loopback or token is not None,
    )
    if arguments.reload_seconds:
        versions.watch(arguments.reload_seconds)
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


def check(arguments: argparse.Namespace) -> None:
    """Raises DinError if a number is out of its range."""
    at_least = {
        "port": 0,
        "max_batch": 1,
        "max_wait_ms": 0,
        "max_queue": 1,
        "timeout_ms": 1,
        "candidates_per_call": 1,
        "max_candidates_per_request": 1,
        "max_history_per_request": 0,
        "max_body_bytes": 1,
        "reload_seconds": 0,
        "drain_seconds": 0,
    }
    for flag, least in at_least.items():
        if not getattr(arguments, flag) >= least:
            raise DinError(f"--{flag}={getattr(arguments, flag)}: expected {least} or more")


def read_token(file: str) -> str | None:
    """The token of a file, or of the environment; None if there is neither.

    Raises:
      DinError: the file can't be read, or the token is empty.
    """
    where, token = f"${TOKEN_VARIABLE}", os.environ.get(TOKEN_VARIABLE)
    if file:
        where = f"--token_file {file}"
        try:
            token = Path(file).read_text()
        except (OSError, ValueError) as error:
            raise DinError(f"{where} can't be read: {error}") from error
    if token is not None and not token.strip():
        raise DinError(f"{where}: the token is empty")
    return None if token is None else token.strip()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    main()
