"""Notes of a log that will not learn, or learns what it should not: labels, leaks, lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from din_jax.config import default_config
from din_jax.data.store import SPLITS
from din_jax.prepare.log.joined_log import JoinedLog
from din_jax.prepare.own_history import OwnHistory, own_history

_FEW_STEPS = 300
_COUNTED = 1_000_000  # samples
_PART = 1 << 18  # behaviours
BOUND = 1000  # data.max_history of configs/log.py


def own_histories(log: JoinedLog) -> dict[str, OwnHistory]:
    """{sequence: how often an ad is in its own history}, of the sequences that have items.

    Of a log with millions of samples, those are counted whose histories begin in evenly spaced
    parts of the behaviours.
    """
    ad = log.fields["ad"].get("item")
    all_labelled = np.flatnonzero(log.label.is_not_null().to_numpy())
    counted: dict[str, OwnHistory] = {}
    for name, sequence in log.sequences.items():
        events = sequence.features.get("item")
        labelled = all_labelled
        if len(labelled) > _COUNTED:
            part = sequence.start[labelled] // _PART
            labelled = labelled[part % -(-len(labelled) // _COUNTED) == 0]
        if ad is not None and events is not None and len(labelled):
            counted[name] = own_history(
                log.label.gather(labelled).to_numpy(),
                ad.value_index[labelled] + 1,
                sequence.start[labelled],
                sequence.end[labelled],
                events.value_index + 1,
            )
    return counted


def notes(
    log: JoinedLog, counted: Mapping[str, OwnHistory], origin: Mapping[str, Any]
) -> Iterator[str]:
    """Yields notes of what is no error but hardly meant."""
    for name, own in counted.items():
        if text := own.note(f"its own {name}"):
            yield text
    yield from _of_labels(log)
    train = log.splits["train"]
    samples = train.stop - train.start
    if not samples:
        return
    batch = int(default_config().train.batch_size)
    steps = -(-samples // batch)
    if steps < _FEW_STEPS:
        yield (
            f"training has {samples:,} samples, {steps:,} steps an epoch with batches of {batch}: "
            "few for embeddings of rare ids and for Dice's averages. Train more epochs, on "
            "smaller batches (config.train.batch_size), and compare with the simple baselines"
        )
    if log.sequences:
        length = sum(s.end[train] - s.start[train] for s in log.sequences.values())
        mean = float(np.mean(length))
        if mean < 1:
            yield (
                f"the histories of training have {mean:.2f} behaviours on average: DIN has next "
                "to nothing to read. Give it a table of behaviours, [behaviours], or a longer log"
            )
        for name, sequence in log.sequences.items():
            length = sequence.end[train] - sequence.start[train]
            longer = int((length > BOUND).sum())
            if longer:
                share = longer / samples
                of = f"{share:.1%}" if share >= 0.001 else f"{longer:,} of {samples:,}"
                yield (
                    f"{name} has more than {BOUND:,} behaviours, up to {int(length.max()):,}, in "
                    f"{of} of the training samples: configs/log.py reads the latest {BOUND:,} of "
                    "each history (config.data.max_history); 0 reads all, 100 is quicker and "
                    "needs less memory"
                )
    yield from _of_unseen_ads(origin)


def _of_labels(log: JoinedLog) -> Iterator[str]:
    for name in SPLITS:
        label = log.label[log.splits[name]]
        known = label.drop_nulls()
        if not len(label):
            continue
        if not len(known):
            yield f"no sample of {name} has a label: it can be scored, and has no metrics"
        elif known.n_unique() == 1:
            value = known[0]
            missing = (
                "if the log has only what users took, draw what they did not take: [negatives] "
                "per_positive "
                '= 4, by = "popularity"'
                if value == 1
                else "a split without clicks shows nothing: take a longer time, or check the label"
            )
            yield (
                f"every label of {name} is {value}: "
                + (
                    "nothing can be learned from it"
                    if name == "train"
                    else "AUC can't be computed on it"
                )
                + f"; {missing}"
            )
        elif len(known) < len(label):
            yield (
                f"{len(label) - len(known):,} of {len(label):,} samples of {name} have no label, "
                "and no part in metrics"
            )


def _of_unseen_ads(origin: Mapping[str, Any]) -> Iterator[str]:
    unknown = origin["unknown"].get("item", {})
    for name in ("validation", "test"):
        rate = unknown.get(name)
        if rate is not None and rate > 0.5:
            yield (
                f"{rate:.1%} of the ads of {name} were never seen in training: their item is "
                "unknown there, and only their other fields tell them apart. Give [items] fields "
                "such as the category"
            )
