"""Merges requests that wait at the same time into one call of the scorer.

A request is admitted, or refused at once if too many are already; it is encoded in a pool of
threads, so that the event loop stays free to refuse others; then one worker thread scores all that
wait together. A request whose deadline passes is not computed any more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Protocol, TypeVar

from din_jax.export.encoding import Encoded
from din_jax.serve.scorer import Scored

T = TypeVar("T")


class Overloaded(Exception):
    """As many requests are being answered as are admitted."""


class DeadlinePassed(Exception):
    """A request was not answered in its time."""


class EncodedScorer(Protocol):
    """What the batcher needs of a `din_jax.serve.scorer.Scorer`."""

    def score_encoded(self, requests: list[tuple[Encoded, Encoded]], /) -> list[Scored]:
        """Scores several requests together."""


class _Job(NamedTuple):
    scorer: EncodedScorer
    request: tuple[Encoded, Encoded]
    deadline: float
    since: float
    future: concurrent.futures.Future[Scored]


class Batcher:
    """Admits, encodes, merges and scores requests. Call it from one event loop.

    Args:
      max_batch: the most requests in one call of the scorer.
      max_wait_ms: how long the first of them waits for others. With 0 only those that wait anyway,
        while others are computed, are merged.
      max_queue: how many requests are admitted at a time, those that are computed included.
      encoders: threads that encode.
      on_batch: is told the number of requests of each call.
    """

    def __init__(
        self,
        *,
        max_batch: int = 4,
        max_wait_ms: float = 0,
        max_queue: int = 64,
        encoders: int = 2,
        on_batch: Callable[[int], object] = lambda number: None,
    ):
        self.max_batch, self.max_queue = max_batch, max_queue
        self._max_wait = max_wait_ms / 1000
        self._on_batch = on_batch
        self._admitted = 0
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._encoders = concurrent.futures.ThreadPoolExecutor(encoders, "din_jax-encode")
        self._worker = threading.Thread(target=self._work, name="din_jax-score", daemon=True)
        self._worker.start()

    @property
    def admitted(self) -> int:
        """How many requests are being answered."""
        return self._admitted

    @property
    def full(self) -> bool:
        """Whether `admission` would refuse."""
        return self._admitted >= self.max_queue

    @contextlib.asynccontextmanager
    async def admission(self, deadline: float) -> AsyncIterator[None]:
        """Admits a request; `encode` and `score` belong within.

        Args:
          deadline: of the event loop's clock (`time.monotonic`), in seconds.

        Raises:
          Overloaded: as many as `max_queue` are admitted already.
          DeadlinePassed: the block is not done by the deadline; it is cancelled.
        """
        if self.full:
            raise Overloaded
        self._admitted += 1
        try:
            async with asyncio.timeout_at(deadline):
                yield
        except TimeoutError:
            raise DeadlinePassed from None
        finally:
            self._admitted -= 1

    async def encode(self, function: Callable[[], T]) -> T:
        """Calls a function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._encoders, function)

    async def score(
        self, scorer: EncodedScorer, user: Encoded, ads: Encoded, deadline: float
    ) -> Scored:
        """Scores an encoded request, together with others that wait for the same scorer."""
        future: concurrent.futures.Future[Scored] = concurrent.futures.Future()
        with self._changed:
            if self._closed:
                raise Overloaded
            self._jobs.append(_Job(scorer, (user, ads), deadline, time.monotonic(), future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Scores what still waits, and ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()
        self._encoders.shutdown()

    def _work(self) -> None:
        while jobs := self._next():
            self._run(jobs)

    def _next(self) -> list[_Job]:
        """The requests of the next call, all of one scorer; none when the batcher is closed."""
        jobs: list[_Job] = []
        while not jobs:
            with self._changed:
                while not self._jobs:
                    if self._closed:
                        return []
                    self._changed.wait()
                end = self._jobs[0].since + self._max_wait
                while len(self._jobs) < self.max_batch and not self._closed:
                    if (rest := end - time.monotonic()) <= 0:
                        break
                    self._changed.wait(rest)
                now = time.monotonic()
                while self._jobs and len(jobs) < self.max_batch:
                    if jobs and self._jobs[0].scorer is not jobs[0].scorer:
                        break
                    job = self._jobs.popleft()
                    if not job.future.set_running_or_notify_cancel():
                        continue  # its deadline has passed
                    if job.deadline <= now:
                        job.future.set_exception(TimeoutError())
                    else:
                        jobs.append(job)
        return jobs

    def _run(self, jobs: list[_Job]) -> None:
        self._on_batch(len(jobs))
        try:
            scored = jobs[0].scorer.score_encoded([job.request for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:  # the others should not fail with the one that can't be scored
                for job in jobs:
                    self._run([job])
            return
        for job, result in zip(jobs, scored, strict=True):
            job.future.set_result(result)
