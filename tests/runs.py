"""Short runs: their configs, and commands."""

import json
import subprocess
import sys
from pathlib import Path

from din_jax.config import default_config

ROOT = Path(__file__).parent.parent


def small_config(store, **keys):
    config = default_config()
    config.data.store = str(store)
    config.eval.baselines = False
    config.model.embedding_dim = 16
    config.optimizer.learning_rate = 0.004
    config.optimizer.decay_samples = 1_000_000
    config.data.max_history = 4  # short batches: few buckets, few compilations
    config.train.batch_size = 64
    config.train.epochs = 2
    config.update_from_flattened_dict(keys)
    return config


def tiny_config(store, **keys):
    """As `small_config`, with few weights and one call of steps: what compiles fastest."""
    small = {
        "model.embedding_dim": 4,
        "model.hidden": (8,),
        "model.attention.hidden": (4,),
        "train.epochs": 1,
    }
    return small_config(store, **small | keys)


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


# Runs command lines one after the other, each in a fork of one process that has imported JAX.
_FORK = """
import json, os, runpy, sys
import din_jax.report.experiments
for argv in json.loads(sys.argv[1]):
    files = [os.memfd_create(name) for name in ("out", "err")]
    if not (child := os.fork()):
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        status = 1
        try:
            if argv[0] == "-m":
                sys.argv = argv[1:]
                runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = argv
                runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    _, status = os.waitpid(child, 0)
    out, err = (open(f"/proc/self/fd/{file}").read() for file in files)
    print(json.dumps([os.waitstatus_to_exitcode(status), out, err]), flush=True)
"""


def commands(*command_lines):
    """The results of several command lines, as `command` gives them; sooner than one by one."""
    lines = [list(map(str, line)) for line in command_lines]
    done = command("-c", _FORK, json.dumps(lines))
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(lines), done.stderr
    return [
        subprocess.CompletedProcess(line, *result)
        for line, result in zip(lines, results, strict=True)
    ]
