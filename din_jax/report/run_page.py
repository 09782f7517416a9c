"""The report of one trained run as a page: `python -m din_jax.report run`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from din_jax.baselines.evaluate import Baselines, best_baseline
from din_jax.checkpoint import compatibility
from din_jax.checkpoint.checkpoints import Checkpoints
from din_jax.config import default_config
from din_jax.errors import DinError
from din_jax.intervals import Interval
from din_jax.plots.figures import all_pictures
from din_jax.plots.picture import Picture
from din_jax.plots.scored_run import ScoredRun
from din_jax.report.causes import cause_auc
from din_jax.report.metric_intervals import metric_differences, metric_intervals, statistics
from din_jax.report.page import Figure, Section, Table, Text, render

MEANINGS = {
    "user_weighted_auc": "Eq. 10: the AUC within a user's impressions, weighted by their number",
    "auc": "AUC of all impressions",
    "log_loss": "mean negative log-likelihood of the labels, in nats; lower is better",
    "calibration_ratio": "mean prediction over mean label; 1 is calibrated",
    "expected_calibration_error": "mean gap of prediction and label over ten bins; lower is better",
}


def run_page(scored: ScoredRun) -> str:
    """The report of a run as HTML: metrics with intervals, baselines, figures, data, config."""
    config = scored.run.config
    name = f"{scored.workdir.name}: {config.model.name}, {config.model.preset}"
    intervals = metric_intervals(scored.scores)
    sections = [
        Section("Metrics", [*_metrics(scored, intervals), *_causes(scored)]),
        Section("Simple baselines", [*_baselines(scored)]),
        Section("Figures", [*_figures(scored)]),
        Section("Data", [*_data(scored)]),
        Section("Training", [*_training(scored)]),
        Section("Configuration", [*_configuration(scored)]),
        Section("Environment", [*_environment(scored)]),
    ]
    best = intervals["user_weighted_auc"]
    shown = best if np.isfinite(best.value) else intervals["auc"]
    summary = (
        f"{'User-weighted AUC' if shown is best else 'AUC'} {as_text(shown)} on {scored.described} "
        f"of the store {scored.store.path}, weights of step {scored.scores.step:,}."
    )
    return render(f"Report of {name}", summary, sections)


def as_text(interval: Interval, sign: str = "") -> str:
    """A value with its interval, "0.7383 (0.7320 to 0.7444)"."""
    low, high = (f"{end:{sign}.4f}" for end in interval[1:])
    return f"{interval.value:{sign}.4f}" + (f" ({low} to {high})" if low != "nan" else "")


def figure_of(picture: Picture) -> Figure:
    """A picture as a block of a page."""
    return Figure(picture.svg(), picture.title, picture.caption)


def _metrics(scored: ScoredRun, intervals: Mapping[str, Interval]) -> Iterator[Text | Table]:
    rows = [
        (
            name,
            f"{i.value:.4f}",
            f"{i.low:.4f}",
            f"{i.high:.4f}",
            MEANINGS.get(name.removeprefix("weighted_"), "")
            + ", with the samples' weights" * name.startswith("weighted_"),
        )
        for name, i in intervals.items()
    ]
    yield Table(
        f"Metrics on {scored.split}, with 95 % confidence intervals",
        ["metric", "value", "from", "to", "meaning"],
        rows,
    )
    yield Text(
        "Intervals are percentiles of the bootstrap over users: users are drawn with all of their "
        "impressions. They hold for other users of the same kind, not for another training seed "
        f"or another day. {scored.scores.metrics['users_skipped']:,.0f} of "
        f"{scored.scores.metrics['users']:,.0f} users have one label alone, and no AUC."
    )


def _causes(scored: ScoredRun) -> Iterator[Table]:
    try:
        found = cause_auc(scored)
    except DinError:  # a model without activation weights
        return
    if found is not None:
        yield Table(
            "Planted data: AUC by which behaviours that cause a click are told from the others, "
            f"within the histories of {found.samples:,} clicked samples",
            ["told by", "AUC"],
            [
                ("what leaving it out takes from the logit", f"{found.influence:.4f}"),
                ("activation weight", f"{found.weights:.4f}"),
                (
                    "activation weight, of behaviours that share no id with the ad",
                    f"{found.without_shared:.4f}",
                ),
            ],
        )


def _baselines(scored: ScoredRun) -> Iterator[Text | Table]:
    data, select = scored.run.config.data, scored.run.config.train.select
    try:
        baselines = Baselines(scored.store, data.fit, max_history=data.max_history)
        metrics = baselines.cached_metrics(scored.split)
        best = best_baseline(scored.store, select, fit=data.fit, max_history=data.max_history)
    except DinError as error:
        yield Text(f"Not computed: {error}.")
        return
    names = ("user_weighted_auc", "auc", "log_loss")
    model = {"the model": scored.scores.metrics}
    every = sorted(
        (model | metrics).items(),
        key=lambda item: -np.nan_to_num(item[1].get(names[0], np.nan)),
    )
    rows = [(name, *(_number(found.get(m)) for m in names)) for name, found in every]
    yield Table(f"The model and simple baselines on {scored.split}", ["ranking", *names], rows)
    scores = scored.scores
    for column in baselines.scores(scored.samples):
        if column.name == best.name:
            theirs = statistics(
                scores.users,
                scores.labels,
                column.values,
                scores.weights,
                calibrated=column.kind == "rate",
            )
            break
    ours = statistics(scores.users, scores.labels, scores.probabilities, scores.weights)
    differences = metric_differences(scores.users, ours, theirs)
    yield Table(
        f"The model minus the baseline that is best on validation, {best.name}: paired over users",
        ["metric", "difference", "from", "to"],
        [(name, *(f"{v:+.4f}" for v in i)) for name, i in differences.items() if name in names],
    )


def _figures(scored: ScoredRun) -> Iterator[Text | Figure]:
    for name, drawn in all_pictures(scored):
        if isinstance(drawn, DinError):
            yield Text(f"{name}: not drawn: {drawn}.")
        else:
            yield figure_of(drawn)


def _data(scored: ScoredRun) -> Iterator[Text | Table]:
    store, schema = scored.store, scored.schema
    origin = store.origin
    yield Text(
        f"{store.path}, prepared by {origin.get('preparation', 'a program of its own')}; "
        f"fingerprint {store.fingerprint[:16]}."
    )
    rows = []
    for split in ("train", "validation", "test"):
        part = store.split(split)
        if not part:
            continue
        labels = store.column("samples/label")[part.start : part.stop]
        users = store.column("samples/user")[part.start : part.stop]
        known = labels[labels <= 1]
        cells = [split, f"{len(part):,}", f"{len(np.unique(users)):,}"]
        cells.append(f"{known.mean():.4f}" if len(known) else "")
        for sequence in schema.sequences:
            start, end = (
                store.column(f"sequences/{sequence.name}.{e}")[part.start : part.stop]
                for e in ("start", "end")
            )
            cells.append(f"{(end.astype(np.int64) - start).mean():.1f}")
        rows.append(cells)
    histories = [f"mean length of {s.name}" for s in schema.sequences]
    yield Table("Samples", ["split", "samples", "users", "click rate", *histories], rows)
    inputs: dict[str, list[str]] = {}
    for field in schema.fields:
        inputs.setdefault(field.table, []).append(field.name)
    for sequence in schema.sequences:
        for behavior in sequence.fields:
            inputs.setdefault(behavior.table, []).append(f"{sequence.name}.{behavior.name}")
    yield Table(
        "Embedding tables",
        ["table", "ids", "read by"],
        [(t.name, f"{t.rows - 1:,}", ", ".join(inputs.get(t.name, []))) for t in schema.tables],
    )
    numbers = [n.name for n in schema.numbers]
    if numbers:
        yield Text(f"Numeric fields: {', '.join(numbers)}.")
    for note in origin.get("notes", []):
        yield Text(f"Note: {note}")
    entries = [(key, json.dumps(v) if isinstance(v, dict | list) else str(v))
               for key, v in origin.items() if key not in ("notes", "cause")]  # fmt: skip
    yield Table("How the store was made (its origin)", ["entry", "value"], entries, folded=True)


def _training(scored: ScoredRun) -> Iterator[Text | Table]:
    config = scored.run.config
    lines = []
    path = scored.workdir / "metrics.jsonl"
    if path.exists():
        lines = [json.loads(text) for text in path.read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    seconds, before = 0.0, 0
    for line in trained:
        seconds += (line["step"] - before) * config.train.batch_size / line["samples_per_s"]
        before = line["step"]
    parameters = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(scored.state.params))
    tables = {name: np.shape(table) for name, table in scored.state.tables.items()}
    rows = [
        ("parameters of the network", f"{parameters:,}"),
        ("parameters of the tables", f"{sum(int(np.prod(s)) for s in tables.values()):,}"),
        ("step of the weights that are scored", f"{scored.scores.step:,}"),
    ]
    if trained:
        rate = np.median([line["samples_per_s"] for line in trained])
        waited = np.mean([line["input_wait"] for line in trained])
        rows += [
            ("steps", f"{before:,}"),
            ("epochs", f"{trained[-1]['epoch']:.2f}"),
            ("seconds in steps, without compiling and evaluating", f"{seconds:,.0f}"),
            ("samples a second, median", f"{rate:,.0f}"),
            ("time spent waiting for input", f"{waited:.1%}"),
        ]
    yield Table("Size and speed", ["quantity", "value"], rows)
    shapes = [(name, *(f"{n:,}" for n in shape)) for name, shape in tables.items()]
    yield Table("Tables of the model", ["table", "rows", "width"], shapes, folded=True)


def changed_keys(config: Any) -> dict[str, str]:
    """{config key: its value}, of those that are not the defaults of the preset and the model."""
    default = default_config()
    default.model.preset, default.model.name = config.model.preset, config.model.name
    defaults = compatibility.as_texts(default)
    return {k: v for k, v in compatibility.as_texts(config).items() if v != defaults.get(k)}


def _configuration(scored: ScoredRun) -> Iterator[Table]:
    config = scored.run.config
    named = {"model.preset": config.model.preset, "model.name": config.model.name}
    rows: Sequence[tuple[str, str]] = [*named.items(), *changed_keys(config).items()]
    yield Table("Keys that are not defaults of the preset", ["key", "value"], rows)
    every = [*compatibility.as_texts(config).items()]
    yield Table("All keys", ["key", "value"], every, folded=True)


def _environment(scored: ScoredRun) -> Iterator[Table]:
    trained: dict[str, str] = Checkpoints(scored.workdir).meta("last").get("versions", {})
    here = compatibility.versions()
    names = dict.fromkeys([*trained, *here])
    yield Table(
        "Versions",
        ["package", "trained with", "scored with"],
        [(name, trained.get(name, ""), here.get(name, "")) for name in names],
    )
    device = jax.devices()[0]
    yield Table(
        "Where the report was written",
        ["part", "value"],
        [
            ("system", platform.platform()),
            ("device", f"{device.platform}, {device.device_kind}"),
            ("CPU cores", str(os.cpu_count())),
        ],
    )


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.4f}"


def default_out(workdir: Path) -> Path:
    """Where the report of a run is written by default."""
    return workdir / "report.html"
