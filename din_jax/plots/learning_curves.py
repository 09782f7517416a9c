"""Fig. 4 of the paper: loss and AUC on train and held-out samples, an epoch after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from din_jax.errors import DinError
from din_jax.plots.picture import CYCLE, LINES, Picture, new_figure, style

Curve = list[tuple[float, float]]  # (epoch, value)
# The splits of a run's log that are scored at each evaluation, and their names for people.
_SCORED = {"train_curve": "train", "test_curve": "test", "validation": "validation"}
_METRICS = {"log_loss": "loss", "user_weighted_auc": "user-weighted AUC", "auc": "AUC"}


def read_curves(workdir: str | Path) -> dict[tuple[str, str], Curve]:
    """The curves of a run's log, metrics.jsonl: {(split, metric): [(epoch, value)]}.

    The loss of "train" is that of the steps since the evaluation before, with dropout and with
    the weights of each step, unless the run was trained with eval.curves.

    Raises:
      DinError: there is no log, a line of it is damaged, or the run was never evaluated.
    """
    path = Path(workdir) / "metrics.jsonl"
    try:
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        epoch_of: dict[int, float] = {}
        curves: dict[tuple[str, str], Curve] = {}
        losses: list[tuple[int, float]] = []
        training: Curve = []
        before = 0
        for line in lines:
            step, split = line["step"], line["split"]
            if split == "train":
                epoch_of[step] = line["epoch"]
                losses.append((step - before, _number(line["loss"])))
                before = step
            elif split in _SCORED:
                for metric in ("log_loss", "auc", "user_weighted_auc"):
                    curve = curves.setdefault((_SCORED[split], metric), [])
                    curve.append((epoch_of[step], _number(line[metric])))
                if losses:
                    steps, values = zip(*losses, strict=True)
                    training.append((epoch_of[step], float(np.average(values, weights=steps))))
                    losses = []
    except FileNotFoundError as error:
        raise DinError(f"{path}: no such file; expected the folder of a trained run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DinError(
            f"{path}: not the log of a run ({type(error).__name__}: {error}); a line is damaged"
        ) from error
    if training and ("train", "log_loss") not in curves:
        curves["train", "log_loss"] = training
    if not curves:
        raise DinError(
            f"{path}: no loss of an evaluation; a run that fits train+validation has curves only "
            "with config.eval.curves=True"
        )
    return curves


def learning_curves(
    workdirs: Sequence[str | Path], labels: Sequence[str] = (), metric: str = "user_weighted_auc"
) -> Picture:
    """Fig. 4: loss and AUC by epoch, a line a run, such as a regulariser.

    Args:
      workdirs: the runs' folders.
      labels: their names, by default those of the folders.
      metric: the AUC, "user_weighted_auc" (Eq. 10) or "auc".

    Raises:
      DinError: see `read_curves`.
    """
    names = list(labels) or folder_names(workdirs)
    runs = {name: read_curves(folder) for name, folder in zip(names, workdirs, strict=True)}
    held_out = next(
        (s for s in ("test", "validation") if all((s, metric) in run for run in runs.values())), ""
    )
    panels = [
        (split, name)
        for name in ("log_loss", metric)
        for split in ("train", held_out)
        if all((split, name) in run for run in runs.values())
    ]
    if not panels:
        raise DinError(
            "the runs have no curve in common: train them with config.eval.curves=True, or on the "
            "same splits"
        )
    with style():
        columns = 2 if len(panels) != 3 else 3
        rows = -(-len(panels) // columns)
        figure, axes = new_figure(rows, columns, size=(8.4 if columns == 3 else 6.6, 2.6 * rows))
        for ax, (split, name) in zip(axes.flat, panels, strict=False):
            for i, (label, run) in enumerate(runs.items()):
                _draw(ax, run[split, name], label, i)
            ax.set(
                xlabel="epoch",
                title=f"{_METRICS.get(name, 'AUC')} on {split}",
            )
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
        if len(runs) > 1:
            handles, found = axes.flat[0].get_legend_handles_labels()
            figure.legend(handles, found, loc="outside upper right", ncols=4, fontsize=8)
    return Picture(
        "learning_curves",
        "Learning curves (Fig. 4)",
        figure,
        _caption(runs, held_out, metric),
        {name: dict(curves) for name, curves in runs.items()},
    )


def _draw(ax: Any, curve: Curve, label: str, i: int) -> None:
    x, y = zip(*curve, strict=True)
    ax.plot(
        x,
        y,
        color=CYCLE[i % len(CYCLE)],
        linestyle=LINES[i % len(LINES)],
        marker="o",
        markersize=3,
        label=label,
    )


def _caption(
    runs: Mapping[str, Mapping[tuple[str, str], Curve]], held_out: str, metric: str
) -> str:
    best = []
    for label, run in runs.items():
        if (held_out, metric) in run:
            epoch, value = max(run[held_out, metric], key=lambda point: np.nan_to_num(point[1]))
            best.append(f"{f'{label}: ' if len(runs) > 1 else ''}{value:.4f} after epoch {epoch:g}")
    scored = all(("train", metric) in run for run in runs.values())
    return (
        "Loss and AUC at each evaluation. "
        + (
            ""
            if scored
            else "The loss on train is the mean over the steps of the epoch, while the weights "
            "change. "
        )
        + f"Where train goes on falling and {held_out or 'test'} rises, the model overfits. "
        + (f"Best on {held_out}: {'; '.join(best)}." if best else "")
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def folder_names(workdirs: Sequence[str | Path]) -> list[str]:
    """The folders' last names, with as much of their paths as tells them apart.

    Raises:
      DinError: a folder is named twice.
    """
    parts = [Path(w).resolve().parts for w in workdirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise DinError(f"{workdirs[0]}: a run is named twice; expected different ones")
