"""Prepares, trains, exports and evaluates in a folder, and is killed with -9 on the way.

    python tests/faults/killed.py 2 '[["a", "event", 17], ["a", "seconds", 1.5], ["a", null, 0]]'

The number is of epochs; after one epoch nothing is exported.

Each is a process of its own that goes on in its folder, and is killed at the n-th time that it
opens, makes, renames or removes something there, or after some seconds, or (null) not at all.
Prints the exit status, the events and the seconds of each, as JSON.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from runs import tiny_config

from din_jax.export.exporting import export_run
from din_jax.prepare import planted
from din_jax.training.loop import train
from din_jax.training.trained import evaluate

_EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def work(folder: Path, epochs: int) -> None:
    """What is left to do in the folder."""
    store = folder / "store"
    if not store.exists():
        planted.prepare(store, users=60)
    keys = {"model.name": "base", "train.epochs": epochs, "train.evaluations_per_epoch": 2}
    train(tiny_config(store, **keys, **{"train.checkpoint_every_s": 0.01}), folder / "run")
    if epochs == 1:
        return
    if not (folder / "model").exists():
        export_run(folder / "run", folder / "model", platforms=("cpu",))
    scores = evaluate(folder / "run")
    (folder / "scores.json").write_text(json.dumps(scores.metrics))


class Events:
    """Counts what happens to the files of a folder, and kills the process at one of them."""

    def __init__(self, folder: Path, kill_at: int | None):
        self.count, self.folder, self.kill_at = 0, str(folder), kill_at
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if event in _EVENTS and self.folder in str(arguments[0]):
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs all kills, each in a fork of this process, which has imported everything."""
    epochs, kills = int(sys.argv[1]), json.loads(sys.argv[2])
    for name, kind, at in kills:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()
        begin = time.monotonic()
        if not (child := os.fork()):
            events = Events(folder, at if kind == "event" else None)
            if kind == "seconds":
                timer = threading.Timer(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
                timer.daemon = True
                timer.start()
            os.dup2(2, 1)  # what it prints is no result
            try:
                work(folder, epochs)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os.write(writer, str(events.count).encode())
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        count = os.read(reader, 20).decode() or "0"
        os.close(reader)
        result = [os.waitstatus_to_exitcode(status), int(count), time.monotonic() - begin]
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
