"""How often an ad is in its own history, against a loop over the samples; when there is a note."""

import numpy as np
import pytest

from din_jax.prepare import own_history
from din_jax.prepare.own_history import OwnHistory


def by_loop(label, ad, start, end, events):
    counts = np.zeros((3, 2), int)
    for y, i, a, b in zip(label, ad, start, end, strict=True):
        history = events[a:b].tolist()
        counts[:, y] += 1, i > 0 and i in history, i > 0 and history[-1:] == [i]
    return OwnHistory(*((int(a), int(b)) for a, b in counts))


@pytest.mark.parametrize("at_once", [1, 7, 1 << 16])
def test_counts_are_those_of_a_loop(monkeypatch, at_once):
    monkeypatch.setattr(own_history, "_AT_ONCE", at_once)
    rng = np.random.default_rng(at_once)
    for events, samples in [(0, 0), (0, 5), (40, 0), (40, 1), (200, 300), (30, 300)]:
        # The smallest types that a store may have; samples in no order, some histories empty.
        start = rng.integers(events + 1, size=samples, dtype=np.uint8)
        end = rng.integers(start, events + 1, dtype=np.uint8)
        case = (
            rng.integers(2, size=samples, dtype=np.uint8),
            rng.integers(8, size=samples, dtype=np.uint8),  # 0, unknown, among them
            start,
            end,
            rng.integers(6, size=events, dtype=np.uint8),
        )
        assert own_history.own_history(*case) == by_loop(*case)


def counts_of(rng, repeats, own, samples=400, length=9):
    """Users with a history of 9 goods; `repeats` of the ads are from it, whatever the label.

    A fraction `own` of the positives has its own click as the last behaviour.
    """
    events = rng.integers(1, 10_000, size=(samples, length))
    label = rng.integers(2, size=samples)
    ad = rng.integers(1, 10_000, size=samples)
    returns = rng.random(samples) < repeats
    ad[returns] = events[returns, rng.integers(length, size=returns.sum())]
    leaks = (rng.random(samples) < own) & (label == 1)
    events[leaks, -1] = ad[leaks]
    start = np.arange(samples) * length
    return own_history.own_history(label, ad, start, start + length, events.ravel())


def test_users_who_return_give_no_note():
    rng = np.random.default_rng(0)
    for repeats in (0, 0.2, 0.9):
        assert counts_of(rng, repeats, own=0).note() is None


def test_a_click_in_its_own_history_gives_a_note():
    rng = np.random.default_rng(0)
    for repeats, own in ((0, 1), (0.3, 1), (0, 0.55)):
        note = counts_of(rng, repeats, own).note("`clicks`")
        assert note.startswith("the ad is the last behaviour of `clicks` in ")
    assert "100.0% of the samples of label 1" in counts_of(rng, 0, 1).note()


def test_the_behaviours_of_the_future_give_a_note():
    # In the history, and not at its end.
    note = OwnHistory(samples=(100, 100), found=(10, 98), last=(1, 2)).note()
    assert note.startswith("the ad is in its own history in 98.0% of the samples of label 1 and 10")
    # The other way round: it is as easily read.
    assert OwnHistory((100, 100), (98, 10), (2, 1)).note()


def test_few_samples_give_no_note():
    assert OwnHistory((100, 19), (0, 19), (0, 19)).note() is None
    assert OwnHistory((100, 20), (0, 20), (0, 20)).note()
    assert OwnHistory((0, 0), (0, 0), (0, 0)).note() is None


def test_the_line_of_a_report():
    assert str(OwnHistory((1000, 1000), (29, 31), (3, 4))) == (
        "label 1 3.1%, label 0 2.9%; last behaviour: label 1 0.4%, label 0 0.3%"
    )
