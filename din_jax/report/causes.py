"""On planted data: whether the behaviours that cause a click have higher activation weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from din_jax.metrics import user_auc
from din_jax.plots.scored_run import ScoredRun
from din_jax.prepare.planted import CAUSE


class CauseAUC(NamedTuple):
    """How well activation weights tell the behaviours that caused a click from the others.

    An AUC is that within the history of each clicked sample, weighted by its behaviours.

    Attributes:
      weights: by the activation weight.
      others: by the activation weight, without the behaviours that share an id with the ad.
      samples: how many clicked samples have behaviours of both kinds.
    """

    weights: float
    others: float
    samples: int


def cause_auc(scored: ScoredRun) -> CauseAUC | None:
    """Measures a run on a planted store; None of other data, which do not tell the causes.

    Raises:
      DinError: the model has no activation unit.
    """
    cause = scored.store.origin.get(CAUSE)
    if cause is None:
        return None
    (sequence,) = scored.schema.sequences
    weights = scored.weights[sequence.name]
    samples = scored.samples[scored.chosen]
    of = np.repeat(np.arange(len(samples)), np.diff(weights.offsets))
    group = np.array([-1, *cause["group_of_id"]])
    shared = np.zeros(len(of), bool)
    for field in sequence.fields:
        ad = scored.store.column(f"fields/{field.ad}")[samples][of]
        behavior = scored.store.column(f"events/{sequence.name}/{field.name}")[weights.events]
        shared |= ad == behavior
        if field.name == cause["field"]:
            caused = (group[ad] == group[behavior]).astype(np.int64)
    clicked = scored.scores.labels[scored.chosen][of] == 1
    everything = user_auc(of[clicked], caused[clicked], weights.weights[clicked])
    kept = clicked & ~shared
    rest = user_auc(of[kept], caused[kept], weights.weights[kept])
    return CauseAUC(
        everything.weighted("impressions"), rest.weighted("impressions"), len(everything.auc)
    )
