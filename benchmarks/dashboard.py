"""How quickly pages of the dashboard are complete, alone and with nineteen others looking too.

The service runs in a process of its own over a run of 4,944 units; a headless Chromium and the
others are this process, on the same machine.  The others speak to Streamlit as a browser does: they
ask over a websocket for a view, wait for the script's end, and fetch every picture that the view
shows, without keeping any.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import httpx
import websockets
from playwright.async_api import Page, async_playwright
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from benchmarks.comparison import Comparison, memory_mb
from deconvoy.spec import JobSpec
from workers.executors.inline import InlineExecutor
from workers.pipeline import create, execute

MODEL = "torchvision/squeezenet1_1"
LAYER, UNITS = "features.9.expand3x3_activation", 192

UNIT_SECONDS, WALL_SECONDS, CROWD_SECONDS, MEMORY_MB = 1.0, 1.5, 3.0, 600.0
"""What is to be reached."""

TURNS = 9
OTHERS, THINK_SECONDS, CROWD_LASTS = 19, 5.0, 60.0
VIEWS, WARM_VIEWS = 500, 100
GROWTH = 1.1
"""Memory after all views over that after the first ones, at most."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

COMPLETE = """title => document.querySelector("h1")?.innerText === title
  && "following" in document.body.dataset
  && document.querySelector(".stApp").dataset.testScriptState === "notRunning"
  && [...document.images].filter(image => image.getBoundingClientRect().top < innerHeight)
       .every(image => image.complete)"""
"""The view is there, and every picture in the window."""


def measure() -> Iterator[Comparison]:
    """The rows."""
    with tempfile.TemporaryDirectory(prefix="deconvoy-bench-") as name:
        folder = Path(name)
        _make_run(folder / "squeeze")
        with _service(folder) as (process, address, cookie):
            yield from asyncio.run(_all(process, address, cookie))


async def _all(process: int, address: str, cookie: str) -> list[Comparison]:
    async with _browser(address, cookie) as page:
        rows = [await _units(page, address), await _walls(page, address)]
        rows.append(await _crowd(page, address, cookie, "at first"))
        rows.append(await _crowd(page, address, cookie, "then"))
    return [*rows, *await _memory(process, address, cookie)]


# -- a browser -------------------------------------------------------------------------------------


@asynccontextmanager
async def _browser(address: str, cookie: str) -> AsyncIterator[Page]:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit("This benchmark drives Chromium, which is not installed: install it.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        context = await browser.new_context(viewport={"width": 1280, "height": 860})
        name, _, value = cookie.partition("=")
        await context.add_cookies([{"name": name, "value": value, "url": address}])
        yield await context.new_page()
        await browser.close()


async def _units(page: Page, address: str) -> Comparison:
    """From one unit to the next, none of which anybody has seen."""
    await _arrive(page, address, 0)
    seconds = [await _next_unit(page, unit) for unit in range(1, TURNS + 1)]
    return _row("unit page", "page", seconds, UNIT_SECONDS)


async def _arrive(page: Page, address: str, unit: int) -> None:
    await page.goto(address + _view("unit", unit=unit))
    await page.wait_for_function(COMPLETE, arg=f"{LAYER} : {unit}", timeout=60_000)


async def _next_unit(page: Page, unit: int) -> float:
    begin = time.perf_counter()
    await page.keyboard.press("ArrowRight")
    await page.wait_for_function(COMPLETE, arg=f"{LAYER} : {unit}", timeout=60_000)
    return time.perf_counter() - begin


async def _walls(page: Page, address: str) -> Comparison:
    """From one page of a layer's units to another, 48 tiles each."""
    seconds = []
    for layer in ("features.9", "features.10", "features.11"):
        name = f"{layer}.expand1x1_activation"
        await page.goto(address + _view("layer", layer=name))
        await page.wait_for_function(COMPLETE, arg=name, timeout=60_000)
        for first in (49, 97, 145):
            begin = time.perf_counter()
            await page.keyboard.press("ArrowRight")
            await page.get_by_text(re.compile(f"^{first}–")).wait_for()
            await page.wait_for_function(COMPLETE, arg=name, timeout=60_000)
            seconds.append(time.perf_counter() - begin)
    return _row("layer page, 48 tiles", "page", seconds, WALL_SECONDS)


# -- others ----------------------------------------------------------------------------------------


class _Other:
    """Somebody else, whose browser has no window."""

    def __init__(self, address: str, cookie: str, seed: int) -> None:
        self.address, self.cookie = address, cookie
        self.random = random.Random(seed)

    async def __aenter__(self) -> "_Other":
        url = self.address.replace("http", "ws", 1) + "/_stcore/stream"
        self.socket = await websockets.connect(
            url,
            origin=websockets.Origin(self.address),
            additional_headers={"Cookie": self.cookie},
            subprotocols=[websockets.Subprotocol("streamlit")],
            max_size=None,
        )
        self.http = httpx.AsyncClient(
            base_url=self.address, headers={"Cookie": self.cookie}, timeout=60
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self.http.aclose()

    async def looks(self) -> float:
        """At some unit or wall, to its last picture; the seconds that took."""
        if self.random.random() < 0.7:
            page, given = "unit", {"unit": self.random.randrange(UNITS)}
        else:
            page, given = "layer", {"offset": 48 * self.random.randrange(4)}
        begin = time.perf_counter()
        message = BackMsg()
        message.rerun_script.page_name = page
        message.rerun_script.query_string = _view(page, **given).partition("?")[2]
        await self.socket.send(message.SerializeToString())
        shown = ""
        while True:
            told = ForwardMsg.FromString(await self.socket.recv())
            if told.WhichOneof("type") == "delta":
                shown += told.delta.new_element.html.body
            if told.WhichOneof("type") == "script_finished":
                break
        if f"<h1>{LAYER}" not in shown:
            raise RuntimeError(f"The view {page} {given} is not shown: {shown[-500:]}")
        pictures = [unescape(found) for found in re.findall(r'<img [^>]*src="([^"]+)"', shown)]
        for answer in await asyncio.gather(*map(self.http.get, dict.fromkeys(pictures))):
            answer.raise_for_status()
        return time.perf_counter() - begin


async def _crowd(page: Page, address: str, cookie: str, when: str) -> Comparison:
    """All look, and think about what they see.  At first the pictures are not drawn yet."""
    seconds: list[float] = []
    await _arrive(page, address, 20)
    end = time.perf_counter() + CROWD_LASTS

    async def browse() -> None:
        unit = 20
        while time.perf_counter() < end:
            unit += 1
            seconds.append(await _next_unit(page, unit))
            await asyncio.sleep(THINK_SECONDS)

    async def look(seed: int) -> None:
        async with _Other(address, cookie, seed) as other:
            await asyncio.sleep(THINK_SECONDS * other.random.random())
            while time.perf_counter() < end:
                seconds.append(await other.looks())
                await asyncio.sleep(THINK_SECONDS)

    await asyncio.gather(browse(), *(look(seed) for seed in range(OTHERS)))
    seconds.sort()
    what = f"one browser and {OTHERS} others, {THINK_SECONDS:g} s between, p95, {when}"
    return _row(what, "page", [seconds[int(0.95 * len(seconds))]], CROWD_SECONDS)


async def _memory(process: int, address: str, cookie: str) -> list[Comparison]:
    async with _Other(address, cookie, 99) as other:
        for _ in range(WARM_VIEWS):
            await other.looks()
        before = memory_mb(process)
        for _ in range(VIEWS):
            await other.looks()
        after = memory_mb(process)
    what = f"memory of API and dashboard after {VIEWS} more views"
    grown = Comparison(
        what, MODEL, f"{GROWTH:g} × before", "views",
        ours=[after], theirs=[GROWTH * before], at_least=1.0, measured="MB",
    )  # fmt: skip
    return [_row("memory of API and dashboard", "views", [after], MEMORY_MB, "MB"), grown]


def _view(page: str, **given: str | int) -> str:
    state = {"run": "squeeze", "layer": LAYER, **given}
    return f"/{page}?{urlencode(state)}"


def _row(
    what: str, per: str, values: Sequence[float], limit: float, measured: str = "seconds"
) -> Comparison:
    return Comparison.with_limit(what, MODEL, per, values, limit, measured)


# -- the service -----------------------------------------------------------------------------------


@contextmanager
def _service(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Its process, its address, and the cookie of somebody who is logged in."""
    environment = {**os.environ, "DECONVOY_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "service.cli", "up", "--ray", "none", "--port", "0"]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen([*command, str(folder / "squeeze")], env=environment,
                                   stdout=file, stderr=file)  # fmt: skip
    try:
        while not (found := re.search(r"Deconvoy is at (\S+)", log.read_text(encoding="utf-8"))):
            if process.poll() is not None:
                raise RuntimeError(f"the service did not start: {log.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        address = found[1]
        token = (folder / "home" / "token").read_text(encoding="utf-8").strip()
        with httpx.Client(base_url=address, headers={"Origin": address}, timeout=60) as client:
            client.post("/login", data={"token": token})
            ((name, value),) = client.cookies.items()
        yield process.pid, address, f"{name}={value}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _make_run(place: Path) -> None:
    """All units of a network with random weights, over a few images."""
    spec = JobSpec.parse(
        {
            "model": {"name": MODEL},
            "data": {"uri": "shapes?size=60&seed=1"},
            "analyses": [{"kind": "top"}, {"kind": "projection"}],
        }
    )
    job, run = create(spec, str(place))
    execute(job, run, InlineExecutor(), lambda advance: None)
