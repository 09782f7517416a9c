"""How long din_jax trains until it ranks as well as DeepCTR's DIN ever does, on the same samples.

    python benchmarks/peers/time_to_auc.py --store data/amazon --deepctr .venv-deepctr

Run in din_jax's environment; the peer's is made by `install.sh deepctr DIR`. Both train the network
that DeepCTR has by default, with its learning rate. DeepCTR's target is the best user-weighted AUC
that its validation reaches after an epoch. A time is that of the whole command, from its start to
the evaluation: imports, compiling, reading and earlier evaluations are in it. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.append(str(HERE))

import export_samples  # noqa: E402

from din_jax.cli import guarded  # noqa: E402
from din_jax.data.store import Store  # noqa: E402
from din_jax.errors import DinError  # noqa: E402

_EVALUATION = re.compile(r"validation user_weighted_auc (\d\.\d+)")
# DeepCTR's defaults.
_NETWORK = {
    "model.hidden": "256,128,64",
    "model.activation": "relu",
    "model.attention.hidden": "80,40",
    "model.attention.activation": "dice",
    "model.attention.difference": True,
    "optimizer.learning_rate": 0.001,
    "optimizer.decay_rate": 1.0,
    "optimizer.decay_samples": 1_000_000,
}


def evaluations(command: list[str]) -> list[tuple[float, float]]:
    """Runs a command that trains.

    Returns:
      For each evaluation on validation the seconds since the command's start, and its figure.

    Raises:
      DinError: the command failed, or printed no evaluation.
    """
    found, lines = [], []
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if match := _EVALUATION.search(line):
                found.append((time.perf_counter() - begin, float(match[1])))
    if process.returncode or not found:
        raise DinError(
            f"{command[1]} ended with status {process.returncode} after {len(found)} evaluations; "
            f"its last lines:\n{''.join(lines[-5:])}"
        )
    return found


def reached(curve: list[tuple[float, float]], target: float) -> float | None:
    """Seconds until a curve is first at `target` or above; None if it never is."""
    return next((seconds for seconds, value in curve if value >= target), None)


def figures(
    peer: list[tuple[float, float]], ours: list[list[tuple[float, float]]], an_epoch: int
) -> dict[str, object]:
    """What is printed of the peer's curve, and of ours with `an_epoch` evaluations an epoch."""
    target = max(value for _, value in peer)
    until = reached(peer, target)
    assert until is not None
    times = [reached(curve, target) for curve in ours]
    ends = [curve[an_epoch - 1 :: an_epoch] for curve in ours]
    later = [float("inf") if seconds is None else seconds for seconds in times]
    median = statistics.median(later)
    return {
        "target": target,
        "peer_seconds": round(until, 1),
        "seconds": [None if seconds is None else round(seconds, 1) for seconds in times],
        "ratio": round(until / median, 2),  # 0 if most never reach it
        "peer_after_epochs": [value for _, value in peer],
        "after_epochs": [[value for _, value in curve] for curve in ends],
    }


def main() -> None:
    """Trains the peer once and din_jax with several seeds, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True, help="of din_jax, of `prepare amazon` for one")
    parser.add_argument("--deepctr", required=True, type=Path, help="its environment")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of din_jax")
    parser.add_argument("--evaluations", type=int, default=4, help="of din_jax, an epoch")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--max-history", type=int, default=100)
    arguments = parser.parse_args()
    for name in ("epochs", "seeds", "evaluations"):
        if getattr(arguments, name) < 1:
            raise DinError(f"--{name} {getattr(arguments, name)}: expected at least 1")
    python = arguments.deepctr.absolute() / "bin" / "python"
    if not python.exists():
        raise DinError(
            f"--deepctr {arguments.deepctr} is no virtual environment; make one with "
            f"{HERE.relative_to(ROOT)}/install.sh deepctr {arguments.deepctr}"
        )
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.npz"
        export_samples.write(Store(arguments.store), arguments.max_history, samples)
        peer = evaluations(
            [
                str(python),
                str(HERE / "deepctr_din.py"),
                f"--samples={samples}",
                f"--epochs={arguments.epochs}",
                f"--batch={arguments.batch}",
                f"--dim={arguments.dim}",
            ]
        )
        print(f"deepctr: {peer}", flush=True)
        settings = _NETWORK | {
            "data.store": str(Path(arguments.store).absolute()),
            "data.max_history": arguments.max_history,
            "model.embedding_dim": arguments.dim,
            "train.batch_size": arguments.batch,
            "train.epochs": arguments.epochs,
            "train.evaluations_per_epoch": arguments.evaluations,
        }
        train = [sys.executable, str(ROOT / "train.py"), "--config=configs/amazon.py"]
        train += [f"--config.{key}={value}" for key, value in settings.items()]
        ours = []
        for seed in range(arguments.seeds):
            run = [f"--config.seed={seed}", f"--workdir={folder}/run-{seed}"]
            ours.append(evaluations([*train, *run]))
            print(f"din_jax, seed {seed}: {ours[-1]}", flush=True)
    print(json.dumps(figures(peer, ours, arguments.evaluations) | vars(arguments), default=str))


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))
