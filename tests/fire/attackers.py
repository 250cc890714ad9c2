"""What people with bad intent send: raw bytes, routes by the document, half-open connections, and
places that should never be asked.

Sockets are spoken to directly where a client would mend, refuse or reorder what is sent.
"""

import contextlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from service.database import Database
from service.scopes import Scope
from service.tokens import Tokens
from tests.runs import run_inline, small_spec
from tests.upped import Service

SECONDS = 20.0
"""An answer may take at most so long."""

SECRET = "nobody outside may see this"

METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")


@dataclass(frozen=True)
class Answer:
    """What came back on a socket, as it is."""

    status: int
    """0 where the connection was closed without a word."""
    headers: dict[str, str]
    body: bytes
    whole: bytes
    closed: bool
    """Whether the other side ended the connection."""


def say(address: str, said: bytes, seconds: float = SECONDS) -> Answer:
    """Send bytes as they are, and no more; read until the other side is silent or ends."""
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(said)
        whole, closed = heard(connection, seconds)
    return understood(whole, closed)


def heard(connection: socket.socket, seconds: float = SECONDS) -> tuple[bytes, bool]:
    """All that comes until an answer is whole or the connection ends, and whether it ended."""
    until, whole = time.monotonic() + seconds, b""
    while time.monotonic() < until:
        connection.settimeout(max(0.05, until - time.monotonic()))
        try:
            piece = connection.recv(2**16)
        except TimeoutError:
            break
        except ConnectionResetError:
            return whole, True
        if not piece:
            return whole, True
        whole += piece
        head, ends, body = whole.partition(b"\r\n\r\n")
        length = _fields(head).get("content-length", "")
        if ends and length.isdigit() and len(body) >= int(length):
            # A second answer, to what was smuggled behind, would follow at once.
            until = min(until, time.monotonic() + 0.1)
    return whole, False


def understood(whole: bytes, closed: bool) -> Answer:
    head, _, body = whole.partition(b"\r\n\r\n")
    status = head.split(b" ")[1] if head.startswith(b"HTTP/1.") else b"0"
    return Answer(int(status), _fields(head), body, whole, closed)


def _fields(head: bytes) -> dict[str, str]:
    lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    return {name.decode().lower(): value.decode("latin-1").strip() for name, _, value in lines}


def request(
    method: str, target: str, host: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """A request, its target as it stands."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    given = {"Connection": "close", **(headers or {})}
    if body and "Transfer-Encoding" not in given:
        given.setdefault("Content-Length", str(len(body)))
    lines += [f"{name}: {value}" for name, value in given.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@dataclass(frozen=True)
class Route:
    """One operation of the OpenAPI document, with values that lead somewhere."""

    method: str
    template: str
    path: str
    open: bool
    """Whether the document says that it asks for no token."""


def routes(document: Mapping[str, Any], values: Mapping[str, str]) -> Iterator[Route]:
    """Every operation, and HEAD beside every GET.

    Args:
        values: of the parts of paths.
    """
    for template, operations in document["paths"].items():
        path = template.format(**values)
        for method in METHODS:
            if method in operations:
                free = not operations[method].get("security")
                yield Route(method.upper(), template, path, free)
                # A stream has no HEAD; whoever asks for one still shows a token first, or is told
                # that there is no such method.
                if method == "get":
                    yield Route("HEAD", template, path, free)


@contextlib.contextmanager
def half_open(address: str, count: int, said: bytes) -> Iterator[list[socket.socket]]:
    """Connections that began to say something and are in no hurry."""
    parts = urlsplit(address)
    opened = [socket.create_connection((parts.hostname, parts.port), SECONDS) for _ in range(count)]
    try:
        for connection in opened:
            connection.sendall(said)
        yield opened
    finally:
        for connection in opened:
            connection.close()


@dataclass
class Lure:
    """A server of this machine that nobody should be brought to ask.

    ``/to/…`` of it redirects to ``elsewhere``, as a place that was a root and is no longer
    trustworthy would.
    """

    elsewhere: str = ""
    content: bytes = b""
    asked: list[str] = field(default_factory=list)
    address: str = ""


@contextlib.contextmanager
def lure(elsewhere: str = "", content: bytes = b"secret") -> Iterator[Lure]:
    """One, told what it was asked."""
    told = Lure(elsewhere, content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked.append(f"{self.command} {self.path}")
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", told.elsewhere + self.path.removeprefix("/to"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(told.content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(told.content)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """Nobody needs it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    told.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield told
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


# -- what is said in names -------------------------------------------------------------------------

HACKED = "window.hacked=1"
HOSTILE = (
    f"<img src=x onerror={HACKED}>",
    f'"><svg onload={HACKED}>',
    f"'onmouseover='{HACKED}",
    f"<script>{HACKED}<",
    "{{7*7}}${HOME}{0.__class__}%s$name",
    "![x](http:evil.example) [y](javascript:alert(1))",
    "<style>*{background:url(http:evil.example)}<",
    "&lt;b&gt; \N{RIGHT-TO-LEFT OVERRIDE}\N{FULLWIDTH LESS-THAN SIGN}b\N{COMBINING ACUTE ACCENT}",
)
"""Names of folders and files; a slash they cannot have."""

SPOKEN = f"</title></script><script>{HACKED}</script><img src=x onerror={HACKED}>"
"""A text that may have a slash: of specs, runs and tags."""


def hostile_photographs(folder: Path) -> None:
    """A picture of noise in each of some folders, whose names are its class, and its own."""
    noise = np.random.default_rng(0)
    for name in HOSTILE:
        place = folder / name / f"{name}.png"
        place.parent.mkdir(parents=True)
        Image.fromarray(noise.integers(0, 256, (70, 70, 3), dtype=np.uint8)).save(place)


class Fortress:
    """A service with runs, tokens of every scope, and secrets just outside of what it may show.

    Args:
        folder: an empty one.
        options: further ones of ``deconvoy up``.
        roots: places besides its folder of images that jobs may read.
    """

    def __init__(self, folder: Path, *options: str, roots: Sequence[str] = ()) -> None:
        self.folder, self.home = folder, folder / "home"
        self.data, self.runs = folder / "data", self.home / "runs"
        hostile_photographs(self.data / "photographs")
        analyses = [{"kind": "top"}, {"kind": "projection", "units": {"ids": [0, 1]}}]
        where = {"uri": str(self.data / "photographs")}
        layers = ["relu2", "logits"]
        spec = small_spec(name=SPOKEN[:200], data=where, layers=layers, analyses=analyses)
        run_inline(spec, self.runs / "plain")
        shutil.copytree(self.runs / "plain", self.runs / HOSTILE[0])
        shutil.copytree(self.runs / "plain", folder / "secret")
        (folder / "secret.txt").write_text(SECRET)
        (self.data / "link.png").symlink_to(folder / "secret.txt")
        shutil.copytree(self.runs / "plain", self.runs / "outward")
        self._outward(self.runs / "outward")
        data = [option for place in (str(self.data), *roots) for option in ("--data", place)]
        self.service = Service(self.home, *options, *data)
        self.tokens: dict[str, str] = {}

    def _outward(self, run: Path) -> None:
        """Links in a run that lead out of it, to a file, to a folder, to themselves."""
        (run / "out.json").symlink_to(self.folder / "secret.txt")
        (run / "layers" / "out").symlink_to(self.folder)
        (run / "images" / "loop").symlink_to(run / "images" / "loop")
        (self.runs / "linked").symlink_to(self.folder / "secret.txt")

    def __enter__(self) -> "Fortress":
        self.service.start()
        database = Database(f"sqlite:///{self.home / 'catalogue.db'}")
        known = Tokens(database)
        for scope in Scope:
            self.tokens[scope.value] = known.create(scope.value, scope)
        self.tokens["expired"] = known.create("expired", Scope.admin, -timedelta(seconds=1))
        self.tokens["revoked"] = known.create("revoked", Scope.admin)
        known.revoke("revoked")
        database.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.stop()

    @property
    def url(self) -> str:
        return self.service.url

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def bearer(self, scope: str = "admin") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[scope]}"}

    def sends(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        seconds: float = SECONDS,
    ) -> Answer:
        """A request whose target stands as it is."""
        return say(self.url, request(method, target, self.host, headers, body), seconds)

    def memory(self) -> float:
        """Of the service's own process, in MiB."""
        pages = Path(f"/proc/{self.service.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20
