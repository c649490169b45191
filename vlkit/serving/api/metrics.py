"""Prometheus metrics of a server."""

from __future__ import annotations

from vlkit.errors import needs

PATHS = ("/v1/embeddings", "/v1/models", "/search", "/healthz", "/metrics")
"""Paths that get a label; any other is "other", so that a scanner does not fill the memory with labels."""
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server, in a registry of their own.

    Raises:
        UserError: ``prometheus_client`` is not installed.
    """

    def __init__(self) -> None:
        with needs("serve", "serving"):
            import prometheus_client as prometheus
        self._registry = prometheus.CollectorRegistry()
        self._latest = prometheus.generate_latest
        self.content_type = prometheus.CONTENT_TYPE_LATEST

        def counter(name: str, what: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(name, what, labels, registry=self._registry)

        self._requests = counter("vlkit_requests", "Requests by path and status.", "path", "status")
        self._inputs = counter("vlkit_inputs", "Texts and images embedded.", "kind")
        self._running = prometheus.Gauge("vlkit_requests_running", "Requests now.", registry=self._registry)
        self._seconds = prometheus.Histogram(
            "vlkit_request_seconds", "Time of a request.", ["path"], registry=self._registry, buckets=SECONDS
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        path = path if path in PATHS else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def inputs(self, texts: int, images: int) -> None:
        """Count embedded inputs."""
        self._inputs.labels("text").inc(texts)
        self._inputs.labels("image").inc(images)

    def running(self, count: int) -> None:
        """Requests that are being answered."""
        self._running.set(count)

    def page(self) -> bytes:
        """All metrics in the text format."""
        return self._latest(self._registry)
