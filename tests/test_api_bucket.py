"""Runs in a bucket over HTTP, against a real S3 server."""

import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import deconvoy
from deconvoy.files import Files
from deconvoy.store import RunStore
from service import uploads
from tests.s3 import BUCKET, s3_server
from tests.serving import client_of, problem_of, settings_of

obstore: Any = pytest.importorskip("obstore")

CHUNK = "/v1/runs/small/zarr/layers/relu2/patch/c/0/0/0/0/0"


@pytest.fixture(scope="module")
def client(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder / "log") as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        store = obstore.store.S3Store(BUCKET, client_options={"allow_http": True})
        for place, _, names in os.walk(small_run):
            for name in names:
                path = Path(place, name).relative_to(small_run).as_posix()
                if path != "ledger/driver.lock":
                    obstore.put(store, f"runs/small/{path}", Path(place, name).read_bytes())
        with client_of(settings_of(folder / "home", runs=f"s3://{BUCKET}/runs")) as client:
            yield client


def test_a_run_in_a_bucket_is_one_like_others(client: httpx.Client, small_run: Path) -> None:
    (row,) = client.get("/v1/runs").raise_for_status().json()["runs"]
    assert (row["id"], row["status"], row["images"]) == ("small", "done", 40)
    unit = client.get("/v1/runs/small/layers/relu2/units/40").raise_for_status().json()
    expected = deconvoy.open(small_run).unit("relu2", 40)
    assert [hit["score"] for hit in unit["hits"]] == expected.score.tolist()
    assert client.get(unit["pictures"]["both"]).headers["content-type"] == "image/png"


def test_its_files_are_read_by_ranges(client: httpx.Client, small_run: Path) -> None:
    content = (small_run / CHUNK.partition("/zarr/")[2]).read_bytes()
    whole = client.get(CHUNK).raise_for_status()
    assert whole.content == content
    part = client.get(CHUNK, headers={"range": "bytes=-9"})
    assert part.status_code == 206 and part.content == content[-9:]
    again = client.get(CHUNK, headers={"if-none-match": whole.headers["etag"]})
    assert again.status_code == 304
    problem_of(client.get(f"{CHUNK}9"), 404, "path")
    assert "relu2" in client.get("/v1/runs/small/zarr/layers/").json()


def test_what_is_handed_in_lies_there_and_ends_there(client: httpx.Client) -> None:
    into = io.BytesIO()
    Image.new("RGB", (8, 8)).save(into, "PNG")
    uri = client.post("/v1/uploads", content=into.getvalue()).raise_for_status().json()["uri"]
    assert uri.startswith(f"s3://{BUCKET}/runs/.uploads/")
    assert [entry.path for entry in Files(uri).entries()] == ["image.png"]
    assert client.get("/v1/runs").json()["total"] == 1
    settings = settings_of(Path("nowhere"), runs=f"s3://{BUCKET}/runs")
    later = datetime.now(UTC) + timedelta(days=8)
    assert uploads.sweep(settings, lambda: {uri}, later) == []
    assert uploads.sweep(settings, set, later) == [uri]
    assert list(RunStore(uri).paths()) == []


def test_it_can_be_deleted(client: httpx.Client) -> None:
    assert client.delete("/v1/runs/small").status_code == 204
    problem_of(client.get("/v1/runs/small"), 404, "run_id")
    assert client.get("/v1/runs").json()["total"] == 0
