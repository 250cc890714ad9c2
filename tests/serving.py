"""The service under a real server, in a thread of the test."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings

SECONDS_TO_START = 30


def settings_of(folder: Path, **fields: Any) -> Settings:
    """A service whose home is ``folder``; without tokens unless told."""
    return Settings(**{"home": folder, "tokens": False, "ray": "none", **fields})


def with_runs(folder: Path, *runs: Path) -> Path:
    """A folder with copies of runs, to be a runs root."""
    for run in runs:
        shutil.copytree(run, folder / run.name)
    return folder


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Yields its address."""
    with serving(uvicorn.Config(app, log_level="error", access_log=False)) as address:
        yield address


@contextmanager
def serving(config: uvicorn.Config) -> Iterator[str]:
    """Yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    until = time.monotonic() + SECONDS_TO_START
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()


@contextmanager
def client_of(settings: Settings, **headers: str) -> Iterator[httpx.Client]:
    """Somebody who asks a service of these settings."""
    with (
        served(create_app(settings)) as address,
        httpx.Client(base_url=address, headers=headers, timeout=60) as client,
    ):
        yield client


def problem_of(answer: httpx.Response, status: int, field: str | None = None) -> str:
    """The detail of a problem, which is of this status and about this field."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status and told["type"] == "about:blank" and told["title"]
    # What is wrong of a request where its status alone tells.
    usual = {400: ("Content-Length",), 401: ("Authorization",), 403: ("Authorization", "Origin"),
             404: ("path",), 405: ("method",), 413: ("body",), 421: ("Host",),
             429: ("Authorization",)}  # fmt: skip
    assert told.get("field") == field or (field is None and told["field"] in usual[status]), told
    detail: str = told["detail"]
    assert len(detail) > 20 and (status == 500 or detail.endswith((".", "?")))
    return detail
