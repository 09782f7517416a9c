"""Trained runs side by side as a page: `python -m din_jax.report compare RUN RUN …`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from din_jax.errors import DinError
from din_jax.intervals import Interval
from din_jax.plots.figures import learning_curves
from din_jax.plots.learning_curves import folder_names
from din_jax.plots.scored_run import ScoredRun
from din_jax.report.metric_intervals import metric_differences, metric_intervals, statistics
from din_jax.report.page import Figure, Section, Table, Text, render
from din_jax.report.run_page import as_text, changed_keys, figure_of

_METRICS = ("user_weighted_auc", "auc", "log_loss", "calibration_ratio")


def compare_runs(runs: Sequence[ScoredRun]) -> dict[str, dict[str, dict[str, Interval]]]:
    """The runs' metrics, and their differences from the first run, paired over users.

    Returns:
      {"metrics": {run: {metric: interval}}, "differences": the same of all runs but the first}.

    Raises:
      DinError: the runs are scored on different samples.
    """
    names = folder_names([run.workdir for run in runs])
    first = runs[0].scores
    found, differences = {}, {}
    all_statistics = []
    for name, run in zip(names, runs, strict=True):
        scores = run.scores
        same = np.array_equal(scores.users, first.users)
        if not same or not np.array_equal(scores.labels, first.labels):
            raise DinError(
                f"{run.workdir} and {runs[0].workdir} are scored on different samples, of the "
                f"stores {run.store.path} and {runs[0].store.path}; a paired difference needs the "
                "same. Give the store of both with --store, or compare runs of one store"
            )
        found[name] = metric_intervals(scores)
        all_statistics.append(
            statistics(scores.users, scores.labels, scores.probabilities, scores.weights)
        )
        if run is not runs[0]:
            differences[name] = metric_differences(
                scores.users, all_statistics[-1], all_statistics[0]
            )
    return {"metrics": found, "differences": differences}


def runs_page(runs: Sequence[ScoredRun]) -> tuple[str, str]:
    """The comparison of runs as HTML, and as a few lines of text.

    Raises:
      DinError: there are fewer than two runs, or see `compare_runs`.
    """
    if len(runs) < 2:
        raise DinError("compare: expected two runs or more, as `report compare runs/a runs/b`")
    result = compare_runs(runs)
    names = list(result["metrics"])
    sections = [
        Section("Metrics", [*_metrics(runs[0], result)]),
        Section("Learning curves", [*_curves(runs, names)]),
        Section("Configuration", [_configuration(runs, names)]),
    ]
    summary = (
        f"{', '.join(names)} on {runs[0].described} of the store {runs[0].store.path}; differences "
        f"are from {names[0]}."
    )
    html = render(f"Comparison of {len(runs)} runs", summary, sections)
    lines = [
        f"{name}: user_weighted_auc {as_text(found['user_weighted_auc'])}"
        + (
            f", minus {names[0]}: {as_text(result['differences'][name]['user_weighted_auc'], '+')}"
            if name in result["differences"]
            else ""
        )
        for name, found in result["metrics"].items()
    ]
    return html, "\n".join(lines)


def _metrics(
    first: ScoredRun, result: Mapping[str, Mapping[str, Mapping[str, Interval]]]
) -> Iterator[Text | Table]:
    base = next(iter(result["metrics"]))
    shown = [m for m in result["metrics"][base] if m.removeprefix("weighted_") in _METRICS]
    yield Table(
        f"Metrics on {first.split}, with 95 % confidence intervals",
        ["run", *shown],
        [(name, *(as_text(of[m]) for m in shown)) for name, of in result["metrics"].items()],
    )
    yield Table(
        f"Differences from {base}, paired over users, with 95 % confidence intervals",
        ["run", *shown],
        [
            (name, *(as_text(of[m], "+") for m in shown))
            for name, of in result["differences"].items()
        ],
    )
    yield Text(
        "A difference is of the same users: its interval is far shorter than what the two "
        "intervals above suggest, and where it does not hold 0 the runs differ. The intervals do "
        "not hold how much runs of other seeds differ."
    )


def _curves(runs: Sequence[ScoredRun], names: Sequence[str]) -> Iterator[Text | Figure]:
    try:
        yield figure_of(learning_curves([run.workdir for run in runs], names))
    except DinError as error:
        yield Text(f"Not drawn: {error}.")


def _configuration(runs: Sequence[ScoredRun], names: Sequence[str]) -> Table:
    """The config keys in which the runs differ."""
    keys = [
        {"model.preset": run.run.config.model.preset, "model.name": run.run.config.model.name}
        | changed_keys(run.run.config)
        for run in runs
    ]
    every = dict.fromkeys(key for of_run in keys for key in of_run)
    rows = [
        (key, *(of_run.get(key, "default") for of_run in keys))
        for key in every
        if len({of_run.get(key, "default") for of_run in keys}) > 1
    ]
    return Table("Config keys in which the runs differ", ["key", *names], rows)


def default_out(workdir: Path) -> Path:
    """Where a comparison is written by default: in the folder of the first run."""
    return workdir / "compare.html"
