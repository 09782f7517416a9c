"""What the commands share: one clear error instead of a traceback, and parsing of config flags."""

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

    An error that a user can mend is printed alone, unless `argv` asks for its traceback. One of
    several processes that fails, or is interrupted without having saved, ends here, at once: the
    others may be gone, or would wait.
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
        processes.leave(130)  # `Interrupted` does not: all have saved, and stop together
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 1
    except (DinError, OSError) as error:
        if any(a in ("--traceback", "--traceback=true", "-traceback") for a in argv):
            raise
        if isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror}", file=sys.stderr)
        else:
            print(f"error: {error}", file=sys.stderr)
        return 1


def parse_flags(
    argv: Sequence[str], *, required: Sequence[str] = (), positional: int = 0
) -> list[str]:
    """Parses absl flags, those of a config among them.

    Args:
      argv: the command line, the program's name first.
      required: flags that must be given. If "config" is one, its file is checked first.
      positional: how many other arguments are expected.

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
        rest = flags.FLAGS(list(argv))[1:]
    except flags.Error as error:
        raise DinError(f"{_plain(error)} (--help lists the flags)") from error
    except AttributeError as error:
        # What ml_collections raises for a key that the config lacks, with its suggestion.
        raise DinError(f"the config has no such key: {_plain(error)}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DinError(f"the config: {type(error).__name__}: {_plain(error)}") from error
    if len(rest) > positional:
        raise DinError(f"unexpected argument {rest[positional]!r}: flags are written --name=value")
    return rest


def device_count(text: str) -> int | str | None:
    """The value of a flag --devices: a number, "all", or None for an empty text."""
    return int(text) if text.isdecimal() else text or None


def _check_config_file(argv: Sequence[str], at: int) -> None:
    """Loads the config once, for a clear error: ml_collections logs tracebacks and goes on."""
    _, equals, value = argv[at].partition("=")
    if not equals:
        value = argv[at + 1] if at + 1 < len(argv) else ""
    if not value:
        raise DinError("--config needs a value: a file of configs/")
    path, colon, argument = value.partition(":")
    if not Path(path).is_file():
        raise DinError(f"no config file {path!r}; configs/ has some to start from")
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
    # Some of these carry a whole traceback, a quoted message or the whole config in their text.
    text = str(error).replace("\\n", "\n").replace("\\'", "'").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    # What ml_collections lists after these words is the whole config.
    lines = [line.split(" Other fields present")[0] for line in text.splitlines()] or [""]
    if any("Traceback" in line for line in lines):
        return lines[-1]
    close = [line for line in lines if line.startswith("Did you mean")]
    return ". ".join([lines[0], *close[:1]])
