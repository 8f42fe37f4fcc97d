"""What the service tells Prometheus."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """The service's numbers, in a registry of its own, so that several services in one process don't mix."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "modalloy_requests", "Requests, by route and status.", ("route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "modalloy_request_seconds", "Time to answer, by route.", ("route",), buckets=_SECONDS, registry=registry
        )
        self.encode_seconds = Histogram(
            "modalloy_encode_seconds", "Time of one call of the encoder.", buckets=_SECONDS, registry=registry
        )
        self.encode_batch = Histogram(
            "modalloy_encode_batch", "Searches in one call.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.search_seconds = Histogram(
            "modalloy_search_seconds", "Time of one search, encoding apart.", buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("modalloy_queue", "Searches under way or waiting.", registry=registry)
        self.refused = Counter("modalloy_refused", "Searches refused, by reason.", ("reason",), registry=registry)
        self.version = Gauge("modalloy_index_version", "The index's state that answers.", registry=registry)
        self.rows = Gauge("modalloy_index_rows", "Rows of the index.", ("modality",), registry=registry)
        self.refresh_failures = Counter(
            "modalloy_refresh_failures", "Times the index couldn't be looked at.", registry=registry
        )

    def text(self) -> bytes:
        """All of them, in Prometheus's text format."""
        return generate_latest(self._registry)


class Measured:
    """Counts and times requests by their route, never by their path, of which there are too many.

    Args:
        app: what answers.
        metrics: where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            # The router leaves the route that matched in the scope.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(time.perf_counter() - start)
