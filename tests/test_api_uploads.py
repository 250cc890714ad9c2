"""Images that people hand in: kept where jobs can read them, and nothing else is."""

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deconvoy.client import Client
from deconvoy.errors import RequestError
from deconvoy.spec import JobSpec
from service import uploads
from service.admission import admit
from service.app import create_app
from service.catalogue import STATES, NewJob
from service.scopes import Scope
from service.settings import Settings
from tests.serving import client_of, problem_of, served, settings_of, with_runs
from tests.test_api_runs import change_attributes
from tests.upped import eventually
from workers import datasets

MOST = 60_000


def encoded(kind: str, side: int = 40) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (side, 2 * side, 3), dtype=np.uint8)
    into = io.BytesIO()
    Image.fromarray(pixels).save(into, kind)
    return into.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_an_image_is_kept_where_a_job_reads_it(tmp_path: Path, kind: str) -> None:
    settings = settings_of(tmp_path / "home", upload_bytes=MOST)
    content = encoded(kind)
    with client_of(settings) as client:
        answer = client.post("/v1/uploads", content=content)
        assert answer.status_code == 201, answer.text
        told = answer.json()
        assert (told["width"], told["height"]) == (80, 40)
        assert client.post("/v1/uploads", content=content).json() == told
        assert client.get("/v1/runs").json()["total"] == 0
    (file,) = Path(told["uri"]).glob("[!.]*")
    assert file.read_bytes() == content
    spec = JobSpec.parse({"model": {"name": "deconvoy/zfnet"}, "data": {"uri": told["uri"]}})
    admit(spec, settings)
    assert datasets.list_images(spec.data, (), 10).uris == [file.name]


def test_a_client_hands_a_file_in(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(encoded("PNG"))
    (tmp_path / "none.png").write_text("no picture")
    with served(create_app(settings_of(tmp_path / "home"))) as address, Client(address) as client:
        uri = client.upload(tmp_path / "mine.png")
        assert uri == client.upload(encoded("PNG")) and Path(uri, "image.png").is_file()
        with pytest.raises(RequestError, match="no image that can be read.*JPEG, PNG"):
            client.upload(tmp_path / "none.png")


def test_what_is_no_image_or_too_large_is_refused(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path / "home", upload_bytes=MOST, picture_pixels=10_000, body_bytes=2048
    )
    with client_of(settings) as client:
        for wrong in (b"", b"GIF89a", b"%PDF-1.4", encoded("PNG")[:200], encoded("TIFF")):
            problem_of(client.post("/v1/uploads", content=wrong), 422, "body")
        told = problem_of(client.post("/v1/uploads", content=encoded("JPEG", 90)), 422, "body")
        assert "180 × 90" in told and "DECONVOY_PICTURE_PIXELS" in told
        told = problem_of(client.post("/v1/uploads", content=b"x" * (MOST + 1)), 413)
        assert "DECONVOY_UPLOAD_BYTES" in told
        # Bodies elsewhere stay as small as they were.
        assert client.post("/v1/jobs", content=b"x" * 2049).status_code == 413
    assert not list((tmp_path / "home").rglob("image.*"))


def test_handing_in_takes_the_scope_of_submitting(tmp_path: Path) -> None:
    app = create_app(settings_of(tmp_path / "home", tokens=True))
    with served(app) as address:
        for scope, status in ((Scope.read, 403), (Scope.submit, 201)):
            secret = app.state.gate.tokens.create(f"one-{scope.value}", scope)
            headers = {"Authorization": f"Bearer {secret}"}
            answer = httpx.post(f"{address}/v1/uploads", content=encoded("PNG"), headers=headers)
            assert answer.status_code == status, answer.text


# -- how long they stay ----------------------------------------------------------------------------

NOW = datetime(2030, 1, 31, tzinfo=UTC)


def hand_in(settings: Settings, days_ago: float, side: int) -> str:
    """One of its own for each side."""
    uri = uploads.keep(encoded("PNG", side), settings).uri
    since = NOW - timedelta(days=days_ago)
    Path(uri, uploads.HANDED_IN).write_text(since.isoformat())
    return uri


def test_what_is_old_and_named_by_nothing_is_removed(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "home", upload_days=3)
    fresh, old, older, named = (
        hand_in(settings, days, side) for days, side in ((2.9, 40), (3.1, 41), (400, 42), (400, 43))
    )
    (Path(settings.uploads) / "not-ours").mkdir()
    assert sorted(uploads.sweep(settings, lambda: {named, "/data"}, NOW)) == sorted([old, older])
    left = {path.name for path in Path(settings.uploads).iterdir()}
    assert left == {Path(fresh).name, Path(named).name, "not-ours"}


def test_handing_in_again_starts_anew(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "home")
    uri = hand_in(settings, 400, 40)
    before = datetime.now(UTC)
    assert uploads.keep(encoded("PNG", 40), settings).uri == uri
    told = datetime.fromisoformat(Path(uri, uploads.HANDED_IN).read_text())
    assert before <= told <= datetime.now(UTC)


@pytest.mark.parametrize("text", [None, "", "yesterday"])
def test_of_what_nobody_knows_since_when_it_is_there_the_time_begins_now(
    tmp_path: Path, text: str | None
) -> None:
    settings = settings_of(tmp_path / "home")
    uri = hand_in(settings, 400, 40)
    Path(uri, uploads.HANDED_IN).unlink()
    if text is not None:
        Path(uri, uploads.HANDED_IN).write_text(text)
    assert uploads.sweep(settings, set, NOW) == []
    assert uploads.sweep(settings, set, NOW + timedelta(days=6.9)) == []
    assert uploads.sweep(settings, set, NOW + timedelta(days=7.1)) == [uri]


def test_jobs_and_runs_that_no_job_made_name_theirs(small_run: Path, tmp_path: Path) -> None:
    runs = with_runs(tmp_path / "runs", small_run)
    settings = settings_of(tmp_path / "home", runs=str(runs))
    own, of_run, free = (hand_in(settings, 400, side) for side in (40, 41, 42))
    change_attributes(runs / "small", {"spec": {"data": {"uri": ["/data/a", of_run]}}})
    (runs / "broken").mkdir()
    (runs / "broken/zarr.json").write_text("{")
    app = create_app(settings)
    catalogue, shelf = app.state.catalogue, app.state.shelf
    catalogue.upgrade()
    spec = {"data": {"uri": own}}
    catalogue.add_job(NewJob("mine", "mine", spec, str(runs / "mine"), "anna", None))
    for state in ("done", "failed"):
        assert catalogue.move("mine", state, among=STATES)
        named = uploads.places_named(catalogue, shelf)
        assert named == {own, "/data/a", of_run}
    assert uploads.sweep(settings, lambda: named, NOW) == [free]


def test_a_service_looks_through_them_when_it_starts_and_once_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(tmp_path / "home")
    monkeypatch.setattr(uploads, "SWEEP_SECONDS", 0.2)
    long_ago = (NOW - datetime.now(UTC)).days + 30  # before the real now
    first = hand_in(settings, long_ago, 40)
    sweep, turns = uploads.sweep, iter([None, OSError("No disk."), None, ZeroDivisionError()])

    def once(*given: Any) -> list[str]:
        wrong = next(turns, None)
        if wrong is not None:
            raise wrong
        return sweep(*given)

    monkeypatch.setattr(uploads, "sweep", once)
    with served(create_app(settings)) as address:
        eventually(lambda: not Path(first).exists())
        second = hand_in(settings, long_ago, 41)
        eventually(lambda: not Path(second).exists())
        third = hand_in(settings, long_ago, 42)
        eventually(lambda: not Path(third).exists())
        assert httpx.get(f"{address}/healthz").status_code == 200
    assert caplog.text.count("could not be looked through") >= 1
