"""`python -m din_jax.prepare NAME`: one sub-command for each source of data, and `spec`."""

import argparse
import sys

from din_jax import cli
from din_jax.prepare import amazon, bars, log, movielens, planted, spec_draft


def main() -> None:
    """Parses the command line and runs the preparation that it names."""
    parser = argparse.ArgumentParser(prog="python -m din_jax.prepare", description=__doc__)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    modules = {m.__name__.rpartition(".")[2]: m for m in (amazon, bars, log, movielens, planted)}
    for name, module in {**modules, "spec": spec_draft}.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in modules:
            command.add_argument(
                "--out", required=module is not log, help="folder of the new store"
            )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    sys.exit(cli.guarded(lambda: arguments.run(arguments), sys.argv))


if __name__ == "__main__":
    main()
