"""What the commands share: one clear error instead of a traceback, and parsing of config flags."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from din_jax.errors import DinError


def guarded(main: Callable[[], int | None], *, traceback: bool) -> int:
    """Runs `main` and returns the exit status; a `DinError` is printed alone and gives 1.

    Args:
      main: the command; what it returns is the status, None is 0.
      traceback: let the exception through instead, to see where it came from.
    """
    try:
        return main() or 0
    except DinError as error:
        if traceback:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 1


def parse_flags(
    argv: Sequence[str], *, required: Sequence[str] = (), requires_config: bool = False
) -> None:
    """Parses absl flags, those of a config among them.

    Args:
      argv: the command line, the program's name first.
      required: flags that must be given.
      requires_config: whether --config must be given.

    Raises:
      DinError: a flag or a config key is unknown or of another type, or a config can't be read.
    """
    given = {a.lstrip("-").partition("=")[0]: i for i, a in enumerate(argv) if a.startswith("-")}
    if requires_config and "config" in given:
        _check_config_file(argv, given["config"])
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise DinError(f"{_plain(error)} (--help lists the flags)") from error
    except AttributeError as error:
        # What ml_collections raises for a key that the config lacks, with its suggestion.
        raise DinError(f"the config has no such key: {_plain(error)}") from error
    except (OSError, ImportError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise DinError(f"the config: {type(error).__name__}: {_plain(error)}") from error
    for name in (*required, *["config"] * requires_config):
        if name not in given:
            raise DinError(f"--{name}=… is required (--help lists the flags)")
    if len(rest) > 1:
        raise DinError(f"unexpected argument {rest[1]!r}: flags are written --name=value")


def _check_config_file(argv: Sequence[str], at: int) -> None:
    # ml_collections logs a traceback for a missing file and fails only later.
    _, equals, path = argv[at].partition("=")
    if not equals:
        path = argv[at + 1] if at + 1 < len(argv) else ""
    if not Path(path.split(":")[0]).is_file():
        raise DinError(f"no config file {path.split(':')[0]!r}; configs/ has some to start from")


def _plain(error: Exception) -> str:
    # Some of these carry a whole traceback, or a quoted message, in their text.
    text = str(error).strip("\"'").replace("\\n", "\n").replace("\\'", "'").strip()
    lines = text.split("\n")
    return lines[-1] if any("Traceback" in line for line in lines) else ". ".join(lines)
