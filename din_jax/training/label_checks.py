"""Checks of the labels that a run trains on, and chooses weights by."""

from __future__ import annotations

import numpy as np

from din_jax.data.store import UNLABELLED
from din_jax.errors import DinError
from din_jax.metrics import SELECTABLE, WEIGHTED
from din_jax.training.evaluation import Evaluator
from din_jax.training.run import Run


def check_labels(run: Run) -> None:
    """Raises `DinError` if the samples to train on have one label alone, or lack labels."""
    samples = run.store.split(run.config.data.fit)
    labels = run.store.column("samples/label")[samples.start : samples.stop]
    if (labels == UNLABELLED).any():
        raise DinError(
            f"{run.store.path}: {(labels == UNLABELLED).sum():,} of {len(labels):,} samples of "
            f"{run.config.data.fit} have no label; expected 0 or 1 to train on"
        )
    if (labels == labels[0]).all():
        raise DinError(
            f"{run.store.path}: every label of {run.config.data.fit} is {labels[0]}: there is "
            "nothing to learn. A log of what users took needs samples of what they did not take: "
            "prepare it with [negatives] (docs/your-data.md)"
        )


def check_selectable(validation: Evaluator, metric: str) -> None:
    """Raises `DinError` if a metric can't be computed on the validation split."""
    constant = validation.metrics(np.full(len(validation.labels), 0.5))
    if np.isfinite(constant[metric]):
        return
    labels = validation.labels[validation.labels != UNLABELLED]
    where = f"config.train.select={metric!r} can't be computed on the validation split"
    if len(np.unique(labels)) < 2:
        what = f"every label of it is {labels[0]}" if len(labels) else "no sample of it has a label"
        raise DinError(
            f"{where}: {what}. Prepare the log with a validation split that has clicks, and "
            "impressions without one; if the log has only what users took, with [negatives] "
            "(docs/your-data.md)"
        )
    usable = [name for name in SELECTABLE if np.isfinite(constant.get(name, np.nan))]
    raise DinError(
        f"{where}: no user of it has both a click and none"
        f"{' of a weight over 0' * metric.startswith(WEIGHTED)}; "
        f"use {' or '.join(map(repr, usable))}"
    )
