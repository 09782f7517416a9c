"""Error reporting without tracebacks, and flag parsing, for the commands."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from din_jax.distributed import processes
from din_jax.errors import DinError, Interrupted


def guarded(main: Callable[[], object], argv: Sequence[str]) -> int:
    """Runs `main` and returns the exit status: 0, 1 after an error, 128 + N after signal N.

    An error that a user can mend is printed without its traceback, unless `argv` has --traceback.
    If this is one of several processes, and it fails or is interrupted without having saved, the
    process exits here, at once: the other processes may have died, or would wait for it.
    """
    try:
        status = _status(main, argv)
    except BaseException:
        if processes.one_of_several():
            traceback.print_exc()
            processes.leave(1)
        raise
    if status == 1:
        processes.leave(status)
    return status


def _status(main: Callable[[], object], argv: Sequence[str]) -> int:
    try:
        main()
        return 0
    except Interrupted as stop:
        print(stop)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        processes.leave(130)  # not after `Interrupted`: all processes have saved and stop together
        return 130
    except BrokenPipeError:  # the reader of the output has exited, as `| head` does
        sys.stderr.close()
        return 1
    except (DinError, OSError) as error:
        if any(a in ("--traceback", "--traceback=true", "-traceback") for a in argv):
            raise
        if isinstance(error, OSError) and error.strerror:
            path = f"{error.filename}: " if error.filename else ""
            print(f"error: {path}{error.strerror}", file=sys.stderr)
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1


def parse_flags(
    argv: Sequence[str], *, required: Sequence[str] = (), positional: int = 0
) -> list[str]:
    """Parses absl flags, including those of a config.

    Args:
      argv: the command line, starting with the program's name.
      required: flags that must be given. If they include "config", its file is checked first.
      positional: the maximum number of positional arguments.

    Returns:
      The positional arguments.

    Raises:
      DinError: a flag or a config key is unknown, missing or of another type, or a config can't be
        read.
    """
    if "help" not in flags.FLAGS:
        app.define_help_flags()
    given = {a.lstrip("-").partition("=")[0]: i for i, a in enumerate(argv) if a.startswith("-")}
    if given.keys().isdisjoint(("help", "helpshort", "helpfull", "h", "?")):
        for name in required:
            if name not in given:
                raise DinError(f"--{name}=… is required (--help lists the flags)")
        if "config" in required:
            _check_config_file(argv, given["config"])
    try:
        arguments: list[str] = flags.FLAGS(list(argv))[1:]
    except flags.Error as error:
        raise DinError(f"{_plain(error)} (--help lists the flags)") from error
    except AttributeError as error:
        # ml_collections raises it for an unknown key, with a suggestion.
        raise DinError(f"the config has no such key: {_plain(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DinError(f"the config: {type(error).__name__}: {_plain(error)}") from error
    if len(arguments) > positional:
        raise DinError(
            f"unexpected argument {arguments[positional]!r}: flags are written --name=value"
        )
    return arguments


def device_count(text: str) -> int | str | None:
    """Parses the value of a flag --devices: a number, "all", or None if it is empty."""
    return int(text) if text.isdecimal() else text or None


def _check_config_file(argv: Sequence[str], index: int) -> None:
    """Loads the config of argv[index], and raises DinError if that fails.

    ml_collections itself would log tracebacks and continue.
    """
    _, equals, value = argv[index].partition("=")
    if not equals:
        value = argv[index + 1] if index + 1 < len(argv) else ""
    if not value:
        raise DinError("--config needs a value: a file of configs/")
    path, colon, argument = value.partition(":")
    if not Path(path).is_file():
        raise DinError(f"no config file {path!r}; configs/ has examples")
    spec = importlib.util.spec_from_file_location("_config", path)
    if spec is None or spec.loader is None:
        raise DinError(f"{path}: a config is a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*[argument] * bool(colon))
    except Exception as error:
        raise DinError(f"{path}: {type(error).__name__}: {_plain(error)}") from error
    if not isinstance(config, ConfigDict):
        raise DinError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")


def _plain(error: Exception) -> str:
    """The message of an error, without quotes, tracebacks and listings of the config."""
    text = str(error).replace("\\n", "\n").replace("\\'", "'").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    # ml_collections lists all keys of the config after these words.
    lines = [line.split(" Other fields present")[0] for line in text.splitlines()] or [""]
    if any("Traceback" in line for line in lines):
        return lines[-1]
    close = [line for line in lines if line.startswith("Did you mean")]
    return ". ".join([lines[0], *close[:1]])
