"""`python -m din_jax`, or `din_jax`: lists the commands.

`din_jax NAME …` is `python -m din_jax.NAME …`.
"""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "prepare": "raw data to a store: your own log, public data sets, planted data",
    "predict": "scores rows of a file by a trained run, or writes its embeddings",
    "export": "a trained run as an artifact that scores by itself",
    "serve": "answers requests over HTTP by an exported model",
    "plots": "the figures of a trained run",
    "verify": "whether stores, runs and exported models are whole",
    "replay": "the step at which a run diverged, again",
    "report": "reports of runs, the paper's tables, searches, simple baselines",
}
SCRIPTS = {
    "train.py": "trains a run, or continues it",
    "eval.py": "scores a split by a trained run",
}


def listed() -> str:
    """The commands, a line each, in the order in which they are used."""
    modules = {f"python -m din_jax.{name}": words for name, words in COMMANDS.items()}
    scripts = {f"python {name}": words for name, words in SCRIPTS.items()}
    first = "python -m din_jax.prepare"
    lines = {first: modules.pop(first), **scripts, **modules}
    width = max(map(len, lines)) + 2
    return "\n".join(f"{command:<{width}}{words}" for command, words in lines.items())


def main() -> None:
    """Lists the commands, or runs the one that is named."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv = [f"din_jax {name}", *sys.argv[2:]]
        runpy.run_module(f"din_jax.{name}", run_name="__main__", alter_sys=True)
        return
    print(listed())
    if name in ("", "-h", "--help"):
        print("\nEach has --help. train.py and eval.py are in a checkout of the project.")
        return
    print(f"error: no command {name!r}; expected {', '.join(COMMANDS)}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
