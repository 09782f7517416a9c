"""`python -m din_jax.replay --workdir RUN`: takes the step at which a run diverged again."""

import argparse
import sys

from din_jax import cli


def main() -> None:
    """Parses the command line, takes the step, and prints its numbers."""
    parser = argparse.ArgumentParser(prog="python -m din_jax.replay", description=__doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    arguments = parser.parse_args()
    sys.exit(cli.guarded(lambda: _print(arguments.workdir), sys.argv))


def _print(workdir: str) -> None:
    from din_jax.training.replay import replay  # imports JAX, which --help does not need

    found = replay(workdir)
    print(f"step {found.step:,}: the loss is {found.loss}")
    print(f"samples of the store: {', '.join(map(str, found.samples))}")
    print(
        f"of these, logits that are not finite: {', '.join(map(str, found.not_finite)) or 'none'}"
    )
    print(f"first input with an infinite value: {found.infinite_inputs or 'none'}")
    print(f"first array that is not finite before the step: {found.before or 'none'}")
    print(f"first array that is not finite after the step: {found.after or 'none'}")
    print("greatest absolute values before the step:")
    for name, value in found.largest.items():
        print(f"  {name}  {value:.4g}")


if __name__ == "__main__":
    main()
