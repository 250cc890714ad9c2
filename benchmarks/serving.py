"""How quickly the service answers: unit pages under load, pictures, and a table of 100,000 hits.

The service runs in a process of its own over a small run whose table was made larger; the load
generator is this process, on the same machine.  A request's time begins when it was due, so that a
service that falls behind cannot hide it.
"""

import asyncio
import contextlib
import io
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import zarr

from benchmarks.comparison import Comparison, memory_mb
from deconvoy.arrays import array_of
from deconvoy.client import Client
from deconvoy.errors import DeconvoyError
from deconvoy.schema import layer_path
from deconvoy.spec import JobSpec
from workers.executors.inline import InlineExecutor
from workers.pipeline import create, execute

RATE, CONNECTIONS = 200, 32
SECONDS = 20.0
TURNS = 5
HITS = 100_000

UP_SECONDS, MEMORY_MB, P50_SECONDS, P99_SECONDS, TABLE_SECONDS = 4.0, 400.0, 0.015, 0.1, 1.0
PROGRESS_SECONDS = 15.0
"""What is to be reached."""

JOB: dict[str, Any] = {
    "model": {"name": "torchvision/squeezenet1_1"},
    "data": {"uri": "shapes?size=2000"},
    "layers": ["features.12.*"],
    "analyses": [{"kind": "top"}],
    "compute": {"shard_size": 64},
}
"""One that takes a while; its first shard tells that it has begun."""

BIG = tuple(f"big{number}" for number in range(8))
"""Layers that are made only to be read."""


def measure() -> Iterator[Comparison]:
    """The rows; with tokens, as a service has them."""
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as name:
        folder = Path(name)
        _make_run(folder / "runs" / "small")
        begin = time.perf_counter()
        with _service(folder, "--ray", "none") as (process, client):
            up = time.perf_counter() - begin
            yield _row("service up, without Ray", "start", [up], UP_SECONDS)
            yield from _unit_pages(client)
            yield from _table(client)
            yield _row(
                "memory of the service", "peak", [memory_mb(process.pid, "VmHWM")], MEMORY_MB, "MB"
            )

        yield from _beside_ray(folder)


def _beside_ray(folder: Path) -> Iterator[Comparison]:
    """Ray outlives a service that is killed; the next one finds it."""
    with _service(folder, "--ray", "local", ends=False):
        while not (folder / "home" / "ray.json").exists():  # where the next one finds it
            time.sleep(0.1)
    begin = time.perf_counter()
    with _service(folder, "--ray", "local") as (_, client):
        yield _row("service up, beside a running Ray", "start", [time.perf_counter() - begin],
                   UP_SECONDS)  # fmt: skip
        token = client.headers["Authorization"].removeprefix("Bearer ")
        service = Client(str(client.base_url), token)
        taken = []
        for turn in range(TURNS):
            begin = time.perf_counter()
            job = service.submit(JobSpec.parse({**JOB, "name": f"turn-{turn}"}))
            while not (at := service.job(job.id)).has_ended and not (
                at.progress is not None and at.progress.done
            ):
                time.sleep(0.05)
            taken.append(time.perf_counter() - begin)
            if not at.has_ended:
                at.cancel()
            with contextlib.suppress(DeconvoyError):  # it was stopped
                at.wait()
        yield _row("from submit to the first progress", "job", taken, PROGRESS_SECONDS)


def _unit_pages(client: httpx.Client) -> Iterator[Comparison]:
    generator = random.Random(0)
    there = [("relu2", 64), ("relu5", 64), ("relu7", 256), *((name, 1389) for name in BIG)]
    asked = [(name, generator.randrange(units)) for name, units in generator.choices(there, k=999)]
    pages = [f"/v1/runs/small/layers/{name}/units/{unit}" for name, unit in asked]
    what = f"unit JSON, {RATE}/s on {CONNECTIONS} connections"
    _loaded(client, pages, 3.0)  # every layer is read once, and what is loaded late is loaded
    seconds = _loaded(client, pages, SECONDS)
    yield _row(f"{what}, p50", "request", [_quantile(seconds, 0.5)], P50_SECONDS)
    yield _row(f"{what}, p99", "request", [_quantile(seconds, 0.99)], P99_SECONDS)


def _table(client: httpx.Client) -> Iterator[Comparison]:
    for form in ("arrow", "parquet"):
        seconds = []
        for _ in range(TURNS):
            begin = time.perf_counter()
            answer = client.get("/v1/runs/small/table", params={"format": form}).raise_for_status()
            content = io.BytesIO(answer.content)
            if form == "arrow":
                rows = pa.ipc.open_stream(content).read_all().num_rows
                assert rows >= HITS
            seconds.append(time.perf_counter() - begin)
        yield _row(f"table of {HITS:,} hits as {form}", "table", seconds, TABLE_SECONDS)


# -- load ------------------------------------------------------------------------------------------


def _loaded(client: httpx.Client, pages: Sequence[str], seconds: float) -> list[float]:
    """Seconds of each request, sorted; so many a second, whatever the service makes of it."""
    return asyncio.run(_load(str(client.base_url), dict(client.headers), pages, seconds))


async def _load(
    address: str, headers: dict[str, str], pages: Sequence[str], seconds: float
) -> list[float]:
    count = math.ceil(RATE * seconds)
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    taken: list[float] = []
    async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits) as client:
        begin = time.perf_counter() + 0.1

        async def ask(first: int) -> None:
            for number in range(first, count, CONNECTIONS):
                due = begin + number / RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                (await client.get(pages[number % len(pages)])).raise_for_status()
                taken.append(time.perf_counter() - due)

        await asyncio.gather(*(ask(first) for first in range(CONNECTIONS)))
    return sorted(taken)


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(int(share * len(values)), len(values) - 1)]


def _row(
    what: str, per: str, values: Sequence[float], limit: float, measured: str = "seconds"
) -> Comparison:
    return Comparison.with_limit(what, "deconvoy/zfnet_small", per, values, limit, measured)


# -- the service -----------------------------------------------------------------------------------


@contextmanager
def _service(
    folder: Path, *options: str, ends: bool = True
) -> Iterator[tuple["subprocess.Popen[bytes]", httpx.Client]]:
    """``deconvoy up``'s process, and somebody with a token who asks it.

    Args:
        ends: as people end it; else it is killed, and its Ray stays.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DECONVOY_HOME": str(folder / "home"),
        "DECONVOY_RUNS": str(folder / "runs"),
    }
    with (folder / "log").open("ab") as log:
        command = [sys.executable, "-m", "service.cli", "up", "--no-dashboard", "--port", str(port)]
        process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                _wait_for(client, process)
                token = (folder / "home" / "token").read_text(encoding="utf-8").strip()
                client.headers["Authorization"] = f"Bearer {token}"
                yield process, client
        finally:
            process.send_signal(signal.SIGINT if ends else signal.SIGKILL)
            process.wait(60)


def _wait_for(client: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    while True:
        try:
            client.get("/healthz").raise_for_status()
            return
        except httpx.TransportError:
            if process.poll() is not None:
                raise RuntimeError("the service did not start") from None
            time.sleep(0.02)


# -- the run ---------------------------------------------------------------------------------------


def _make_run(place: Path) -> None:
    """A small job's, with layers added to it until its table has ``HITS`` rows."""
    spec = JobSpec.parse(
        {
            "model": {"name": "deconvoy/zfnet_small"},
            "data": {"uri": "shapes?size=200&seed=1"},
            "layers": ["relu2", "relu5", "relu7"],
            "analyses": [{"kind": "top"}, {"kind": "projection"}],
        }
    )
    job, run = create(spec, str(place))
    execute(job, run, InlineExecutor(), lambda advance: None)
    root = zarr.open_group(place, mode="r+", use_consolidated=False)
    units = math.ceil(HITS / 9 / len(BIG))
    model = root[layer_path("relu2")]
    assert isinstance(model, zarr.Group)
    for name in BIG:
        _add_layer(root, model, name, units)
    attributes = json.loads((place / "zarr.json").read_text(encoding="utf-8"))
    attributes["attributes"]["layers"] += BIG
    (place / "zarr.json").write_text(json.dumps(attributes), encoding="utf-8")


def _add_layer(root: zarr.Group, model: zarr.Group, name: str, units: int) -> None:
    """A layer whose hits are those of another, over and over; without pictures."""
    attributes = {**model.attrs.asdict(), "layer": name, "units": units}
    group = root.create_group(layer_path(name), attributes=attributes)
    for field in (
        "score",
        "image",
        "label",
        "position",
        "box",
        "window",
        "mean",
        "density",
        "histogram",
    ):
        values = np.asarray(array_of(model, field)[:])
        repeated = values[np.arange(units) % len(values)]
        group.create_array(field, data=repeated, chunks=repeated.shape)
