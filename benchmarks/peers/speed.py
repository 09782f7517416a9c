"""Compares the speed of din_jax with the DIN of other libraries, on the same samples.

    python benchmarks/peers/speed.py --environments deepctr=.venv-deepctr fuxictr=.venv-fuxictr \
        --dims 16,64 --batches 32,1024,4096 --history 9 --repeats 3

Runs in din_jax's environment; make a peer's environment with `install.sh PEER DIR`. Each run is a
separate process. The libraries run in turns, so that other load on the machine affects all of them
equally. A run is disturbed if other processes used more than `--quiet` CPUs meanwhile: disturbed
runs are excluded from the median, unless all runs are, in which case the figures are marked. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))

import export_samples  # noqa: E402
import make_samples  # noqa: E402

from din_jax.cli import guarded  # noqa: E402
from din_jax.data.store import Store  # noqa: E402
from din_jax.errors import DinError  # noqa: E402

OURS = HERE.parent / "train.py"
PEERS = {
    "deepctr": HERE / "speed_deepctr.py",
    "deepctr_torch": HERE / "speed_deepctr_torch.py",
    "fuxictr": HERE / "speed_fuxictr.py",
}
RATES = {
    "train": "samples_per_s",
    "step": "step_samples_per_s",
    "infer": "infer_samples_per_s",
}
_TIMEOUT_S = 3600  # of a run

Figures = Mapping[str, float | None]  # a library's figures, by the keys of its JSON


class Shape(NamedTuple):
    """The shape of a measurement: mean history, embedding width and batch size."""

    history: int
    dim: int
    batch: int

    def __str__(self) -> str:
        return f"history {self.history}, dim {self.dim}, batch {self.batch}"


class Run(NamedTuple):
    """One run of one library.

    Attributes:
      figures: the library's JSON, or None if the run failed.
      failure: why it failed.
      others: the number of CPUs that other processes used meanwhile.
    """

    figures: dict[str, Any] | None
    failure: str
    others: float


def summary(runs: list[Run], quiet: float) -> tuple[dict[str, float | None], bool]:
    """The median of each figure, and whether all runs were disturbed.

    Args:
      runs: successful runs of one library and shape.
      quiet: the number of CPUs that other processes may use.
    """
    undisturbed = [run for run in runs if run.others <= quiet]
    figures = [run.figures for run in undisturbed or runs if run.figures]
    medians: dict[str, float | None] = {}
    for key in figures[0]:
        values = [f.get(key) for f in figures]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values):
            medians[key] = round(statistics.median(numbers), 4)
    return medians, not undisturbed


def ratios(figures: Mapping[str, Figures], ours: str = "din_jax") -> dict[str, float | None]:
    """Our rates over those of the fastest peer; None if either is missing.

    Args:
      figures: {library: figures}.
      ours: the name of our library.
    """
    by_name: dict[str, float | None] = {}
    for name, key in RATES.items():
        our_rate = figures.get(ours, {}).get(key)
        peer_rates = [
            rate for peer, f in figures.items() if peer != ours and (rate := f.get(key)) is not None
        ]
        by_name[name] = (
            round(our_rate / max(peer_rates), 2) if our_rate is not None and peer_rates else None
        )
    return by_name


def table(
    libraries: list[str],
    figures: Mapping[Shape, Mapping[str, Figures]],
    disturbed: set[tuple[Shape, str]],
) -> str:
    """Formats samples per second and peak memory as Markdown.

    `*` marks figures of which all runs were disturbed, and ratios to which such figures belong.
    """
    lines = [
        f"| history | dim | batch | | {' | '.join(libraries)} | over the fastest peer |",
        "| --- " * (len(libraries) + 5) + "|",
    ]
    for shape, by_library in figures.items():
        shape_ratios = ratios(by_library)
        ratio_mark = "*" if any((shape, library) in disturbed for library in by_library) else ""
        for name, key in {**RATES, "peak, MB": "peak_mb"}.items():
            row = [str(value) for value in shape] + [name]
            for library in libraries:
                value = by_library.get(library, {}).get(key)
                mark = "*" if (shape, library) in disturbed else ""
                row.append("failed" if value is None else f"{value:,.0f}{mark}")
            ratio = shape_ratios.get(name)
            row.append("" if ratio is None else f"{ratio:.2f}{ratio_mark}")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def busy_seconds() -> float:
    """CPU seconds of all processes since the machine started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # not idle, iowait


def run(command: list[str]) -> Run:
    """Runs a command whose last line is JSON."""

    def own_seconds() -> float:
        return sum(os.times()[:4])  # of this process and its finished children

    begin, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return Run(None, f"took more than {_TIMEOUT_S} s", 0.0)
    elapsed = time.perf_counter() - begin
    others = (busy_seconds() - busy - (own_seconds() - own)) / elapsed
    if done.returncode:
        return Run(None, _failure(done), others)
    try:
        figures = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        figures = None
    if not isinstance(figures, dict):
        return Run(None, "its last line is not JSON", others)
    return Run(figures, "", others)


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"killed by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")
    errors = done.stderr.strip().splitlines()
    return errors[-1] if errors else f"ended with status {done.returncode}, without a word"


def environments(given: list[str]) -> dict[str, Path]:
    """The Python interpreter of each peer that `--environments` names.

    Raises:
      DinError: there is no such peer or environment, or the peer can't be imported in it.
    """
    pythons = {}
    for setting in given:
        peer, _, folder = setting.partition("=")
        if peer not in PEERS or not folder:
            raise DinError(
                f"--environments {setting}: expected PEER=DIR, with a peer of: {', '.join(PEERS)}"
            )
        if peer in pythons:
            raise DinError(f"--environments names {peer} twice")
        python = Path(folder).absolute() / "bin" / "python"
        hint = f"; make one with benchmarks/peers/install.sh {peer} DIR"
        if not python.exists():
            raise DinError(f"--environments {setting}: {folder} is no virtual environment{hint}")
        trial = subprocess.run([python, PEERS[peer], "--help"], capture_output=True, text=True)
        if trial.returncode:
            raise DinError(f"--environments {setting}: {_failure(trial)}{hint}")
        pythons[peer] = python
    return pythons


def prepared(data: Path, history: int, samples: int) -> tuple[Path, Path]:
    """The store and the exported file for a mean history; makes them if they are missing."""
    suffix = f"-samples-{samples}" if samples != make_samples.SAMPLES else ""
    store = data / f"history-{history}{suffix}"
    file = store.with_suffix(".npz")
    if not store.exists():
        make_samples.make(store, history, samples)
    if not file.exists():
        print(export_samples.write(Store(store), make_samples.longest(history), file), flush=True)
    return store, file


def numbers(flag: str, text: str) -> list[int]:
    """Parses the distinct numbers of a flag, "16,64".

    Raises:
      DinError: the text is not a list of numbers from 1 on.
    """
    try:
        parsed = [int(number) for number in text.split(",")]
    except ValueError:
        parsed = [0]
    if min(parsed) < 1:
        raise DinError(f"{flag} {text}: expected whole numbers from 1 on, such as 16,64")
    return list(dict.fromkeys(parsed))


def main() -> None:
    """Runs all libraries on all shapes, then prints the table and the JSON."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--environments",
        nargs="+",
        required=True,
        metavar="PEER=DIR",
        help="virtual environments of the peers",
    )
    flags.add_argument("--dims", default="16,64", help="widths of goods and of categories")
    flags.add_argument("--batches", default="32,1024,4096")
    flags.add_argument("--history", default="9", help="mean lengths of histories: 9,50,165")
    flags.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    flags.add_argument("--activation", choices=("dice", "sigmoid"), default="dice")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--seconds", type=float, default=8, help="per measurement")
    flags.add_argument(
        "--samples", type=int, default=make_samples.SAMPLES, help="number of training samples"
    )
    flags.add_argument(
        "--quiet",
        type=float,
        default=0.25,
        help="CPUs that other processes may use (default: 0.25)",
    )
    flags.add_argument("--data", type=Path, default=Path("data/speed"), help="folder of samples")
    arguments = flags.parse_args()
    shapes = [
        Shape(*values)
        for values in itertools.product(
            numbers("--history", arguments.history),
            numbers("--dims", arguments.dims),
            numbers("--batches", arguments.batches),
        )
    ]
    for name in ("repeats", "seconds"):
        if getattr(arguments, name) <= 0:
            raise DinError(f"--{name} {getattr(arguments, name)}: expected more than 0")
    largest = max(shape.batch for shape in shapes)
    if arguments.samples < 2 * largest:
        raise DinError(f"--samples {arguments.samples}: expected two batches, {2 * largest}")
    pythons = environments(arguments.environments)
    libraries = ["din_jax", *pythons]

    data = {
        history: prepared(arguments.data, history, arguments.samples)
        for history in dict.fromkeys(shape.history for shape in shapes)
    }

    def command(library: str, shape: Shape) -> list[str]:
        store, file = data[shape.history]
        if library == "din_jax":
            longest = make_samples.longest(shape.history)
            words: list[Any] = [sys.executable, OURS, "--store", store, "--max-history", longest]
        else:
            words = [pythons[library], PEERS[library], "--samples", file]
        words += ["--dim", shape.dim, "--batch", shape.batch]
        for name in ("optimizer", "activation", "seconds"):
            words += [f"--{name}", getattr(arguments, name)]
        return [str(word) for word in words]

    figures: dict[Shape, dict[str, dict[str, float | None]]] = {}
    disturbed: set[tuple[Shape, str]] = set()
    failed: dict[str, dict[str, str]] = {}
    for shape in shapes:
        runs: dict[str, list[Run]] = {library: [] for library in libraries}
        for _ in range(arguments.repeats):
            for library in libraries:
                if library in failed.get(str(shape), {}):
                    continue
                done = run(command(library, shape))
                if done.figures is None:
                    failed.setdefault(str(shape), {})[library] = done.failure
                else:
                    runs[library].append(done)
                print(f"{shape}, {library}: {_description(done, arguments.quiet)}", flush=True)
        figures[shape] = {}
        for library in libraries:
            if runs[library]:
                figures[shape][library], is_disturbed = summary(runs[library], arguments.quiet)
                if is_disturbed:
                    disturbed.add((shape, library))
    if not any(figures.values()):
        raise DinError("every run failed, see above")
    print(f"\n{table(libraries, figures, disturbed)}\n")
    result = {
        "ratio_over_fastest_peer": {str(shape): ratios(f) for shape, f in figures.items()},
        "figures": {str(shape): f for shape, f in figures.items()},
        "disturbed": [f"{shape}, {library}" for shape, library in sorted(disturbed)],
        "failed": failed,
        "optimizer": arguments.optimizer,
        "activation": arguments.activation,
        "repeats": arguments.repeats,
        "samples": arguments.samples,
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(result))


def _description(done: Run, quiet: float) -> str:
    if done.figures is None:
        return f"failed: {done.failure}"
    rates = ", ".join(
        f"{name} {done.figures[key]:,.0f}"
        for name, key in RATES.items()
        if done.figures.get(key) is not None
    )
    note = (
        f"; disturbed, other processes used {done.others:.2f} CPUs" if done.others > quiet else ""
    )
    return f"{rates} samples/s{note}"


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))
