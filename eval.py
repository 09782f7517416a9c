"""Evaluates a trained model: `python eval.py --workdir runs/amazon --split test`."""

import sys

from absl import flags

from din_jax import cli, evaluate
from din_jax.data.verification import VERIFY
from din_jax.distributed import processes
from din_jax.training.evaluation import metrics_table

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_string("split", "test", "Which split of the store to score.")
_STORE = flags.DEFINE_string("store", "", "Where the store is, if it has moved.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", None, ["best", "last"], "Which weights (default: those that training reported)."
)
_DEVICES = flags.DEFINE_string(
    "devices", "", "How many devices, or all (default: as many as it was trained on)."
)
_VERIFY = flags.DEFINE_enum(
    "verify", None, VERIFY, "Whether to verify the store (default: config.data.verify)."
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


def main() -> None:
    """Evaluates as the flags say."""
    cli.parse_flags(sys.argv, required=("workdir",))
    with processes.together():
        scores = evaluate(
            _WORKDIR.value,
            _SPLIT.value,
            store=_STORE.value,
            devices=cli.device_count(_DEVICES.value),
            checkpoint=_CHECKPOINT.value,
            verify=_VERIFY.value,
        )
    if processes.is_first():
        title = f"{_SPLIT.value} metrics, weights of step {scores.step:,}"
        print(metrics_table(title, scores.metrics))


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
