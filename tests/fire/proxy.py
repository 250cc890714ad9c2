"""A small HTTP proxy between the client and a real S3 server, which spoils answers on purpose.

It knows nothing of S3: requests go on as they are, and what comes back is handed on, late, cut off,
or not at all.  Which requests are spoiled, and how, follows from a seed and their number alone, so
that a schedule can be played again; a storm spoils all of them until it is over.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

REFUSALS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "403": (403, "AccessDenied", "Access Denied"),
    "key": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist."),
}
"""Answers that never reach the server: status, and S3's own code and message."""

FAULTS = ("500", "503", "slow", "partial", "cut", "lost")
"""What a schedule draws from.  ``slow`` trickles; ``partial`` says how long it is and ends half
way; ``cut`` closes the connection before the server has heard of anything, ``lost`` after it has
done what was asked."""

SLOW_SECONDS = 0.5


@dataclass
class Weather:
    """Which requests are spoiled.

    Args:
        seed: of the schedule.
        every: requests from the start of one spell to the start of the next, on average; 0: none.
        spell: requests that a spell lasts at most.
        faults: to draw from.
        only: requests whose path holds it; all others pass.
    """

    seed: int = 0
    every: int = 0
    spell: int = 3
    faults: tuple[str, ...] = FAULTS
    only: str = ""
    storm: str = ""
    """A fault that every request meets while it is set."""
    injected: Counter[str] = field(default_factory=Counter)
    requests: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._rng = random.Random(self.seed)
        self._spells = self._drawn()
        self._next = next(self._spells)

    def _drawn(self) -> Iterator[tuple[int, int, str]]:
        """First request of a spell, the one behind its last, and its fault: all of them in turn, in
        an order that is drawn anew each round."""
        at = 0
        while True:
            for fault in self._rng.sample(self.faults, len(self.faults)):
                at += self._rng.randint(1, 2 * self.every) if self.every else 10**12
                stop = at + self._rng.randint(1, self.spell)
                yield at, stop, fault
                at = stop

    def fault_of(self, path: str) -> str:
        """What the request at hand meets; empty where it passes."""
        with self._lock:
            if self.only not in path:
                return ""
            self.requests += 1
            while self.requests >= self._next[1]:
                self._next = next(self._spells)
            start, _, drawn = self._next
            fault = self.storm or (drawn if self.requests >= start else "")
            if fault:
                self.injected[fault] += 1
            return fault

    @contextmanager
    def raging(self, fault: str) -> Iterator[None]:
        """Every request meets this until the block ends."""
        self.storm = fault
        try:
            yield
        finally:
            self.storm = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def _hand_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.weather.fault_of(self.path)
        if fault in REFUSALS:
            self._refuse(*REFUSALS[fault])
            return
        if fault == "cut":
            self.close_connection = True
            return
        status, headers, content = self._asked(body)
        if fault == "lost":
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = dict((name.lower(), value) for name, value in headers).get("content-length")
        self.send_header("Content-Length", length if length is not None else str(len(content)))
        self.end_headers()
        if fault == "partial" and not content:  # of an answer without a body nothing can be half
            self.close_connection = True
        elif fault == "partial":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "slow":
            for start in range(0, len(content), -(-len(content) // 4)) if content else ():
                time.sleep(SLOW_SECONDS / 4)
                self.wfile.write(content[start : start + -(-len(content) // 4)])
                self.wfile.flush()
        else:
            self.wfile.write(content)

    def _asked(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the real server answers."""
        onward = HTTPConnection(*self.server.behind, timeout=60)
        try:
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                onward.putheader(name, value)
            onward.endheaders(body)
            answer = onward.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            onward.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        content = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
            f"<Message>{message}</Message></Error>"
        ).encode()
        if self.command == "HEAD":
            content = b""
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _hand_on

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, HTTPException):  # the client has gone, as it may
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Tests print figures, not requests."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    weather: Weather
    behind: tuple[str, int]


class Proxy:
    """The proxy while it stands; ``weather`` may be set anew at any time."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.address = f"http://127.0.0.1:{server.server_address[1]}"

    @property
    def weather(self) -> Weather:
        return self._server.weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._server.weather = weather


@contextmanager
def proxy_before(address: str) -> Iterator[Proxy]:
    """A proxy before the server at this address, in threads of its own; the weather is calm."""
    behind = urlsplit(address)
    server = _Server(("127.0.0.1", 0), _Handler)
    assert behind.hostname and behind.port
    server.behind, server.weather = (behind.hostname, behind.port), Weather()
    serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    serving.start()
    try:
        yield Proxy(server)
    finally:
        server.shutdown()
        server.server_close()
        serving.join(10)
