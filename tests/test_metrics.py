"""What Prometheus is told, and that the page for operators names just that."""

import asyncio
import re
import time
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app, make_ready
from service.catalogue import STATES, Catalogue, NewJob, Progress
from service.metrics import Metrics
from service.settings import Settings
from tests.compose import ROOT

PAGE = (ROOT / "docs/operate.md").read_text(encoding="utf-8")


def values_of(page: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Metric → values of its labels → value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def add(catalogue: Catalogue, job: str, state: str, progress: Progress | None = None) -> None:
    new = NewJob(job, job, {}, f"/runs/{job}", "anna", None)
    catalogue.add_job(new)
    if state != "queued":
        assert catalogue.move(job, state, among=("queued",))
    if progress is not None:
        catalogue.put_progress(job, progress)


def test_jobs_are_counted_by_state_and_the_oldest_waits(catalogue: Catalogue) -> None:
    metrics = Metrics(catalogue)
    told = values_of(metrics.page().decode())
    assert told["deconvoy_jobs"] == {(state,): 0.0 for state in STATES}
    assert told["deconvoy_oldest_queued_seconds"] == {(): 0.0}
    add(catalogue, "waits", "queued")
    time.sleep(0.05)
    add(catalogue, "waits-too", "queued")
    add(catalogue, "broken", "failed")
    told = values_of(metrics.page().decode())
    assert told["deconvoy_jobs"][("queued",)] == 2 and told["deconvoy_jobs"][("failed",)] == 1
    assert 0.05 <= told["deconvoy_oldest_queued_seconds"][()] < 60


def test_speeds_are_those_of_running_jobs_at_their_stages(catalogue: Catalogue) -> None:
    add(catalogue, "scans", "running", Progress("scan", 5, 10, rate=40.0))
    add(catalogue, "scans-too", "running", Progress("rescan", 5, 10, rate=2.5))
    add(catalogue, "begins", "running", Progress("scan", 0, 10))
    add(catalogue, "projects", "running", Progress("projection", 5, 10, rate=7.0))
    add(catalogue, "slides", "running", Progress("unit-occlusion", 5, 10, rate=3.0))
    add(catalogue, "was-quick", "done", Progress("projection", 10, 10, rate=900.0))
    told = values_of(Metrics(catalogue).page().decode())
    assert told["deconvoy_images_per_second"] == {(): 42.5}
    assert told["deconvoy_projections_per_second"] == {(): 7.0}
    assert told["deconvoy_squares_per_second"] == {(): 3.0}


def test_what_running_jobs_have_done_is_told_job_by_job(catalogue: Catalogue) -> None:
    add(catalogue, "scans", "running", Progress("scan", 5, 10, rate=40.0))
    add(catalogue, "begins", "running")
    add(catalogue, "is-done", "done", Progress("scan", 10, 10))
    told = values_of(Metrics(catalogue).page().decode())
    assert told["deconvoy_job_done"] == {("scans", "scan"): 5.0, ("begins", ""): 0.0}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    made = create_app(Settings(home=tmp_path, ray="none", tokens=False))
    make_ready(made)
    return made


def answer(app: FastAPI, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    return asyncio.run(ask())


def test_the_page_for_operators_has_every_metric_and_no_other(app: FastAPI) -> None:
    assert answer(app, "/healthz").json()["status"] == "ok"
    add(app.state.catalogue, "scans", "running")  # of which one metric is
    told = values_of(answer(app, "/metrics").text)
    listed = set(re.findall(r"^\| `(deconvoy_\w+)` \|", PAGE, re.MULTILINE))
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in told}
    assert listed == families
    for name in re.findall(r"\bdeconvoy_[a-z_]+", PAGE):
        assert name in told or name in families, name


def test_alerts_name_labels_routes_and_states_that_are(app: FastAPI) -> None:
    answer(app, "/healthz")
    routes = set(answer(app, "/openapi.json").json()["paths"])
    told = answer(app, "/metrics").text
    assert 'deconvoy_request_seconds_count{method="GET",route="/healthz",status="200"} 1.0' in told
    named = re.findall(r'route="([^"]+)"', PAGE)
    assert named and set(named) <= routes
    states = re.findall(r'state=~?"([^"]+)"', PAGE)
    assert states and {each for some in states for each in re.split(r"\\?\|", some)} <= set(STATES)


def test_every_state_of_a_job_is_explained() -> None:
    (section,) = re.findall(r"## What the state of a job means\n(.*?)\n## ", PAGE, re.DOTALL)
    assert re.findall(r"^\| `([a-z]+)` \|", section, re.MULTILINE) == list(STATES)
