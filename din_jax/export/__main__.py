"""`python -m din_jax.export --workdir runs/mine --out model/`: a trained run as an artifact.

It holds the model's function, compiled for CPU, CUDA and TPU by `jax.export`, its weights and
tables, and the vocabularies: all that `din_jax.Scorer` and `python -m din_jax.serve` need.
"""

import argparse
import sys
from pathlib import Path

from din_jax import cli
from din_jax.errors import DinError
from din_jax.export.exporting import PLATFORMS, export_run


def main() -> None:
    """Exports as the flags say."""
    parser = argparse.ArgumentParser(
        prog="python -m din_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--out", required=True, help="folder of the new artifact")
    parser.add_argument("--store", default="", help="where the run's store is, if it has moved")
    parser.add_argument(
        "--checkpoint",
        choices=["best", "last"],
        help="which weights (default: those that training reported)",
    )
    parser.add_argument(
        "--platforms", default=",".join(PLATFORMS), help=f"default: {','.join(PLATFORMS)}"
    )
    parser.add_argument("--license", default="", help="of the data, for the model card: cc-by-4.0")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    arguments = parser.parse_args()
    sys.exit(cli.guarded(lambda: _export(arguments), sys.argv))


def _export(arguments: argparse.Namespace) -> None:
    platforms = [p.strip() for p in arguments.platforms.split(",")]
    if unknown := [p for p in platforms if p not in PLATFORMS]:
        raise DinError(f"--platforms {unknown[0]!r}: expected some of {', '.join(PLATFORMS)}")
    manifest = export_run(
        arguments.workdir,
        arguments.out,
        store=arguments.store,
        checkpoint=arguments.checkpoint,
        platforms=platforms,
        license=arguments.license,
    )
    size = sum(file.stat().st_size for file in Path(arguments.out).rglob("*") if file.is_file())
    name = manifest["config"]["model"]["name"]
    print(f"{arguments.out}: {name} of step {manifest['step']:,}, {size / 2**20:,.1f} MiB")
    print(
        f"for {', '.join(manifest['platforms'])}; serve it: python -m din_jax.serve --model "
        f"{arguments.out}"
    )


if __name__ == "__main__":
    main()
