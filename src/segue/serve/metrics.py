"""``GET /metrics``: what the server did, as Prometheus reads it."""

from collections.abc import Callable
from typing import Any

from segue.extras import require


class Metrics:
    """Requests by status, the time predictions took, and how many requests wait.

    Args:
        waiting: requests that wait or are worked on, asked when somebody reads the metrics.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.prometheus = require("prometheus_client", "serve")
        self.registry = self.prometheus.CollectorRegistry()
        self.requests = self.prometheus.Counter(
            "segue_requests", "Requests by status", ["status"], registry=self.registry
        )
        self.seconds = self.prometheus.Histogram("segue_predict_seconds", "Time of predictions", registry=self.registry)
        gauge = self.prometheus.Gauge("segue_waiting", "Requests that wait or are worked on", registry=self.registry)
        gauge.set_function(waiting)

    def answered(self, status: int) -> None:
        """Counts a request."""
        self.requests.labels(str(status)).inc()

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        content: bytes = self.prometheus.generate_latest(self.registry)
        return content


def add_metrics(app: Any, metrics: Metrics) -> None:
    """The path, which needs the token like any other."""
    from fastapi import Response

    async def read() -> Any:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.add_api_route("/metrics", read, methods=["GET"])
