"""`python -m din_jax.predict`: scores rows of raw values, or writes embeddings.

    python -m din_jax.predict --workdir runs/mine --data new.parquet --out scores.parquet
    python -m din_jax.predict --workdir runs/mine --embeddings item --out items.parquet

The rows are as the store's spec describes the impressions, without labels. They keep their order
and their columns, and p_click is added.
"""

import argparse
import sys

from din_jax import cli
from din_jax.errors import DinError
from din_jax.predict.predicting import COLUMN, predict_file, write_embeddings


def main() -> None:
    """Predicts as the flags say."""
    parser = argparse.ArgumentParser(
        prog="python -m din_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    parser.add_argument("--data", nargs="+", help="files of the rows to score")
    parser.add_argument("--out", required=True, help="the new file: .parquet, .csv or .jsonl")
    parser.add_argument("--behaviours", "--behaviors", help="file of the behaviours, or of clicks")
    parser.add_argument("--spec", help="describes the rows (default: the store's own spec)")
    parser.add_argument("--tables", help="folder of the spec's other files (default: as prepared)")
    parser.add_argument("--embeddings", metavar="TABLE", help="write a table's ids and vectors")
    parser.add_argument("--store", default="", help="where the run's store is, if it has moved")
    parser.add_argument(
        "--checkpoint",
        choices=["best", "last"],
        help="which weights (default: those that training reported)",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    arguments = parser.parse_args()
    sys.exit(cli.guarded(lambda: _run(arguments), sys.argv))


def _run(arguments: argparse.Namespace) -> None:
    which = {"store": arguments.store, "checkpoint": arguments.checkpoint}
    if (arguments.data is None) == (arguments.embeddings is None):
        raise DinError("expected --data, the rows to score, or --embeddings, a table to write")
    if arguments.embeddings is not None:
        count = write_embeddings(arguments.workdir, arguments.embeddings, arguments.out, **which)
        print(
            f"{count:,} ids of {arguments.embeddings} and their vectors written to {arguments.out}"
        )
        return
    predicted = predict_file(
        arguments.workdir,
        arguments.data,
        arguments.out,
        behaviors=arguments.behaviours,
        spec=arguments.spec,
        tables=arguments.tables,
        **which,
    )
    for note in predicted.notes:
        print(f"note: {note}")
    for field, missing in predicted.unknown.items():
        if missing:
            print(f"{field}: {missing:,} values unknown to the model, or missing")
    print(f"{predicted.rows:,} rows with {COLUMN} written to {arguments.out}")


if __name__ == "__main__":
    main()
