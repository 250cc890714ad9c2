"""Test reading from S3 with a real server: the same results as from disk, and what is told."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import obstore
import pytest
from obstore.store import HTTPStore, S3Store

import deconvoy
from deconvoy.errors import FilesUnreachable, ImageUnreadable, RequestError
from deconvoy.files import Files, _store, retries
from deconvoy.spec import DataSpec, Transform
from tests.fire.proxy import Weather, proxy_before
from tests.runs import results_of, run_inline, small_spec, write_photographs
from tests.s3 import BUCKET, s3_server
from tests.test_found import png, write_list, write_parquet, write_tar
from workers.datasets import list_images
from workers.sources import FileSource

CLASSES = ("a", "b", *(f"class {i}" for i in range(8)))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as variables:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            yield variables


@pytest.fixture(scope="module")
def photographs(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The same images below an s3:// URL and in a folder."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, 13)
    (folder / "b/broken.png").write_bytes(b"no picture")
    return upload(folder, "some/photographs"), folder


def upload(folder: Path, prefix: str) -> str:
    store = S3Store(BUCKET, prefix=prefix, client_options={"allow_http": True})
    for file in folder.rglob("*"):
        if file.is_file():
            obstore.put(store, file.relative_to(folder).as_posix(), file.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


def spec_of(uri: str) -> deconvoy.JobSpec:
    return small_spec(
        model={"name": "deconvoy/zfnet_small", "classes": list(CLASSES)},
        data={"uri": uri, "max_bad": 0.2},
        layers=["relu2", "logits"],
        analyses=[{"kind": "top"}, {"kind": "projection", "units": {"ids": [0]}}],
    )


def test_a_folder_on_s3_gives_the_results_of_one_on_disk(
    photographs: tuple[str, Path], tmp_path: Path
) -> None:
    remote, local = photographs
    run_inline(spec_of(remote), tmp_path / "remote")
    run_inline(spec_of(str(local)), tmp_path / "local")
    ours, theirs = results_of(tmp_path / "remote"), results_of(tmp_path / "local")
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []
    images = deconvoy.open(tmp_path / "remote").images().to_pylist()
    assert [row["label"] for row in images] == [0] * 7 + [1] * 7
    assert [row["uri"] for row in images if row["skipped"]] == ["b/broken.png"]


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_ray_read_from_s3(
    photographs: tuple[str, Path], environment: dict[str, str], tmp_path: Path
) -> None:
    """By the command, whose Ray starts with the variables that a user has set."""
    remote, _ = photographs
    job, out = tmp_path / "job.json", tmp_path / "run"
    job.write_text(json.dumps(spec_of(remote).to_json()))
    command = [sys.executable, "-m", "service.cli", "run", str(job), "--out", str(out)]
    ended = subprocess.run(
        [*command, "--workers", "2"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    run_inline(spec_of(remote), tmp_path / "inline")
    assert results_of(out) == results_of(tmp_path / "inline")


def test_tables_shards_lists_and_labels_are_read_from_s3(
    environment: dict[str, str], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", label=["dog", "owl", "cat", None, "dog"])
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", {"1.png": png(shard), "1.cls": b"2"})
    write_list(tmp_path, "path,label\npictures/2.png,owl\n")
    root = upload(tmp_path, "tables")

    def labels(name: str) -> list[int | None]:
        found = list_images(DataSpec(uri=f"{root}/{name}"), ("cat", "dog", "owl"), 3)
        return list(found.labels)

    assert labels("a.parquet") == [1, 2, 0, None, 1]
    assert labels("{0..1}.tar") == [2, 2]
    assert labels("list.csv") == [2]


def test_a_file_that_changes_changes_the_fingerprint(environment: dict[str, str]) -> None:
    store = S3Store(BUCKET, prefix="changing", client_options={"allow_http": True})
    obstore.put(store, "1.png", png(1))
    spec = DataSpec(uri=f"s3://{BUCKET}/changing")
    before = list_images(spec, (), 10).fingerprint
    assert list_images(spec, (), 10).fingerprint == before
    obstore.put(store, "1.png", png(2))
    assert list_images(spec, (), 10).fingerprint != before


def test_what_is_not_there_is_told(environment: dict[str, str]) -> None:
    with pytest.raises(RequestError, match=r"s3://no-such-bucket.*AWS_ENDPOINT_URL"):
        list_images(DataSpec(uri="s3://no-such-bucket/images"), (), 10)
    with pytest.raises(RequestError, match=rf"s3://{BUCKET}/empty.*no images"):
        list_images(DataSpec(uri=f"s3://{BUCKET}/empty"), (), 10)
    with pytest.raises(FileNotFoundError, match=rf"s3://{BUCKET}/gone.png is not there"):
        Files(f"s3://{BUCKET}").read("gone.png")


def test_a_server_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread of its own process-wide state there is none: a new root makes a new client."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("deconvoy.files.PATIENCE_SECONDS", 2)
    found: list[str] = []

    def ask() -> None:
        try:
            Files("s3://away/images").read("1.png")
        except OSError as error:
            found.append(str(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(120)
    assert found and "s3://away/images/1.png" in found[0] and "AWS_ENDPOINT_URL" in found[0]


def test_a_store_is_asked_again_for_as_long_as_the_patience_lasts_however_often_that_is() -> None:
    asked = 0

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal asked
            asked += 1
            self.send_response(503 if asked < 15 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = HTTPStore(
            f"http://127.0.0.1:{server.server_port}",
            client_options={"allow_http": True},
            retry_config=retries(60),
        )
        assert obstore.get(store, "a.png").bytes() == b""
        server.shutdown()
    assert asked == 15


def test_a_store_that_is_away_makes_no_image_unreadable(
    photographs: tuple[str, Path], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an hour without network would leave out other images than another hour."""
    remote, folder = photographs
    with proxy_before(environment["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        monkeypatch.setattr("deconvoy.files.PATIENCE_SECONDS", 0.2)
        _store.cache_clear()
        source, transform = FileSource(remote), Transform(resize=64, crop=64)
        for fault in ("500", "503", "cut", "partial", "key"):
            with proxy.weather.raging(fault):
                with pytest.raises(FilesUnreachable, match="so it was not skipped.*resume"):
                    source.read("a/000.png", transform)
        with proxy.weather.raging("403"), pytest.raises(ImageUnreadable, match="may not be read"):
            source.read("a/000.png", transform)
        assert source.read("a/000.png", transform).width == 80
        with pytest.raises(OSError, match="ends before byte 1000000000"):
            Files(remote).read_range("a/000.png", 10, 10**9 - 10)
        proxy.weather = Weather(seed=1, every=1, spell=1, faults=("partial",))
        names = {file.name for file in folder.rglob("*.png")}
        assert {entry.path.rpartition("/")[2] for entry in Files(remote).entries()} == names
    _store.cache_clear()
