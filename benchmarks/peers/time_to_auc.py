"""Time until din_jax reaches the best validation AUC of DeepCTR's DIN, on the same samples.

    python benchmarks/peers/time_to_auc.py --store data/amazon --deepctr .venv-deepctr

Runs in din_jax's environment; make the peer's with `install.sh deepctr DIR`. Both train DeepCTR's
default network, with its default learning rate. The target is the best user-weighted AUC on
validation that DeepCTR has after an epoch. Times are from the start of the command to the
evaluation, including imports, compiling, reading and earlier evaluations. The last line is JSON.
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
    """Runs a training command.

    Returns:
      For each evaluation on validation the seconds since the command's start, and the
      user-weighted AUC.

    Raises:
      DinError: the command failed, or printed no evaluation.
    """
    curve, lines = [], []
    begin = time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if match := _EVALUATION.search(line):
                curve.append((time.perf_counter() - begin, float(match[1])))
    if process.returncode or not curve:
        raise DinError(
            f"{command[1]} ended with status {process.returncode} after {len(curve)} evaluations; "
            f"its last lines:\n{''.join(lines[-5:])}"
        )
    return curve


def reached(curve: list[tuple[float, float]], target: float) -> float | None:
    """The seconds after which a curve first reaches `target`; None if it never does."""
    return next((seconds for seconds, value in curve if value >= target), None)


def figures(
    peer: list[tuple[float, float]], ours: list[list[tuple[float, float]]], per_epoch: int
) -> dict[str, object]:
    """Summarizes the peer's curve, and our curves with `per_epoch` evaluations per epoch."""
    target = max(value for _, value in peer)
    peer_seconds = reached(peer, target)
    assert peer_seconds is not None
    times = [reached(curve, target) for curve in ours]
    epoch_ends = [curve[per_epoch - 1 :: per_epoch] for curve in ours]
    median = statistics.median(float("inf") if time is None else time for time in times)
    return {
        "target": target,
        "peer_seconds": round(peer_seconds, 1),
        "seconds": [None if seconds is None else round(seconds, 1) for seconds in times],
        "ratio": round(peer_seconds / median, 2),  # 0 if most seeds never reach the target
        "peer_after_epochs": [value for _, value in peer],
        "after_epochs": [[value for _, value in curve] for curve in epoch_ends],
    }


def main() -> None:
    """Trains the peer once and din_jax with several seeds, one after another."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True, help="a store, for instance of `prepare amazon`")
    parser.add_argument("--deepctr", required=True, type=Path, help="DeepCTR's environment")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of din_jax")
    parser.add_argument("--evaluations", type=int, default=4, help="of din_jax, per epoch")
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
