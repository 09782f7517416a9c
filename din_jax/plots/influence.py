"""The influence of each behaviour on a score: what leaving it out of the history changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from din_jax.data.columns import sequence_named
from din_jax.data.packing import ranges
from din_jax.data.store import Store
from din_jax.plots.recombined import recombined
from din_jax.plots.scored_run import ScoredRun

Array = npt.NDArray[Any]


def influence(scored: ScoredRun, samples: Array, sequence: str) -> npt.NDArray[np.float64]:
    """The logit with the whole history minus the logit without the behaviour.

    It counts all that a model reads of a behaviour, also where no activation weight shows it. A
    history of H behaviours is scored H times, with H − 1 behaviours each.

    Args:
      scored: the run.
      samples: [N] samples, as in the store.
      sequence: the behaviour sequence.

    Returns:
      float64 [T], sample after sample, as `ScoredRun.weights_of` orders them.
    """
    start, end = scored.history(sequence, samples)
    length = end - start
    events, of = ranges(start, end)  # each behaviour of each sample
    # Left out: behaviour t of sample i has the other behaviours of i as its history.
    shortened, position = ranges(start[of], end[of])
    kept = shortened != events[position]
    stops = np.cumsum(length[of] - 1)
    store = recombined(scored.store, samples[of])
    store = _with_events(store, sequence, shortened[kept], stops - (length[of] - 1), stops)
    whole = _logit(scored.probabilities_of(samples))
    return whole[of] - _logit(scored.probabilities(store))


def _with_events(store: Store, sequence: str, events: Array, start: Array, end: Array) -> Store:
    """A store in memory whose samples have the histories `events[start:end]` of its events."""
    described = sequence_named(store.schema, sequence)
    columns = {f"sequences/{sequence}.start": start, f"sequences/{sequence}.end": end}
    for field in described.fields:
        name = f"events/{sequence}/{field.name}"
        positions = events
        if field.multi_hot:
            offsets = store.column(f"{name}.offsets").astype(np.int64)
            first, last = offsets[events], offsets[events + 1]
            positions, _ = ranges(first, last)
            columns[f"{name}.offsets"] = np.concatenate([[0], np.cumsum(last - first)])
        columns[name] = store.column(name)[positions]
        if field.weighted:
            columns[f"{name}.weights"] = store.column(f"{name}.weights")[positions]
    for number in described.numbers:
        name = f"events/{sequence}/{number.name}"
        columns[name] = store.column(name)[events]
    if described.times:
        columns[f"events/{sequence}.time"] = store.column(f"events/{sequence}.time")[events]
    return store.with_columns(columns)


def _logit(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log(p) - np.log1p(-p)
