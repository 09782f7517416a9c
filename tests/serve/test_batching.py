"""Requests that wait together are scored together, up to their deadlines."""

import asyncio
import contextlib
import threading
import time

import pytest
from stubs import REQUEST, StubScorer

from din_jax.serve.batching import Batcher, DeadlinePassed, Overloaded

SOON = 20.0  # seconds


def item(scorer, number):
    """An encoded request with one candidate."""
    candidates = [{"item": number, "tags": [], "price": 1}]
    user = scorer.encoder.user(REQUEST["user"], {}, REQUEST["context"], 1000)
    return user, scorer.encoder.ads(candidates)


async def ask(batcher, scorer, number, seconds=SOON):
    """The probability of an item."""
    deadline = time.monotonic() + seconds
    async with batcher.admission(deadline):
        user, ads = await batcher.encode(lambda: item(scorer, number))
        return (await batcher.score(scorer, user, ads, deadline)).probability[0]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


@contextlib.contextmanager
def batching(**options):
    batcher = Batcher(**options)
    try:
        yield batcher
    finally:
        batcher.close()


def test_requests_that_wait_are_merged_and_each_gets_its_own_answer():
    scorer = StubScorer()
    scorer.gate.clear()

    async def run(batcher):
        first = asyncio.create_task(ask(batcher, scorer, 1))
        await until(lambda: scorer.calls)
        others = [asyncio.create_task(ask(batcher, scorer, n)) for n in (2, 3, 4, 5, 6)]
        await until(lambda: len(batcher._jobs) == 5)
        scorer.gate.set()
        return await asyncio.gather(first, *others)

    with batching(max_batch=4) as batcher:
        found = asyncio.run(run(batcher))
    assert found == [1 / (1 + n) for n in (1, 2, 3, 4, 5, 6)]
    assert scorer.calls == [1, 4, 1]


def test_the_first_request_waits_for_others_and_no_longer_than_it_must():
    scorer = StubScorer()

    async def run(batcher):
        begin = time.monotonic()
        await asyncio.gather(ask(batcher, scorer, 1), ask(batcher, scorer, 2))
        full = time.monotonic() - begin
        await ask(batcher, scorer, 3)
        return full, time.monotonic() - begin - full

    with batching(max_batch=2, max_wait_ms=300) as batcher:
        full, alone = asyncio.run(run(batcher))
    assert scorer.calls == [2, 1]
    assert full < 0.25
    assert 0.3 <= alone < 5


def test_requests_of_two_scorers_are_not_merged():
    one, two = StubScorer(), StubScorer()
    one.gate.clear()

    async def run(batcher):
        first = asyncio.create_task(ask(batcher, one, 1))
        await until(lambda: one.calls)
        tasks = []
        for scorer in (one, two, two):
            tasks.append(asyncio.create_task(ask(batcher, scorer, 2)))
            await until(lambda: len(batcher._jobs) == len(tasks))
        one.gate.set()
        await asyncio.gather(first, *tasks)

    with batching() as batcher:
        asyncio.run(run(batcher))
    assert (one.calls, two.calls) == ([1, 1], [2])


def test_a_request_whose_deadline_passes_is_not_computed():
    scorer = StubScorer()
    scorer.gate.clear()

    async def run(batcher):
        first = asyncio.create_task(ask(batcher, scorer, 1))
        await until(lambda: scorer.calls)
        begin = time.monotonic()
        with pytest.raises(DeadlinePassed):
            await ask(batcher, scorer, 2, seconds=0.05)
        waited = time.monotonic() - begin
        scorer.gate.set()
        await first
        await ask(batcher, scorer, 3)
        return waited

    with batching() as batcher:
        waited = asyncio.run(run(batcher))
        assert batcher.admitted == 0
    assert 0.05 <= waited < 5
    assert scorer.calls == [1, 1]


def test_the_worker_drops_what_the_event_loop_was_too_late_to_cancel():
    scorer = StubScorer()

    async def run(batcher):
        user, ads = item(scorer, 1)
        await batcher.score(scorer, user, ads, time.monotonic() - 1)

    with batching() as batcher, pytest.raises(TimeoutError):
        asyncio.run(run(batcher))
    assert scorer.calls == []


def test_more_requests_than_are_admitted_are_refused_at_once():
    scorer = StubScorer()
    scorer.gate.clear()

    async def run(batcher):
        tasks = [asyncio.create_task(ask(batcher, scorer, n)) for n in (1, 2, 3)]
        await until(lambda: batcher.admitted == 3)
        with pytest.raises(Overloaded):
            await ask(batcher, scorer, 4)
        scorer.gate.set()
        await asyncio.gather(*tasks)
        return await ask(batcher, scorer, 4)

    with batching(max_queue=3) as batcher:
        assert asyncio.run(run(batcher)) == 0.2


def test_a_request_that_fails_fails_alone():
    scorer = StubScorer(fails=True)
    scorer.gate.clear()

    async def run(batcher):
        first = asyncio.create_task(ask(batcher, scorer, 1))
        await until(lambda: scorer.calls)
        others = [asyncio.create_task(ask(batcher, scorer, n)) for n in (2, 10, 3)]
        await until(lambda: len(batcher._jobs) == 3)
        scorer.gate.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    with batching() as batcher:
        first, second, failed, third = asyncio.run(run(batcher))
    assert (first, second, third) == (1 / 2, 1 / 3, 1 / 4)
    assert isinstance(failed, ValueError)


def test_closing_scores_what_waits():
    scorer = StubScorer(delay=0.02)

    async def run(batcher):
        tasks = [asyncio.create_task(ask(batcher, scorer, n)) for n in (1, 2, 3)]
        await until(lambda: scorer.calls)
        await until(lambda: len(batcher._jobs) == 2)
        closing = threading.Thread(target=batcher.close)
        closing.start()
        found = await asyncio.gather(*tasks)
        closing.join()
        user, ads = item(scorer, 1)
        with pytest.raises(Overloaded):
            await batcher.score(scorer, user, ads, time.monotonic() + SOON)
        return found

    assert asyncio.run(run(Batcher(max_batch=1))) == [1 / 2, 1 / 3, 1 / 4]
