"""Trains a model: `python train.py --config configs/quickstart.py`.

Any config key is a flag: --config.model.name=base. Running the same command again goes on where it
was stopped.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from din_jax import cli, train

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (default runs/CONFIG).")
_TEST = flags.DEFINE_bool("test", True, "Score the test split at the end; --notest for trials.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


def main() -> None:
    """Trains as the flags say."""
    cli.parse_flags(sys.argv, required=("config",))
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    train(_CONFIG.value, _WORKDIR.value or f"runs/{name}", test=_TEST.value)


if __name__ == "__main__":
    sys.exit(cli.guarded(main, sys.argv))
