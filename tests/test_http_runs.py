"""Test runs at a service: a real server on this machine that serves a run's folder as the API does.

It keeps what was asked for, so that "only what is needed" is counted and not believed.
"""

import asyncio
import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import zarr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import deconvoy
from deconvoy import queries, served
from deconvoy.errors import RequestError, RunNotFound, RunUnreachable
from deconvoy.served import ServedStore
from deconvoy.store import RunStore
from deconvoy.token_file import token_for
from service.token_file import good_at
from tests.runs import run_inline, small_spec
from workers import pipeline
from workers.verify import verify

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "only-for-this-test"


@dataclass
class Shop:
    """Serves the runs below a folder."""

    folder: Path
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths below the run, and the range of each."""
    ranges: bool = True
    token: str | None = None
    broken: list[int] = field(default_factory=list)
    """Statuses to answer next."""
    address: str = ""

    async def serve(self, request: Request) -> Response:
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"title": "Unauthorized", "detail": "Show a token."}, 401)
        if self.broken:
            status = self.broken.pop(0)
            return JSONResponse({"detail": "The disk is gone."}, status)
        path = request.path_params["path"]
        self.asked.append((path, request.headers.get("range")))
        place = self.folder / request.path_params["run"] / path
        if path.endswith("/") or not path:
            if not place.is_dir():
                return Response(status_code=404)
            return JSONResponse(sorted(each.name for each in place.iterdir()))
        if not place.is_file():
            return Response(status_code=404)
        return FileResponse(place) if self.ranges else Response(place.read_bytes())

    def url(self, run: str = "small") -> str:
        return f"{self.address}/v1/runs/{run}"

    def forget(self) -> None:
        self.asked.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of runs."""
    runs = tmp_path_factory.mktemp("runs")
    squares = {"kind": "occlusion", "images": {"ids": [3]}, "patch": 32, "stride": 16}
    analyses = [{"kind": "top"}, {"kind": "projection", "units": {"ids": [0, 1, 40]}}, squares]
    run_inline(small_spec(layers=["relu2", "relu5"], analyses=analyses), runs / "small")
    return runs


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Shop]:
    shop = Shop(folder)
    app = Starlette(routes=[Route("/v1/runs/{run}/zarr/{path:path}", shop.serve)])
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        shop.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
        thread.start()
        yield shop
        running.should_exit = True
        thread.join(30)


@pytest.fixture
def shop(server: Shop) -> Iterator[Shop]:
    server.forget()
    yield server
    server.token, server.ranges = None, True
    server.broken.clear()


def test_a_run_is_read_over_http_as_from_its_folder(shop: Shop, folder: Path) -> None:
    here, there = deconvoy.open(folder / "small"), deconvoy.open(shop.url() + "/")
    assert there.url == shop.url() and there.status == "done"
    assert here.table().equals(there.table()) and here.images().equals(there.images())
    assert here.layers().equals(there.layers())
    one, other = (run.unit("relu5", 1) for run in (here, there))
    assert np.array_equal(one.patches, other.patches)
    assert np.array_equal(one.projections, other.projections)
    assert np.array_equal(here.occlusion(3).probability, there.occlusion(3).probability)
    assert queries.nearest(here, "relu2", 1).equals(queries.nearest(there, "relu2", 1))


def test_only_what_is_needed_is_fetched(shop: Shop) -> None:
    run = deconvoy.open(shop.url())
    assert {path for path, _ in shop.asked} == {"zarr.json"} and len(shop.asked) == 1
    shop.forget()
    unit = run.unit("relu5", 1)
    assert unit.score.shape == (9,)
    tables = {path.split("/")[2] for path, _ in shop.asked if path.count("/") > 2}
    assert tables == {"score", "image", "position", "box", "window", "label"}
    others = [path for path, _ in shop.asked if not path.startswith("layers/relu5/")]
    assert others == ["zarr.json"]  # the group's
    assert len(shop.asked) <= 2 * 6 + 2
    shop.forget()
    assert unit.patches.shape[0] == 9
    chunks = [(path, range_) for path, range_ in shop.asked if "/patch/c/" in path]
    assert {path for path, _ in chunks} == {"layers/relu5/patch/c/0/0/0/0/0"}
    assert all(range_ and range_.startswith("bytes=") for _, range_ in chunks)  # parts of a shard
    shop.forget()
    again = run.unit("relu5", 40)
    assert again.score.shape == (9,) and shop.asked == []  # the tables are kept


def test_plain_zarr_and_xarray_read_it(shop: Shop, folder: Path) -> None:
    store = RunStore(shop.url())
    group = zarr.open_group(store.zarr_store(), mode="r", path="layers/relu2")
    local = zarr.open_group(folder / "small", mode="r", path="layers/relu2")
    assert sorted(group.array_keys()) == sorted(local.array_keys())
    lazy = deconvoy.open(shop.url()).xarray("layers/relu2")
    assert lazy.score.dims == ("unit", "rank")
    assert np.array_equal(lazy.score.values, np.asarray(local["score"][:]))  # type: ignore[index]


def test_the_files_of_a_run_are_those_of_its_folder(shop: Shop, folder: Path) -> None:
    here, there = RunStore(folder / "small"), RunStore(shop.url())
    assert sorted(here.paths()) == sorted(there.paths())
    assert here.names("ledger/projection") == there.names("ledger/projection")
    assert there.names("nothing") == [] and not there.exists("nothing")
    assert there.read("zarr.json") == here.read("zarr.json")
    assert there.lines(pipeline.LOG) == here.lines(pipeline.LOG)
    with pytest.raises(RunNotFound, match="'nothing'"):
        there.read("nothing")
    assert not there.driver_died() and there.bytes_free() is None

    async def listed() -> tuple[list[str], list[str]]:
        files: Any = there.zarr_store()
        every = [path async for path in files.list()]
        return every, [path async for path in files.list_prefix("layers/relu2")]

    every, below = asyncio.run(listed())
    assert sorted(every) == sorted(here.paths())
    assert sorted(below) == [p for p in sorted(here.paths()) if p.startswith("layers/relu2/")]


def test_escaped_names_are_asked_for_as_they_are(shop: Shop, folder: Path) -> None:
    path = "layers/a%2Fb c?d#e/zarr.json"
    place = folder / "odd" / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"{}")
    store = RunStore(shop.url("odd"))
    assert store.read(path) == b"{}"
    assert store.names("layers") == ["a%2Fb c?d#e"] and list(store.paths()) == [path]


@pytest.mark.parametrize("ranges", [True, False])
def test_parts_of_a_file(shop: Shop, folder: Path, ranges: bool) -> None:
    """Also of a service that knows none."""
    (folder / "odd").mkdir(exist_ok=True)
    content = bytes(range(200))
    (folder / "odd/file").write_bytes(content)
    (folder / "odd/empty").write_bytes(b"")
    shop.ranges = ranges
    files: Any = RunStore(shop.url("odd")).zarr_store()

    async def ask(key: str, byte_range: Any) -> bytes | None:
        found = await files.get(key, default_buffer_prototype(), byte_range)
        return None if found is None else bytes(found.to_bytes())

    async def all_of_them() -> None:
        assert await ask("file", None) == content
        assert await ask("file", RangeByteRequest(10, 20)) == content[10:20]
        assert await ask("file", OffsetByteRequest(190)) == content[190:]
        assert await ask("file", SuffixByteRequest(5)) == content[-5:]
        assert await ask("nothing", SuffixByteRequest(5)) is None
        assert await files.exists("file") and await files.exists("empty")
        assert not await files.exists("nothing")
        several = await files.get_partial_values(
            default_buffer_prototype(), [("file", RangeByteRequest(0, 2)), ("nothing", None)]
        )
        assert several[0].to_bytes() == content[:2] and several[1] is None

    asyncio.run(all_of_them())


# --- tokens --------------------------------------------------------------------------------------


def test_a_token_is_shown_and_a_missing_one_is_told(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DECONVOY_HOME", str(tmp_path))
    shop.token = TOKEN
    with pytest.raises(RequestError, match=r"401.*token=….*DECONVOY_TOKEN.*token create"):
        deconvoy.open(shop.url())
    assert deconvoy.open(shop.url(), token=TOKEN).unit("relu2", 1).score.shape == (9,)
    monkeypatch.setenv("DECONVOY_TOKEN", TOKEN)
    assert deconvoy.open(shop.url()).unit("relu2", 1).score.shape == (9,)
    with pytest.raises(RequestError, match="401"):
        deconvoy.open(shop.url(), token="another")
    monkeypatch.delenv("DECONVOY_TOKEN")
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with good_at(tmp_path, "127.0.0.1", int(shop.address.rpartition(":")[2])):
        run = deconvoy.open(shop.url())
        assert run.unit("relu2", 1).score.shape == (9,)
        named = shop.url().replace("127.0.0.1", "localhost")
        assert deconvoy.open(named).unit("relu2", 1).score.shape == (9,)
    with pytest.raises(RequestError, match="401"):  # another could listen there by now
        run.unit("relu5", 1)
    store = RunStore(shop.url(), TOKEN)
    for each in (store, store.zarr_store(), store.zarr()):
        assert TOKEN.encode() not in pickle.dumps(each) and TOKEN not in repr(each)
    assert TOKEN not in repr(run)


def test_the_token_of_this_machine_is_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DECONVOY_HOME", str(tmp_path))
    monkeypatch.delenv("DECONVOY_TOKEN", raising=False)
    (tmp_path / "token").write_text("local\n")
    with good_at(tmp_path, "127.0.0.1", 8000), good_at(tmp_path, "::1", 8000):
        for host in ("127.0.0.1:8000", "[::1]:8000"):
            assert token_for(f"http://{host}/v1/runs/x", None) == "local"
        for host in ("example.org", "localhost.example.org", "127.0.0.1.example.org", "10.0.0.1",
                     "127.0.0.1", "127.0.0.1:8001", "localhost:8000"):  # fmt: skip
            assert token_for(f"http://{host}/v1/runs/x", None) is None
            assert token_for(f"http://{host}/v1/runs/x", "given") == "given"
    monkeypatch.setenv("DECONVOY_TOKEN", "of-the-environment")
    assert token_for("https://example.org/v1/runs/x", None) == "of-the-environment"


# --- what it does not do -------------------------------------------------------------------------


def test_nothing_is_written_to_a_service(shop: Shop, tmp_path: Path) -> None:
    store, small = RunStore(shop.url()), small_spec()
    for write in (
        lambda: store.write("x", b""),
        lambda: store.append("x", ""),
        lambda: store.delete("x"),
        lambda: store.remove(),
        lambda: store.sweep(),
        lambda: store.zarr("r+"),
        lambda: store.zarr("w-"),
        lambda: store.driver_lock(),
        lambda: pipeline.create(small, shop.url(), overwrite=True),
    ):
        with pytest.raises(RequestError, match="can only be read there"):
            write()
    group = store.zarr()
    with pytest.raises((RequestError, ValueError), match="read"):
        group.create_group("x")
    job = tmp_path / "job.json"
    job.write_text(json.dumps(small.to_json()))
    for arguments in (["resume", shop.url()], ["run", str(job), "--out", shop.url()]):
        told = failing(*arguments, "--executor", "inline")
        assert "can only be read there" in told


def failing(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_commands_read_from_a_service(shop: Shop, tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "relu5" in command("show", shop.url())
    command("figure", shop.url(), "relu5", "--units", "0,1", "-o", str(tmp_path / "maps.png"))
    command("export", shop.url(), "-o", str(tmp_path / "hits.csv"))
    assert json.loads(command("query", shop.url(), "purity", "relu2", "--json"))
    assert "no run at" in failing("show", shop.url("missing"))


def test_a_run_is_verified_over_http(shop: Shop) -> None:
    report = verify(shop.url(), sample=0)
    assert not report.faults and report.chunks > 20


def test_what_goes_wrong_is_told(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunNotFound, match="no run at"):
        deconvoy.open(shop.url("missing"))
    shop.broken = [500]
    with pytest.raises(RunUnreachable, match="answers 500.*The disk is gone"):
        deconvoy.open(shop.url())
    shop.broken = [503, 502]  # passes: asked again
    run = deconvoy.open(shop.url())
    shop.broken = [500]
    with pytest.raises(RunUnreachable, match="answers 500"):
        run.unit("relu2", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RunUnreachable, match="No service answers"):
        deconvoy.open(f"http://127.0.0.1:{port}/v1/runs/x")


@pytest.mark.parametrize(
    "url", ["http://", "http:///v1/runs/x", "http://a:secret@host/v1/runs/x", "http://host/x?t=1",
            "http://host:port/x"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="http\\(s\\)://host/v1/runs/ID") as found:
        deconvoy.open(url)
    assert "secret" not in str(found.value)


def test_a_page_that_is_no_service_is_told(shop: Shop) -> None:
    with pytest.raises(RunUnreachable, match="does not list folders"):
        served.names_in(shop.url(), b"<html>")
    with pytest.raises(RunUnreachable, match="does not list folders"):
        served.names_in(shop.url(), b'{"names": []}')


def test_one_client_serves_threads_and_event_loops(shop: Shop) -> None:
    store = RunStore(shop.url())
    assert isinstance(store, ServedStore)
    files: Any = store.zarr_store()
    for _ in range(3):  # each time another loop

        async def both() -> list[Any]:
            keys = ["zarr.json"] * 20
            return await asyncio.gather(
                *(files.get(key, default_buffer_prototype()) for key in keys)
            )

        assert len({bytes(each.to_bytes()) for each in asyncio.run(both())}) == 1
    run = deconvoy.open(shop.url())
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(float(run.unit("relu2", n).score[0])))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == sorted(float(run.unit("relu2", n).score[0]) for n in range(16))


def test_the_server_of_this_test_is_real(shop: Shop) -> None:
    answer = httpx.get(f"{shop.url()}/zarr/zarr.json", headers={"Range": "bytes=0-3"})
    assert answer.status_code == 206 and len(answer.content) == 4
