"""How fast din_jax trains and predicts beside the DIN of other libraries, on the same samples.

    python benchmarks/peers/speed.py --environments deepctr=.venv-deepctr fuxictr=.venv-fuxictr \
        --dims 16,64 --batches 32,1024,4096 --history 9 --repeats 3

Run in din_jax's environment; a peer's is made by `install.sh PEER DIR`. Each run is a process of
its own; the libraries take turns, so that what else the machine does falls on all alike. A run in
which other processes took more than `--quiet` of a CPU is disturbed: it is left out of the median
if there are others, and marked if there are none. The last line is JSON.
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
_LONGEST_RUN_S = 3600

Figures = Mapping[str, float | None]  # of a library, by the keys of its JSON


class Shape(NamedTuple):
    """What is measured: mean history, width of embeddings, batch."""

    history: int
    dim: int
    batch: int

    def __str__(self) -> str:
        return f"history {self.history}, dim {self.dim}, batch {self.batch}"


class Run(NamedTuple):
    """One run of one library: its figures, or what it failed of."""

    figures: dict[str, Any] | None
    failure: str
    others: float  # CPUs that other processes used meanwhile


def summary(runs: list[Run], quiet: float) -> tuple[dict[str, float | None], bool]:
    """The median of each figure, and whether all runs were disturbed.

    Args:
      runs: of one library and shape, with figures.
      quiet: the CPUs that others may use.
    """
    calm = [run for run in runs if run.others <= quiet]
    figures = [run.figures for run in calm or runs if run.figures]
    found: dict[str, float | None] = {}
    for key in figures[0]:
        values = [f.get(key) for f in figures]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values):
            found[key] = round(statistics.median(numbers), 4)
    return found, not calm


def ratios(figures: Mapping[str, Figures], ours: str = "din_jax") -> dict[str, float | None]:
    """Our rates over those of the fastest peer; None where one of the two is missing.

    Args:
      figures: of each library.
      ours: which one is ours.
    """
    found: dict[str, float | None] = {}
    for name, key in RATES.items():
        own = figures.get(ours, {}).get(key)
        peers = [
            rate for peer, f in figures.items() if peer != ours and (rate := f.get(key)) is not None
        ]
        found[name] = round(own / max(peers), 2) if own is not None and peers else None
    return found


def table(
    libraries: list[str],
    figures: Mapping[Shape, Mapping[str, Figures]],
    disturbed: set[tuple[Shape, str]],
) -> str:
    """Markdown: samples a second and peak memory; `*` marks what was only measured disturbed.

    A ratio is marked if any of the shape's libraries is.
    """
    lines = [
        f"| history | dim | batch | | {' | '.join(libraries)} | over the fastest peer |",
        "| --- " * (len(libraries) + 5) + "|",
    ]
    for shape, by_library in figures.items():
        over = ratios(by_library)
        doubtful = "*" if any((shape, library) in disturbed for library in by_library) else ""
        for name, key in {**RATES, "peak, MB": "peak_mb"}.items():
            row = [str(value) for value in shape] + [name]
            for library in libraries:
                value = by_library.get(library, {}).get(key)
                mark = "*" if (shape, library) in disturbed else ""
                row.append("failed" if value is None else f"{value:,.0f}{mark}")
            ratio = over.get(name)
            row.append("" if ratio is None else f"{ratio:.2f}{doubtful}")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def busy_seconds() -> float:
    """CPU seconds of all processes since the machine started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # not idle, iowait


def run(command: list[str]) -> Run:
    """Runs a command whose last line is JSON."""

    def own_seconds() -> float:
        return sum(os.times()[:4])  # this process' and those of its children that have ended

    begin, busy, own = time.perf_counter(), busy_seconds(), own_seconds()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_LONGEST_RUN_S
        )
    except subprocess.TimeoutExpired:
        return Run(None, f"took more than {_LONGEST_RUN_S} s", 0.0)
    elapsed = time.perf_counter() - begin
    others = (busy_seconds() - busy - (own_seconds() - own)) / elapsed
    if done.returncode:
        return Run(None, _failure(done), others)
    try:
        found = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        return Run(None, "its last line is not JSON", others)
    return Run(found, "", others)


def _failure(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"killed by {name}" + (", out of memory perhaps" if name == "SIGKILL" else "")
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"ended with status {done.returncode}, without a word"


def environments(given: list[str]) -> dict[str, Path]:
    """The Python of each peer that `--environments` names.

    Raises:
      DinError: there is no such peer or environment, or it lacks what the peer needs.
    """
    found = {}
    for part in given:
        peer, _, folder = part.partition("=")
        if peer not in PEERS or not folder:
            raise DinError(
                f"--environments {part}: expected PEER=DIR, with a peer of: {', '.join(PEERS)}"
            )
        if peer in found:
            raise DinError(f"--environments names {peer} twice")
        python = Path(folder).absolute() / "bin" / "python"
        hint = f"; make one with benchmarks/peers/install.sh {peer} DIR"
        if not python.exists():
            raise DinError(f"--environments {part}: {folder} is no virtual environment{hint}")
        tried = subprocess.run([python, PEERS[peer], "--help"], capture_output=True, text=True)
        if tried.returncode:
            raise DinError(f"--environments {part}: {_failure(tried)}{hint}")
        found[peer] = python
    return found


def prepared(data: Path, history: int, samples: int) -> tuple[Path, Path]:
    """The store and the file of samples of a mean history; made if they are not there."""
    other = f"-samples-{samples}" if samples != make_samples.SAMPLES else ""
    store = data / f"history-{history}{other}"
    file = store.with_suffix(".npz")
    if not store.exists():
        make_samples.make(store, history, samples)
    if not file.exists():
        print(export_samples.write(Store(store), make_samples.longest(history), file), flush=True)
    return store, file


def numbers(flag: str, text: str) -> list[int]:
    """The numbers of a flag, "16,64".

    Raises:
      DinError: it is something else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise DinError(f"{flag} {text}: expected whole numbers from 1 on, such as 16,64")
    return list(dict.fromkeys(found))


def main() -> None:
    """Runs all libraries on all shapes, then prints the table and the JSON."""
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--environments", nargs="+", required=True, metavar="PEER=DIR", help="of the peers to run"
    )
    flags.add_argument("--dims", default="16,64", help="of the embeddings of goods and categories")
    flags.add_argument("--batches", default="32,1024,4096")
    flags.add_argument("--history", default="9", help="mean lengths of histories: 9,50,165")
    flags.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    flags.add_argument("--activation", choices=("dice", "sigmoid"), default="dice")
    flags.add_argument("--repeats", type=int, default=3)
    flags.add_argument("--seconds", type=float, default=8, help="that one measurement takes")
    flags.add_argument("--samples", type=int, default=make_samples.SAMPLES, help="of training")
    flags.add_argument(
        "--quiet", type=float, default=0.25, help="CPUs that others may use (default: 0.25)"
    )
    flags.add_argument("--data", type=Path, default=Path("data/speed"), help="where samples are")
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
            start: list[Any] = [sys.executable, OURS, "--store", store, "--max-history", longest]
        else:
            start = [pythons[library], PEERS[library], "--samples", file]
        same = ("optimizer", "activation", "seconds")
        rest = [part for name in same for part in (f"--{name}", getattr(arguments, name))]
        return [str(x) for x in [*start, "--dim", shape.dim, "--batch", shape.batch, *rest]]

    figures: dict[Shape, dict[str, dict[str, float | None]]] = {}
    disturbed: set[tuple[Shape, str]] = set()
    failed: dict[str, dict[str, str]] = {}
    for shape in shapes:
        runs: dict[str, list[Run]] = {library: [] for library in libraries}
        for _ in range(arguments.repeats):
            for library in libraries:
                if library in failed.get(str(shape), {}):
                    continue
                found = run(command(library, shape))
                if found.figures is None:
                    failed.setdefault(str(shape), {})[library] = found.failure
                else:
                    runs[library].append(found)
                print(f"{shape}, {library}: {_told(found, arguments.quiet)}", flush=True)
        figures[shape] = {}
        for library in libraries:
            if runs[library]:
                figures[shape][library], noisy = summary(runs[library], arguments.quiet)
                if noisy:
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


def _told(found: Run, quiet: float) -> str:
    if found.figures is None:
        return f"failed: {found.failure}"
    rates = ", ".join(
        f"{name} {found.figures[key]:,.0f}"
        for name, key in RATES.items()
        if found.figures.get(key) is not None
    )
    noise = f"; disturbed, others used {found.others:.2f} CPUs" if found.others > quiet else ""
    return f"{rates} samples/s{noise}"


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))
