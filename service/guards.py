"""What every request meets before any route: which Host, which Origin, how large a body.

Pure ASGI, for HTTP and websockets alike.
"""

from functools import partial
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth import COOKIE
from service.settings import Settings

LOOPBACK = ("127.0.0.1", "localhost", "::1")
UPLOADS = ("/v1/uploads", "/_stcore/upload_file/")
"""Where images are handed in, which are larger than other bodies: to the API, to the dashboard."""
LOGIN = "/login"
FORM_BYTES = 16 * 1024
"""Of the login's form, at most: it is read before anybody knows whose it is."""
SAFE = ("GET", "HEAD", "OPTIONS")
ELSEWHERE = ("same-site", "cross-site")
"""What browsers say in Sec-Fetch-Site of a page that is not of the same origin."""
POLICY_VIOLATION = 1008
DEFAULT_PORTS = {"http": 80, "https": 443}
_GONE: Message = {"type": "http.disconnect"}


def guards(settings: Settings) -> list[Middleware]:
    """In their order, outermost first: ``FastAPI(middleware=guards(settings))``."""
    named = tuple(map(_plain, settings.hosts))
    return [
        Middleware(CodeGuard),
        Middleware(HostGuard, names=frozenset((*LOOPBACK, _plain(settings.host), *named))),
        Middleware(OriginGuard, names=frozenset(named)),
        Middleware(BodyGuard, most=settings.body_bytes, images=settings.upload_bytes),
    ]


def problem_response(status: int, title: str, detail: str, field: str) -> JSONResponse:
    """As RFC 9457 has it.

    Args:
        field: what of the request is wrong: a header, say.
    """
    content = {
        "type": "about:blank", "title": title, "status": status, "detail": detail, "field": field,
    }  # fmt: skip
    return JSONResponse(content, status, media_type="application/problem+json")


class CodeGuard:
    """Keeps login codes out of the server's access log, which shows the query as it finds it once
    the response begins."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/login") and scope["query_string"]:
            inner = dict(scope)
            scope["query_string"] = b"hidden"
            await self.app(inner, receive, send)
        else:
            await self.app(scope, receive, send)


class HostGuard:
    """Names this service goes by.  A page elsewhere whose name was made to lead here (DNS
    rebinding) sends its own."""

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            hosts = Headers(scope=scope).getlist("host")
            name = _authority(hosts[0]).hostname if len(hosts) == 1 else None
            if name is None or _plain(name) not in self.names:
                shown = ", ".join(hosts)[:100]
                detail = (
                    f"The Host {shown!r} is no name of this service: use the address it printed, "
                    f"or add the name to DECONVOY_HOSTS."
                )
                await _refuse(HTTPStatus.MISDIRECTED_REQUEST, detail, "Host", scope, receive, send)
                return
        await self.app(scope, receive, send)


class OriginGuard:
    """Pages that may change something, open a websocket, or look in the name of a browser's
    session: those that came from here, or from a name of ``hosts``, under which a proxy may show
    the service.

    SameSite keeps the session from other sites; to a browser another port of this host is none.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asks = scope["type"] == "websocket" or scope.get("method") not in (None, *SAFE)
        headers = Headers(scope=scope) if asks else Headers()
        if self._foreign(headers):
            detail = (
                f"A page of the Origin {headers.get('origin', '')[:100]!r} may not do this: only "
                f"pages of this service may."
            )
            await _refuse(HTTPStatus.FORBIDDEN, detail, "Origin", scope, receive, send)
            return
        if not asks and self._looks_for_another(scope):
            detail = (
                "A page of another origin may not look in the name of this browser's session: open "
                "the address itself, or send a token."
            )
            await _refuse(HTTPStatus.FORBIDDEN, detail, "Origin", scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _foreign(self, headers: Headers) -> bool:
        origins = headers.getlist("origin")  # programs send none
        return any(not self._ours(origin, headers.get("host", "")) for origin in origins)

    def _looks_for_another(self, scope: Scope) -> bool:
        """Whether a session came with what a page of another origin loads; following a link is no
        such thing."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if COOKIE not in headers.get("cookie", "") or "authorization" in headers:
            return False
        site, mode = (headers.get(f"sec-fetch-{name}") for name in ("site", "mode"))
        return self._foreign(headers) or (site in ELSEWHERE and mode != "navigate")

    def _ours(self, origin: str, host: str) -> bool:
        try:
            page = urlsplit(origin)
            default = DEFAULT_PORTS.get(page.scheme)
            here = _authority(host)
            if page.hostname is None or default is None:
                return False
            same_port = (page.port or default) == (here.port or default)
        except ValueError:
            return False
        return (page.hostname == here.hostname and same_port) or _plain(page.hostname) in self.names


class BodyGuard:
    """Bodies of at most ``most`` bytes (``images`` where those are handed in, ``FORM_BYTES`` at the
    login), whether or not they say how long they are, and whatever they say.

    They are counted as they are read, so nothing is kept of what a stranger sends.
    """

    def __init__(self, app: ASGIApp, most: int, images: int) -> None:
        self.app = app
        self.most = most
        self.images = images

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most, refuse = self._limit(scope["path"])
        headers = Headers(scope=scope)
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:
            # Which of the two counts, servers and proxies do not agree on.
            detail = "The request has a Content-Length and a Transfer-Encoding: send one of them."
            await _refuse_length(detail, scope, receive, send)
        elif length is not None and not (length.isascii() and length.isdigit()):
            detail = f"The Content-Length {length[:100]!r} is no whole number of bytes: send one."
            await _refuse_length(detail, scope, receive, send)
        elif length is not None and (len(length) > 18 or int(length) > most):
            await refuse(scope, receive, send)
        else:
            await self._counted(most, refuse, scope, receive, send)

    def _limit(self, path: str) -> tuple[int, ASGIApp]:
        if path.startswith(UPLOADS):
            return self.images, partial(self._refuse, self.images, "UPLOAD")
        if path.endswith(LOGIN):
            return FORM_BYTES, _refuse_form
        return self.most, partial(self._refuse, self.most, "BODY")

    async def _counted(
        self, most: int, refuse: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Who reads more than ``most`` bytes is told that the caller is gone, and the caller that
        it was too much; unless the answer has begun, which is then cut off."""
        count, begun = 0, False

        async def counting() -> Message:
            nonlocal count
            message = await receive() if count <= most else _GONE
            count += len(message.get("body", b""))
            return message if count <= most else _GONE

        async def sending(message: Message) -> None:
            nonlocal begun
            if count <= most or begun:
                begun = True
                await send(message)

        try:
            await self.app(scope, counting, sending)
        except ClientDisconnect:
            pass  # nobody is there to be told, unless it was we who said so
        except Exception:
            if count <= most or begun:
                raise
        if count > most and not begun:
            await refuse(scope, receive, send)

    async def _refuse(
        self, most: int, setting: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        detail = (
            f"The body of this request has more than {most} bytes, the most that "
            f"DECONVOY_{setting}_BYTES allows: send less."
        )
        await _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, "body", scope, receive, send)


async def _refuse_form(scope: Scope, receive: Receive, send: Send) -> None:
    detail = f"The form has more than {FORM_BYTES} bytes: send a token, which is far shorter."
    await _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail, "body", scope, receive, send)


async def _refuse_length(detail: str, scope: Scope, receive: Receive, send: Send) -> None:
    await _refuse(HTTPStatus.BAD_REQUEST, detail, "Content-Length", scope, receive, send)


async def _refuse(
    status: HTTPStatus, detail: str, field: str, scope: Scope, receive: Receive, send: Send
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": detail[:120]})
        return
    response = problem_response(status, status.phrase, detail, field)
    # What is left of the body stays unread, so the connection is good for nothing more.
    response.headers["connection"] = "close"
    await response(scope, receive, send)


def _authority(host: str) -> SplitResult:
    """``name:port`` taken apart; without a name where it is none."""
    try:
        parts = urlsplit(f"//{host}")
        plain = parts.port is None or parts.port >= 0
    except ValueError:
        plain = False
    named = plain and not parts.path and parts.username is None and not parts.query
    return parts if named and not parts.fragment else urlsplit("//")


def _plain(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")
