"""What Prometheus is told: request times, jobs by state, and how fast the jobs at work are.

Everything is in a registry of the application's own; what else is to be told is registered there
(``Metrics.registry``).
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest

from service.catalogue import Catalogue, Job

BUCKETS = (0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Seconds; 15 ms and 100 ms are what unit pages are held to."""

RATES = {
    "deconvoy_images_per_second": ("scan", "rescan", "evolution-scan", "study", "probe-scratch"),
    "deconvoy_projections_per_second": ("projection", "evolution"),
    "deconvoy_squares_per_second": ("occlusion", "unit-occlusion"),
    "deconvoy_moves_per_second": ("invariance",),
}
"""By metric, the stages whose speed it is."""


class Metrics:
    """Of one application."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "deconvoy_request_seconds",
            "Time from a request to the end of its answer.",
            ("method", "route", "status"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Jobs(catalogue))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._seconds.labels(method, route, str(status)).observe(seconds)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class _Jobs:
    """Asks the catalogue at every scrape: it is the only one that knows."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def describe(self) -> Iterator[Any]:
        """Nothing, so that registering it asks nothing."""
        return iter(())

    def collect(self) -> Iterator[Any]:
        states = GaugeMetricFamily("deconvoy_jobs", "Jobs by state.", labels=["state"])
        for state, count in self._catalogue.counts().items():
            states.add_metric([state], count)
        yield states
        yield _gauge(
            "deconvoy_oldest_queued_seconds",
            "How long the oldest queued job has waited; 0 where none is.",
            _waited(self._catalogue.in_states("queued")),
        )
        working = self._catalogue.in_states("running")
        yield _done(working)
        for name, stages in RATES.items():
            what = name.removeprefix("deconvoy_").removesuffix("_per_second")
            yield _gauge(name, f"The {what} of running jobs.", _speed(working, stages))


def _gauge(name: str, told: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, told, value=value)


def _done(working: list[Job]) -> GaugeMetricFamily:
    """Where it stays as it is a job is at work and does nothing; rates, being means, never tell."""
    family = GaugeMetricFamily(
        "deconvoy_job_done", "What a running job has done of its stage.", labels=["run", "stage"]
    )
    for job in working:
        stage, done = ("", 0) if job.progress is None else (job.progress.stage, job.progress.done)
        family.add_metric([job.id, stage], done)
    return family


def _speed(jobs: list[Job], stages: tuple[str, ...]) -> float:
    """Together, of those that are at one of these stages: the mean since it began."""
    at = (job.progress for job in jobs if job.progress and job.progress.stage in stages)
    return sum((progress.rate or 0.0 for progress in at), 0.0)


def _waited(queued: list[Job]) -> float:
    if not queued:
        return 0.0
    return max(0.0, (datetime.now(UTC) - queued[0].created).total_seconds())
