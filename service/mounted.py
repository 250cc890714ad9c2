"""The dashboard on the service's own port: its pages where the API has no routes.

The dashboard is put together from the path of its script, so nothing here imports it.  What its
pages ask of the API they ask as whoever looks at them: see ``Gate.seen_by``.
"""

import gc
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import FastAPI, HTTPException
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from deconvoy.errors import MissingExtra
from service import app
from service.auth import LOOKING, Gate, Scope
from service.guards import POLICY_VIOLATION, guards, problem_response
from service.settings import MIB

LOGIN = "/login"

UPLOADS = "/_stcore/upload_file/"
"""Streamlit's address for files that people hand in."""

WHERE = 'window.__streamlit={BACKEND_BASE_URL:location.origin+"/"}'

PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    # Streamlit makes scripts and styles as it runs; but nothing is asked of other hosts.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

BEHIND_GUARDS: dict[str, Any] = {
    "server.enableCORS": False,
    "server.enableXsrfProtection": False,
}
"""``guards`` looks at Host and Origin already, by the names of this service; Streamlit would ask
other hosts for the address of this machine to judge them."""


def with_dashboard(api: FastAPI, address: str) -> Any:
    """API and dashboard as one ASGI application.

    Args:
        api: of ``create_app``.
        address: where it can be reached from this machine: ``http://127.0.0.1:8000``.

    Raises:
        MissingExtra: the dashboard is not installed.
    """
    try:
        import streamlit
        from streamlit import config
        from streamlit import logger as streamlit_logger
    except ModuleNotFoundError as error:
        raise MissingExtra("dashboard", "The dashboard") from error
    gate: Gate = api.state.gate
    # It gives every logger of its own and of the server a handler, now and whenever it reads its
    # configuration or is asked for another one; each time through this function.
    streamlit_logger.setup_formatter = _leave_to_the_process
    streamlit_logger.update_formatter()

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[dict[str, Any] | None]:
        async with app.started(api):
            # After each run of a script Streamlit collects all garbage.  What is loaded by now
            # stays, and looking through it would hold everybody up for a tenth of a second.
            gc.collect()
            gc.freeze()
            yield None

    pages = streamlit.App(
        script(),
        secrets={
            "service": {
                "address": address,
                "key": gate.key,
                "jobs": api.state.queue is not None,
            }
        },
        lifespan=lifespan,
        middleware=[
            Middleware(ApiFirst, api=api),
            *guards(api.state.settings),
            Middleware(Doorkeeper, gate=gate),
            Middleware(FrontPage, html=front_page(Path(streamlit.__file__).parent)),
        ],
    )
    most = {"server.maxUploadSize": max(1, api.state.settings.upload_bytes // MIB)}
    for option, value in {**BEHIND_GUARDS, **most}.items():
        config.set_option(option, value)
    return pages


def _leave_to_the_process(logger: logging.Logger) -> None:
    """Let it say what it says as all others of this process do: ``logs.configure_process``."""
    handler = logger.__dict__.pop("streamlit_console_handler", None)
    if handler is not None:
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def script() -> Path:
    """Of the dashboard.

    Raises:
        MissingExtra: there is none.
    """
    package = find_spec("dashboard")
    if package is None or package.origin is None:
        raise MissingExtra("dashboard", "The dashboard")
    return Path(package.origin).with_name("app.py")


OF_THE_API = frozenset(("v1", "docs", "openapi.json", "healthz", "metrics", "login", "logout"))
"""How its paths begin, those that it does not know, too."""


def front_page(streamlit: Path) -> str:
    """Streamlit's page, the same under every address.

    Its script would look for the server below the address of the view first, and meet errors.

    Args:
        streamlit: folder of the package.
    """
    html = (streamlit / "static" / "index.html").read_text(encoding="utf-8")
    html = html.replace("<head>", f"<head><script>{WHERE}</script>", 1)
    html = html.replace("<title>Streamlit</title>", "<title>Deconvoy</title>", 1)
    return re.sub(r'<link[^>]*rel="preload"[^>]*as="font"[^>]*>', "", html)


def _first(path: str) -> str:
    """The first part of a path; nothing of a target that is none."""
    return path[1:].partition("/")[0] if path.startswith("/") else ""


class ApiFirst:
    """To the API what is its own; all else are pages."""

    def __init__(self, app: ASGIApp, api: ASGIApp) -> None:
        self.app = app
        self.api = api

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        # `*` and `host:port` are targets, too, and no paths.
        ours = scope["type"] == "http" and _first(scope["path"]) in OF_THE_API
        await (self.api if ours else self.app)(scope, receive, send)


class Doorkeeper:
    """Lets those look who may read; sends browsers to the login."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            connection = HTTPConnection(scope)
            try:
                # What is handed in stays in memory for as long as the browser looks.
                needed = Scope.submit if UPLOADS in scope["path"] else Scope.read
                await to_thread.run_sync(self.gate.seen_by, connection, needed)
            except HTTPException as refusal:
                await self._turn_away(refusal, scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _turn_away(
        self, refusal: HTTPException, scope: Connection, receive: Receive, send: Send
    ) -> None:
        if scope["type"] == "websocket":
            reason = refusal.detail[:120]
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
            return
        accepts = HTTPConnection(scope).headers.get("accept", "")
        answer: Response
        if "text/html" in accepts:
            url = HTTPConnection(scope).url
            asked = quote(f"{url.path}?{url.query}" if url.query else url.path)
            answer = RedirectResponse(f"{LOGIN}?next={asked}", HTTPStatus.SEE_OTHER)
        else:
            status = HTTPStatus(refusal.status_code)
            answer = problem_response(status, status.phrase, refusal.detail, "Authorization")
        await answer(scope, receive, send)


class FrontPage:
    """The page of every view: addresses of one part that name no file.  Streamlit has its own at
    all others, which is shown under the same policy."""

    def __init__(self, app: ASGIApp, html: str) -> None:
        self.app = app
        self.page = HTMLResponse(html, headers=PAGE_HEADERS)

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in LOOKING:
            _, *parts = scope["path"].split("/")
            if len(parts) == 1 and "." not in parts[0]:
                await self.page(scope, receive, send)
                return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.update(PAGE_HEADERS)
            await send(message)

        await self.app(scope, receive, guarded)
