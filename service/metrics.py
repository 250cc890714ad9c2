"""What Prometheus is told: request times, and jobs by state.

Everything is in a registry of the application's own; what else is to be told is registered there
(``Metrics.registry``).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest

BUCKETS = (0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds; 15 ms and 100 ms are what unit pages are held to."""


class Metrics:
    """Of one application.

    Args:
        counts: jobs by state, as they are when asked.
    """

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "deconvoy_request_seconds",
            "Time from a request to the end of its answer.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Jobs(counts))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._seconds.labels(method, route, str(status)).observe(seconds)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Jobs:
    """Asks the catalogue at every scrape: it is the only one that knows."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def describe(self) -> Iterator[Any]:
        """Without numbers, so that registering it asks nothing."""
        yield self._family()

    def collect(self) -> Iterator[Any]:
        family = self._family()
        for state, count in self._counts().items():
            family.add_metric([state], count)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily("deconvoy_jobs", "Jobs by state.", labels=["state"])
