"""`python -m din_jax.plots`: draws the figures of a trained run, as PNG and SVG.

    python -m din_jax.plots all --workdir runs/mine
    python -m din_jax.plots activation_weights --workdir runs/mine --row 17
    python -m din_jax.plots learning_curves --workdir runs/none runs/mba runs/dropout

They are written to WORKDIR/plots, or to --out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from din_jax import cli
from din_jax.errors import DinError

if TYPE_CHECKING:  # Matplotlib may be missing
    from din_jax.plots.picture import Picture


def main() -> None:
    """Draws the figures that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m din_jax.plots",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", help="folder of the files (default: WORKDIR/plots)")
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    of_run = argparse.ArgumentParser(add_help=False, parents=[common])
    of_run.add_argument("--workdir", required=True, help="folder of the run")
    of_run.add_argument("--split", default="test", help="train, validation or test (the default)")
    of_run.add_argument("--store", default="", help="where the run's store is, if it has moved")
    of_run.add_argument(
        "--checkpoint",
        choices=["best", "last"],
        help="which weights (default: those that training reported)",
    )
    for name, words in _FIGURES.items():
        command = names.add_parser(name, parents=[of_run], help=words, description=words)
        if name in ("activation_weights", "embeddings"):
            command.add_argument(
                "--row", type=int, help="the sample, from 0 (default: one that shows much)"
            )
        if name == "activation_weights":
            command.add_argument(
                "--candidates",
                type=int,
                nargs="+",
                default=[],
                help="samples, from 0, whose ads are candidates beside the sample's own",
            )
            command.add_argument(
                "--rank", type=int, default=0, help="without --row: the next of the telling ones"
            )
        if name == "embeddings":
            command.add_argument("--category", default="", help="ad field that gives the shapes")
            command.add_argument(
                "--table", default="", help="the vectors of this table alone (default: v_A)"
            )
    words = "Fig. 4: loss and AUC by epoch, a line a run"
    curves = names.add_parser("learning_curves", parents=[common], help=words, description=words)
    curves.add_argument("--workdir", required=True, nargs="+", help="folders of the runs")
    curves.add_argument("--labels", nargs="+", default=[], help="the runs' names in the figure")
    curves.add_argument(
        "--metric", choices=["user_weighted_auc", "auc"], default="user_weighted_auc"
    )
    arguments = parser.parse_args()
    sys.exit(cli.guarded(lambda: _run(arguments), sys.argv))


_FIGURES = {
    "all": "all figures that the run has",
    "control_functions": "Fig. 3: control functions of PReLU and Dice over the layers' inputs",
    "activation_weights": "Fig. 5: which behaviours of a user a candidate activates",
    "embeddings": "Fig. 6: embeddings of goods by t-SNE, coloured by one user's predicted CTR",
    "reliability": "observed CTR by predicted CTR",
    "score_distributions": "predicted CTR of clicked and other impressions",
    "auc_by_slice": "AUC by history length, popularity of the ad and unknown ids",
    "interest_intensity": "the intensity of the interest by user",
    "feature_importance": "what permuting each feature costs",
}


def _run(arguments: argparse.Namespace) -> None:
    from din_jax.plots.figures import all_pictures, learning_curves, pictures, scored_run

    if arguments.name == "learning_curves":
        folder = Path(arguments.out or Path(arguments.workdir[0]) / "plots")
        picture = learning_curves(arguments.workdir, arguments.labels, metric=arguments.metric)
        _save(picture, folder)
        return
    folder = Path(arguments.out or Path(arguments.workdir) / "plots")
    scored = scored_run(
        arguments.workdir, arguments.split, store=arguments.store, checkpoint=arguments.checkpoint
    )
    if arguments.name == "all":
        for name, drawn in all_pictures(scored):
            if isinstance(drawn, DinError):
                print(f"{name}: not drawn: {drawn}")
            else:
                _save(drawn, folder)
        return
    options = ("row", "candidates", "rank", "category", "table")
    given = {key: getattr(arguments, key) for key in options if key in arguments}
    _save(pictures[arguments.name](scored, **given), folder)


def _save(picture: Picture, folder: Path) -> None:
    png, svg = picture.save(folder)
    print(f"{picture.title}: {png}, {svg.name}", flush=True)


if __name__ == "__main__":
    main()
