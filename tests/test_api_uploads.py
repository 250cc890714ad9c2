"""Images that people hand in: kept where jobs can read them, and nothing else is."""

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from deconvoy.client import Client
from deconvoy.errors import RequestError
from deconvoy.spec import JobSpec
from service.admission import admit
from service.app import create_app
from service.scopes import Scope
from tests.serving import client_of, problem_of, served, settings_of
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
    (file,) = Path(told["uri"]).iterdir()
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
