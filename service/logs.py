"""The log of the service: one line a request, and what its processes say, as text or JSON.

A line has the path's template, never the query, where a one-time code may be; no header is ever
logged.
"""

import logging
import re
import secrets
import sys
import time
from typing import Any, Literal

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics

log = structlog.get_logger("service.requests")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""One that a caller may choose."""

LEFT = 499
"""The status, as nginx has it, of who went away before there was an answer: no fault of ours."""

UNKNOWN_ROUTE = "none"
"""Of a path that is no route's, so that probing does not fill the metrics."""

OURS = ("deconvoy", "workers", "service")
"""Loggers whose information is told, too; of libraries only warnings are."""

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def configure(form: Literal["json", "text"]) -> None:
    """Write the log of requests to standard error."""
    first, last = _processors(form)
    structlog.configure(
        processors=[*first, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # Looked up for every line: who starts the service may put another file in its place.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def configure_process(form: Literal["json", "text"]) -> None:
    """Write all that this process says to standard error, in the same form: what libraries and our
    other modules log with Python's own ``logging``, too."""
    first, last = _processors(form)
    said = logging.StreamHandler(sys.stderr)
    said.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[said], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def _processors(form: Literal["json", "text"]) -> tuple[list[Any], Any]:
    """What adds to a line, and what makes it text."""
    last: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            # Plain: the other formatter shows the locals of every frame, and there may be a token.
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    first: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        first.append(structlog.processors.format_exc_info)
    return first, last


class RequestLog:
    """Middleware: numbers every request, times it, and says a line about it when it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        begin, status = time.perf_counter(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            with structlog.contextvars.bound_contextvars(request=request_id):
                await self.app(scope, receive, watched)
            status = status or LEFT
        finally:
            _tell(scope, request_id, status or 500, time.perf_counter() - begin)


def _tell(scope: Scope, request_id: str, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
    method = scope["method"] if scope["method"] in METHODS else "other"
    caller = scope.get("state", {}).get("caller")
    metrics: Metrics = scope["app"].state.metrics
    metrics.answered(method, route, status, seconds)
    log.info(
        "answered",
        method=method,
        route=route,
        status=int(status),
        ms=round(1000 * seconds, 1),
        caller=getattr(caller, "name", None),
        request=request_id,
    )


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
