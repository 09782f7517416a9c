"""Groups of samples by their history, sample by sample."""

from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def matches(sample, history, field):
    """How many pairs of an id of the ad and an equal one of a behaviour there are."""
    ad = np.atleast_1d(sample[field])
    return sum(int(i == j > 0) for b in history for i in ad for j in np.atleast_1d(b[field]))


def test_samples_are_grouped_by_length_and_by_what_of_the_ad_is_in_the_history(rich, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import where_it_gains

    store, samples = rich
    part = store.split("train")
    train = samples[part.start : part.stop]
    groups = dict(where_it_gains.groups(store, "train", max_history=4))
    for sequence in ("views", "likes"):
        histories = [sample[sequence][-4:] for sample in train]
        lengths = np.array([len(history) for history in histories])
        spans = [name for name in groups if name.startswith(f"{sequence}: ")]
        assert len(spans) > 1
        assert (sum(groups[name].astype(int) for name in spans) == 1).all(), "each in one group"
        for name in spans:
            low, high = (int(word) for word in name.split() if word.isdigit())
            np.testing.assert_array_equal(groups[name], (lengths >= low) & (lengths <= high))
        for field in ("film", "genres") if sequence == "views" else ("film",):
            count = np.array([matches(*of, field) for of in zip(train, histories, strict=True)])
            assert field == "film" or {0, 1, 2} <= set(count)
            for times, inside in {
                "not": count == 0,
                "once": count == 1,
                "twice or more": count > 1,
            }.items():
                np.testing.assert_array_equal(groups[f"{field} in {sequence}: {times}"], inside)
