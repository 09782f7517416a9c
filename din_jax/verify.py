"""`python -m din_jax.verify DIR…`: whether stores, runs and exported models are what was written.

Every file is read and compared with its checksum. Of a store also the content is checked: lengths,
offsets, ids, labels, users. The exit status is 1 if anything is damaged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from din_jax import cli
from din_jax.errors import DinError


def verify(folder: Path) -> Iterator[str]:
    """Yields a line for each part of a store, a run or an exported model that is whole.

    Raises:
      DinError: a part is damaged, or the folder is none of these.
    """
    if not folder.is_dir():
        raise DinError(f"{folder}: no such folder")
    if (folder / "manifest.json").exists():
        from din_jax.export import artifact

        files = artifact.load(folder).manifest["files"]
        yield f"{folder}: an exported model of {len(files)} files, all as written"
    elif (folder / "checkpoints").is_dir():
        yield from _run(folder)
    elif (folder / "schema.json").exists():
        from din_jax.data.store import Store

        store = Store(folder, verify="full")
        yield f"{folder}: a store of {len(store):,} samples, all files as written"
    else:
        raise DinError(
            f"{folder} is no store (schema.json), no run (checkpoints/) and no exported model "
            "(manifest.json)"
        )


def _run(folder: Path) -> Iterator[str]:
    from din_jax.checkpoint.checkpoints import KINDS, Checkpoints

    checkpoints = Checkpoints(folder)
    found = [(kind, step) for kind in KINDS for step in checkpoints.steps(kind)]
    if not found:
        raise DinError(f"{folder}: checkpoints/ has no checkpoint")
    damaged = []
    for kind, step in found:
        try:
            checkpoints.verify(kind, step)
            yield f"{folder}: the {kind} checkpoint of step {step:,}, all arrays as saved"
        except DinError as error:
            damaged.append(str(error))
    if checkpoints.any_meta()["best"] is not None and not checkpoints.steps("best"):
        damaged.append(f"{folder}: the best checkpoint is missing")
    if damaged:
        raise DinError("\n  ".join(damaged))


def _all(folders: list[str]) -> None:
    damaged = []
    for folder in folders:
        try:
            for line in verify(Path(folder)):
                print(line, flush=True)
        except DinError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            damaged.append(folder)
    if damaged:
        raise DinError(f"not found whole: {', '.join(damaged)}")


def main() -> None:
    """Parses the command line and verifies each folder."""
    parser = argparse.ArgumentParser(
        prog="python -m din_jax.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="store, run or exported model")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    arguments = parser.parse_args()
    sys.exit(cli.guarded(lambda: _all(arguments.folders), sys.argv))


if __name__ == "__main__":
    main()
