"""What ``/metrics`` says of the server itself."""

from __future__ import annotations

from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.3, 1.0, 3.0)


class Counts:
    """Requests by path and status, how long they took, and how many candidates were solved."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "energylens_http_requests",
            "Requests answered",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "energylens_http_request_duration_seconds",
            "Time to answer",
            ["path"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.candidates = Counter(
            "energylens_candidates_considered",
            "Configurations put under a load",
            registry=self.registry,
        )

    def observe(self, route: Any, status: int, seconds: float) -> None:
        """Count one answer; the path is that of the route, so that names stay few."""
        path = getattr(route, "path", "other")
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Give the exposition."""
        return generate_latest(self.registry)
