"""The server's metrics, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

disable_created_metrics()  # a series more for each counter, of when it began
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_EVENTS = ("loaded", "refused", "rolled_back")


class Monitor:
    """Counts and times what the server does.

    Args:
      model: the model's name.
    """

    def __init__(self, model: str):
        self._registry = CollectorRegistry()
        self._model = model
        self.requests = Counter(
            "din_jax_requests",
            "Requests by route and HTTP status.",
            ("route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "din_jax_request_seconds",
            "Time from a request's headers to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch = Histogram(
            "din_jax_batch_size",
            "Requests in one call of the model.",
            buckets=_SIZES,
            registry=self._registry,
        )
        self.candidates = Counter(
            "din_jax_candidates", "Candidates that were scored.", registry=self._registry
        )
        self.unknown = Counter(
            "din_jax_unknown_ids",
            "Ids of requests that are in no vocabulary.",
            registry=self._registry,
        )
        self._queue = Gauge(
            "din_jax_queue_length",
            "Requests that are admitted and not yet answered.",
            registry=self._registry,
        )
        self._reloads = Counter(
            "din_jax_reloads",
            "Versions that were loaded, refused, rolled back.",
            ("result",),
            registry=self._registry,
        )
        for event in _EVENTS:
            self._reloads.labels(event)
        self._version = Gauge(
            "din_jax_model_info",
            "1 for the version that serves.",
            ("name", "version"),
            registry=self._registry,
        )

    def queue(self, length: Callable[[], int]) -> None:
        """Sets the function that says how long the queue is."""
        self._queue.set_function(length)

    def event(self, event: str, version: str) -> None:
        """Counts what has happened to a version; see `din_jax.serve.versions`."""
        self._reloads.labels(event).inc()

    def text(self, version: str) -> bytes:
        """All metrics.

        Args:
          version: that serves.
        """
        self._version.clear()
        self._version.labels(self._model, version).set(1)
        return generate_latest(self._registry)
