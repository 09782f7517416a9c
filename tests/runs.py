"""Short runs: their configs, and commands."""

import subprocess
import sys
from pathlib import Path

from configs import quickstart

ROOT = Path(__file__).parent.parent


def small_config(store, **keys):
    config = quickstart.get_config()
    config.data.store = str(store)
    config.data.prepare = ""
    config.data.max_history = 4  # short batches: few buckets, few compilations
    config.train.batch_size = 64
    config.train.epochs = 2
    config.update_from_flattened_dict(keys)
    return config


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )
