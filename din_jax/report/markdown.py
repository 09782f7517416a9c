"""Formats the results of experiments as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from din_jax.metrics import rela_impr
from din_jax.report.experiments import METRICS, shown
from din_jax.report.search_space import written


def as_markdown(result: dict[str, Any]) -> str:
    """Formats the result of `compare` as two Markdown tables: the scores and the differences."""
    rows = [
        "| model | activation | user_weighted_auc | auc | log_loss |",
        "| --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {line['model']} | {line['activation']} | "
        + " | ".join(_mean_std(line[m]) for m in METRICS)
        + " |"
        for line in result["lines"]
    ]
    if result["differences"]:
        rows += [
            "",
            "| difference | activation | user_weighted_auc, paired over users (95 %) | RelaImpr "
            "| by seed |",
            "| --- | --- | --- | --- | --- |",
        ]
    rows += [
        f"| {d['model']} − {d['minus']} | {d['activation']} | {d['mean']:+.4f} "
        f"({d['low']:+.4f} to {d['high']:+.4f}) | {_percent(d['rela_impr'])} | "
        + ", ".join(f"{gain:+.4f}" for gain in d["by_seed"])
        + " |"
        for d in result["differences"]
    ]
    for line in result["lines"][:1]:
        if np.isnan(line["auc"]).all():
            rows += [
                "",
                "nan: the labels of test are all equal, and no AUC can tell clicks from others.",
            ]
        elif np.isnan(line["user_weighted_auc"]).all():
            rows += ["", "nan: no user of test has both labels; compare by auc."]
    return "\n".join(rows)


def lines_as_markdown(result: dict[str, Any]) -> str:
    """Formats the result of `compare_lines`: the scores, the searches, and the curves if any."""
    rows = [
        "| line | user_weighted_auc | RelaImpr | minus the first line, paired (95 %) | auc "
        "| log_loss | chosen |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in result["lines"]:
        rows.append(
            f"| {line['line']} | {_scores(line, 'user_weighted_auc')} "
            f"| {_percent(line['rela_impr'])} | {_difference(line)} "
            f"| {_scores(line, 'auc')} | {_scores(line, 'log_loss')} "
            f"| {shown(line['chosen'])} |"
        )
    rows += _trials_as_markdown(result)
    if any(line["curves"] for line in result["lines"]):
        rows += [
            "",
            "| line | epoch | train loss | test loss | train auc | test auc "
            "| test user_weighted_auc |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
    rows += [
        f"| {line['line']} | {c['epoch']:.2f} | {c['train_log_loss']:.4f} "
        f"| {c['test_log_loss']:.4f} | {c['train_auc']:.4f} | {c['test_auc']:.4f} "
        f"| {c['test_user_weighted_auc']:.4f} |"
        for line in result["lines"]
        for c in line["curves"]
    ]
    return "\n".join(rows)


def baselines_as_markdown(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Formats the metrics of simple baselines, {name: {metric: value}}, the best one first.

    They are sorted by user_weighted_auc, then by auc. What can't be computed is left blank.
    """
    rows = [f"| baseline | {' | '.join(METRICS)} |", "| --- " * (len(METRICS) + 1) + "|"]

    def value(name: str, metric: str) -> float:
        return metrics[name].get(metric, np.nan)

    for name in sorted(
        metrics,
        key=lambda name: [np.nan_to_num(value(name, m)) for m in ("user_weighted_auc", "auc")],
        reverse=True,
    ):
        cells = (value(name, metric) for metric in METRICS)
        texts = (f"{cell:.4f}" if np.isfinite(cell) else "" for cell in cells)
        rows.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(rows)


def search_as_markdown(result: Mapping[str, Any], trials: int = 10) -> str:
    """Formats the result of `search`: how its trials ended, and the best of them."""
    states = [trial["state"] for trial in result["trials"]]
    counts = [f"{states.count(s)} {s}" for s in dict.fromkeys(states)]
    rows = [
        f"{len(states)} trial{'s' * (len(states) > 1)}: {', '.join(counts)}",
        "",
        f"| trial | validation {result['select']} | values |",
        "| --- | --- | --- |",
    ]
    rows += [
        f"| {trial['trial']} | {trial['validation']:.4f} | {written(trial['setting'])} |"
        for trial in result["trials"][:trials]
        if trial["state"] == "complete"
    ]
    return "\n".join(rows)


def _scores(line: Mapping[str, Any], metric: str) -> str:
    """Mean and standard deviation over seeds, and the number of seeds that diverged."""
    values, diverged = line[metric], line["diverged"]
    if not values:
        return "diverged"
    return _mean_std(values) + (
        f" ({diverged} of {diverged + len(values)} diverged)" if diverged else ""
    )


def _difference(line: Mapping[str, Any]) -> str:
    d = line["difference"]
    return f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})" if d else ""


def _percent(value: float | None) -> str:
    return f"{value:+.2f} %" if value is not None and np.isfinite(value) else ""


def _mean_std(values: list[float]) -> str:
    std = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{std}"


def table_as_markdown(result: dict[str, Any], published: Mapping[str, Mapping[str, float]]) -> str:
    """Formats a table of the paper: the lines' scores, and columns of published scores.

    Args:
      result: the result of `compare_lines`.
      published: {column heading: {line: AUC}}.
    """
    difference = f"minus {result['against']}, paired (95 %)"
    headings = ["line", "user_weighted_auc", "RelaImpr", difference, *published, "auc", "log_loss"]
    searched = any(line["chosen"] for line in result["lines"])
    refit = any("epochs" in line for line in result["lines"])
    headings += ["chosen"] * searched + ["epochs"] * refit
    rows = [f"| {' | '.join(headings)} |", "| --- " * len(headings) + "|"]
    for line in result["lines"]:
        cells = [
            line["line"],
            _scores(line, "user_weighted_auc"),
            _percent(line["rela_impr"]),
            _difference(line),
        ]
        for aucs in published.values():
            auc = aucs.get(line["line"])
            relative = auc and rela_impr(auc, aucs[result["against"]])
            cells.append(f"{auc:.4f} ({relative:+.2f} %)" if auc else "")
        cells += [_scores(line, "auc"), _scores(line, "log_loss")]
        cells += [shown(line["chosen"])] * searched
        cells += [str(line.get("epochs", ""))] * refit
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, *_trials_as_markdown(result)])


def _trials_as_markdown(result: dict[str, Any]) -> list[str]:
    rows = []
    for line in result["lines"]:
        trials = [
            f"{shown({k: v for k, v in t.items() if k != 'validation'})}: "
            + ("diverged" if t["validation"] is None else f"{t['validation']:.4f}")
            for t in line["trials"]
        ]
        if len(trials) > 1:
            rows.append(f"| {line['line']} | {'; '.join(trials)} |")
    return ["", "| line | validation of each trial |", "| --- | --- |", *rows] if rows else []
