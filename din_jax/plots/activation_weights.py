"""Fig. 5 of the paper: which behaviours of a user a candidate activates."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.patches import Patch

from din_jax.data.schema import Sequence as BehaviorSequence
from din_jax.errors import DinError
from din_jax.plots.picture import BLUE, GREY, ORANGE, Picture, new_figure, style
from din_jax.plots.scored_run import ScoredRun

Array = npt.NDArray[Any]
_HISTORY = (6, 14)  # behaviours of a telling sample: enough to tell apart, few enough to read
_TRIED = 200  # ads that are tried as further candidates
_LONGEST = 18  # behaviours that are drawn
_NAME = 44  # letters of a name


def telling_samples(scored: ScoredRun, sequence: str, count: int = 1) -> Array:
    """The clicked samples of a split whose activation weights depend most on the ad.

    The weights w for a sample's ad are compared with w' for the ad of another sample: by
    Σ|w − w'| / Σ(|w| + |w'|), which is 0 for equal weights and 1 where no behaviour has both. The
    samples have 6 to 14 behaviours, if there are such ones, and are of different users.

    Args:
      scored: the run.
      sequence: the behaviour sequence.
      count: how many.

    Returns:
      int64 [count or less] positions in `scored.samples`, the most telling first.
    """
    samples = scored.samples[scored.chosen]
    others = np.random.default_rng(0).permutation(samples)
    found = scored.weights[sequence]
    other = scored.weights_of(samples, scored.ads_of(others))[sequence]
    change = found.sums(np.abs(found.weights - other.weights))
    change /= np.maximum(found.sums(np.abs(found.weights) + np.abs(other.weights)), 1e-12)
    length = np.diff(found.offsets)
    fits = (length >= _HISTORY[0]) & (length <= _HISTORY[1])
    clicked = scored.scores.labels[scored.chosen] == 1
    for allowed in (fits & clicked, fits, length > 1):
        if allowed.any():
            break
    else:
        raise DinError(
            f"{scored.store.path}: no sample of {scored.split} has two behaviours of {sequence!r}"
        )
    order = np.argsort(np.where(allowed, -change, np.inf), kind="stable")[: allowed.sum()]
    users = scored.scores.users[scored.chosen[order]]
    _, first = np.unique(users, return_index=True)
    return scored.chosen[order[np.sort(first)[:count]]]


def other_candidates(scored: ScoredRun, sample: int, sequence: str, count: int) -> Array:
    """Samples whose ads activate other behaviours of a user than the user's own ad does.

    Of some ads of the split, the half with the higher predicted CTR, the one is taken whose weights
    are least like those of all taken before, by the greatest cosine.

    Args:
      scored: the run.
      sample: the user's sample, as in the store.
      sequence: the behaviour sequence.
      count: how many.

    Returns:
      int64 [count or less] samples, as in the store.
    """
    rng = np.random.default_rng(0)
    tried = rng.choice(scored.samples, min(_TRIED, len(scored.samples)), replace=False)
    goods = scored.store.column(f"fields/{scored.goods().name}")
    tried = tried[np.unique(goods[tried], return_index=True)[1]]
    tried = tried[goods[tried] != goods[sample]]
    ctr = scored.probabilities_of(np.full(len(tried), sample), scored.ads_of(tried))
    tried = np.concatenate([[sample], tried[ctr >= np.median(ctr)]])
    weights = _weights(scored, sample, tried)[sequence].weights.reshape(len(tried), -1)
    units = weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-12)
    cosine = units @ units.T
    taken = [0]
    while len(taken) < min(count + 1, len(tried)):
        alike = cosine[:, taken].max(axis=1)
        alike[taken] = np.inf
        taken.append(int(np.argmin(alike)))
    return tried[taken[1:]]


def _weights(scored: ScoredRun, sample: int, ads: Array) -> Any:
    """The activation weights of one user for the ads of these samples."""
    users = np.full(len(ads), sample)
    return scored.weights_of(users, scored.ads_of(ads))


def activation_weights(
    scored: ScoredRun,
    row: int | None = None,
    candidates: Sequence[int] = (),
    *,
    others: int = 2,
    sequence: str = "",
    rank: int = 0,
) -> Picture:
    """Fig. 5: the activation weight of each behaviour of a user, for several candidates.

    Args:
      scored: the run.
      row: the sample, counted from the split's first; by default a telling one.
      candidates: samples, counted likewise, whose ads are candidates beside the sample's own.
      others: how many ads are chosen if there are no `candidates`: those that activate other
        behaviours.
      sequence: the behaviour sequence; by default the first.
      rank: which of the most telling samples, from 0.

    Raises:
      DinError: the model has no activation unit, or there is no such sample or sequence.
    """
    name = sequence or next(iter(scored.weights))
    if name not in scored.weights:
        raise DinError(
            f"no activation weights of a sequence {name!r}; there are: {', '.join(scored.weights)}"
        )
    first = scored.store.split(scored.split)
    if row is None:
        telling = telling_samples(scored, name, rank + 1)
        sample = int(scored.samples[telling[min(rank, len(telling) - 1)]])
    else:
        sample = _sample(first, row, "--row")
    chosen = [_sample(first, c, "--candidates") for c in candidates]
    ads = np.array([sample, *(chosen or other_candidates(scored, sample, name, others))])
    found = _weights(scored, sample, ads)[name]
    behaviors = len(found.weights) // len(ads)
    if not behaviors:
        raise DinError(f"row {row}: the sample has no behaviours of {name!r}; choose another")
    weights = found.weights.reshape(len(ads), behaviors)
    events = found.events[:behaviors]
    ctr = scored.probabilities_of(np.full(len(ads), sample), scored.ads_of(ads))
    shown = np.sort(np.argsort(-np.abs(weights).max(axis=0), kind="stable")[:_LONGEST])
    of_sequence = next(s for s in scored.schema.sequences if s.name == name)
    names = _behavior_names(scored, of_sequence, events[shown])
    ad_names = [_ad_name(scored, int(ad)) for ad in ads]
    label = int(scored.store.column("samples/label")[sample])
    with style():
        figure, axes = new_figure(
            1,
            len(ads),
            size=(3.0 + 1.75 * len(ads), 1.2 + 0.23 * len(shown)),
            sharey=True,
            sharex=True,
        )
        y = np.arange(len(shown))[::-1]
        shared = _shares(scored, of_sequence, events[shown], ads)
        for i, ax in enumerate(axes[0]):
            w = weights[i, shown]
            colors = [ORANGE if s else BLUE for s in shared[i]]
            ax.barh(y, w, color=colors, height=0.75)
            ax.axvline(0, color=GREY, linewidth=0.8)
            own = ("the ad shown, " + ("clicked" if label == 1 else "not clicked")) * (i == 0)
            ax.set_title(
                f"{_wrapped(ad_names[i])}\nCTR {ctr[i]:.1%}\n{own or 'another ad'}", fontsize=8
            )
            ax.set_xlabel("weight", fontsize=8)
            ax.tick_params(labelsize=7)
            ax.grid(axis="y", visible=False)
        axes[0, 0].set_yticks(y, names, fontsize=7)
        figure.legend(
            handles=[_patch(BLUE, "behaviour"), _patch(ORANGE, "shares an id with the candidate")],
            loc="outside upper right",
            ncols=2,
            fontsize=8,
        )
    normalize = scored.run.config.model.attention.normalize
    return Picture(
        "activation_weights",
        "Activation weights of a user's behaviours (Fig. 5)",
        figure,
        f"Sample {sample - first.start:,} of {scored.split}: the weight of each behaviour of "
        f"{name!r} in the interest (Eq. 3), oldest at the top"
        + (f", the {len(shown)} with the greatest of {behaviors}" if len(shown) < behaviors else "")
        + ", for candidates side by side. "
        + (f"Weights are normalized ({normalize}). " if normalize != "none" else "")
        + "The same history matters in another way for another candidate.",
        {"sample": sample, "ads": ads, "weights": weights, "ctr": ctr, "names": names},
    )


def _sample(split: range, row: int, flag: str) -> int:
    if not 0 <= row < len(split):
        raise DinError(f"{flag}={row}: expected the row of a sample, 0 to {len(split) - 1:,}")
    return split[row]


def _behavior_names(scored: ScoredRun, sequence: BehaviorSequence, events: Array) -> list[str]:
    """The behaviours' titles; or their ids, those of the first two fields with one id."""
    single = [f for f in sequence.fields if not f.multi_hot]
    columns = []
    for field in single[:1] + [f for f in single[1:] if "cat" in f.name][:1]:
        titles = scored.titles(field.table)
        rows = scored.store.column(f"events/{sequence.name}/{field.name}")[events]
        columns.append(titles.names(rows))
        if titles.titles is not None:
            break
    if not columns:
        return [f"behaviour {i + 1}" for i in range(len(events))]
    return [_short(" · ".join(parts)) for parts in zip(*columns, strict=True)]


def _ad_name(scored: ScoredRun, sample: int) -> str:
    goods = scored.goods()
    row = int(scored.store.column(f"fields/{goods.name}")[sample])
    return scored.titles(goods.table).names([row])[0]


def _shares(
    scored: ScoredRun, sequence: BehaviorSequence, events: Array, ads: Array
) -> npt.NDArray[np.bool_]:
    """bool [ads, behaviours]: whether a behaviour has an id of the candidate, but unknown ones."""
    shared = np.zeros((len(ads), len(events)), bool)
    for field in sequence.fields:
        ad_field = next(f for f in scored.schema.fields if f.name == field.ad)
        if field.multi_hot or ad_field.multi_hot:
            continue
        of_event = scored.store.column(f"events/{sequence.name}/{field.name}")[events]
        of_ad = scored.store.column(f"fields/{field.ad}")[ads]
        shared |= (of_event[None, :] == of_ad[:, None]) & (of_event[None, :] > 0)
    return shared


def _patch(color: str, label: str) -> Any:
    return Patch(color=color, label=label)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, 24, max_lines=2, placeholder=" …"))
