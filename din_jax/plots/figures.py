"""All figures by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from din_jax.errors import DinError

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise DinError(
        "figures need Matplotlib, which is not installed: pip install 'din_jax[plots]'"
    ) from error

from din_jax.plots.activation_weights import activation_weights
from din_jax.plots.calibration import reliability, score_distributions
from din_jax.plots.control_functions import control_functions
from din_jax.plots.embeddings import embeddings
from din_jax.plots.importance import feature_importance
from din_jax.plots.interest_intensity import interest_intensity
from din_jax.plots.learning_curves import learning_curves
from din_jax.plots.picture import Picture
from din_jax.plots.scored_run import ScoredRun
from din_jax.plots.slices import auc_by_slice

__all__ = ["Picture", "all_pictures", "learning_curves", "pictures", "scored_run"]

scored_run = ScoredRun.load
# Figures of one run: (scored run, options of the figure) → picture.
pictures: dict[str, Callable[..., Picture]] = {
    "activation_weights": activation_weights,
    "interest_intensity": interest_intensity,
    "control_functions": control_functions,
    "embeddings": embeddings,
    "reliability": reliability,
    "score_distributions": score_distributions,
    "auc_by_slice": auc_by_slice,
    "feature_importance": feature_importance,
}


def all_pictures(scored: ScoredRun) -> Iterator[tuple[str, Any]]:
    """Yields each figure's name, and its picture, or the error that says why there is none."""
    yield "learning_curves", _or_error(lambda: learning_curves([scored.workdir]))
    # disable=None: no bar if the output is not a terminal
    for name, draw in tqdm.tqdm(pictures.items(), desc="figures", disable=None, leave=False):
        yield name, _or_error(functools.partial(draw, scored))


def _or_error(draw: Callable[[], Picture]) -> Picture | DinError:
    try:
        return draw()
    except DinError as error:
        return error
