"""On planted data: whether the behaviours that cause a click have higher activation weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from din_jax.metrics import user_auc
from din_jax.plots.influence import influence
from din_jax.plots.scored_run import ScoredRun, Weights
from din_jax.prepare.planted import CAUSE

Array = npt.NDArray[Any]
_SAMPLES = 1000  # clicked ones, chosen at random, whose behaviours are left out one by one
_HISTORY = 100  # behaviours of a sample of these at most: leaving each out takes H² of them


class CauseAUC(NamedTuple):
    """How well numbers tell the behaviours that cause a click from the others, by AUC.

    An AUC is that within the history of a clicked sample; the mean is weighted by behaviours.

    Attributes:
      weights: by the activation weight.
      without_shared: by the activation weight, of the behaviours that share no id with the ad.
      influence: by what leaving the behaviour out of the history takes from the logit, of some of
        the samples. It counts what a model reads of a behaviour beside the interest, too.
      samples: how many clicked samples have behaviours of both kinds.
    """

    weights: float
    without_shared: float
    influence: float
    samples: int


def cause_auc(scored: ScoredRun) -> CauseAUC | None:
    """Measures a run on a planted store; None of other data, which do not tell the causes.

    Raises:
      DinError: the model has no activation unit.
    """
    if CAUSE not in scored.store.origin:
        return None
    (sequence,) = scored.schema.sequences
    clicked = scored.samples[scored.chosen][scored.scores.labels[scored.chosen] == 1]
    found = scored.weights_of(clicked)[sequence.name]
    of, caused, shared = _behaviors(scored, clicked, found)
    everything = user_auc(of, caused, found.weights)
    rest = user_auc(of[~shared], caused[~shared], found.weights[~shared])
    length = np.diff(found.offsets)
    few = clicked[(length > 1) & (length <= _HISTORY)]
    few = np.sort(np.random.default_rng(0).permutation(few)[:_SAMPLES])
    of_few = scored.weights_of(few)[sequence.name]
    of, caused, _ = _behaviors(scored, few, of_few)
    left_out = user_auc(of, caused, influence(scored, few, sequence.name))
    return CauseAUC(
        everything.weighted("impressions"),
        rest.weighted("impressions"),
        left_out.weighted("impressions"),
        len(everything.auc),
    )


def _behaviors(scored: ScoredRun, samples: Array, weights: Weights) -> tuple[Array, Array, Array]:
    """Of each behaviour: its sample's place, whether it causes clicks, and shares an id."""
    (sequence,) = scored.schema.sequences
    cause = scored.store.origin[CAUSE]
    group = np.array([-1, *cause["group_of_id"]])
    of = np.repeat(np.arange(len(samples)), np.diff(weights.offsets))
    shared = np.zeros(len(of), bool)
    for field in sequence.fields:
        ad = scored.store.column(f"fields/{field.ad}")[samples][of]
        behavior = scored.store.column(f"events/{sequence.name}/{field.name}")[weights.events]
        shared |= ad == behavior
        if field.name == cause["field"]:
            caused = (group[ad] == group[behavior]).astype(np.int64)
    return of, caused, shared
