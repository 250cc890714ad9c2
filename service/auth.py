"""Who a request is, and what it may do: a token, a browser's session, or nobody.

Programs send ``Authorization: Bearer dv_…``.  A browser holds a session cookie, which other sites
cannot use (SameSite=Strict) and which is good for looking only.
"""

import functools
import hmac
import secrets
from dataclasses import dataclass

from fastapi import HTTPException, WebSocketException
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import Response

from deconvoy.errors import RequestError
from service import token_file
from service.catalogue import Catalogue
from service.scopes import Scope as Scope
from service.sessions import SESSION_LIFETIME, Sessions
from service.settings import Settings
from service.tokens import ANONYMOUS, Token, Tokens

LOOKING = ("GET", "HEAD")
COOKIE = "deconvoy-session"
POLICY_VIOLATION = 1008
"""How a websocket is refused."""

NO_TOKEN = (
    "This needs a token: send `Authorization: Bearer dv_…` with one that `deconvoy token create` "
    "made, or open /login in a browser."
)
# Who holds all 256 bits of a token may learn what became of it; nobody else learns that it was one.
REFUSED = {
    "unknown": "This token is none that is known here: check it, or ask for a new one.",
    "expired": "This token has expired: ask for a new one.",
    "revoked": "This token was revoked: ask for a new one.",
}
SESSION_OVER = "This browser's session is over: open /login again."


@dataclass(frozen=True)
class Caller:
    """``name`` is that of the token."""

    name: str
    scope: Scope


DASHBOARD = Caller("dashboard", Scope.read)
"""What it reads for all who look at it; they were let in before."""


class Gate:
    """Lets requests in.  ``open`` comes first."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self.settings = settings
        self.tokens = Tokens(catalogue.database)
        self.sessions = Sessions(catalogue.database)
        self.key = secrets.token_urlsafe(32)
        """Of the dashboard in this process, which asks in a browser's name what that does at its
        pages.  A session alone would not do: cookies do not tell ports apart, so whatever listens
        on another port of this host may see it."""
        self._local: Token | None = None

    def open(self) -> None:
        """Refuse to serve strangers; on a loopback address, make sure of the local token."""
        if self.settings.on_loopback:
            if self.settings.tokens:
                self._ensure_local()
            return
        address = f"The service would listen on {self.settings.host!r}, beyond this machine,"
        if not self.settings.tokens:
            raise RequestError(
                f"{address} and ask nobody for a token: leave DECONVOY_TOKENS on, or set "
                f"DECONVOY_HOST to 127.0.0.1."
            )
        if not self.tokens.any_valid():
            raise RequestError(
                f"{address} but there is no token to come in with: make one with "
                f"`deconvoy token create NAME --scope admin`."
            )

    def admit(self, connection: HTTPConnection, needed: Scope) -> Caller:
        """Whose request this is.

        Raises:
            HTTPException: 401, it is nobody's; 403, it may not do what needs that scope.
        """
        return _allowed(self._caller(connection), needed)

    def seen_by(self, connection: HTTPConnection, needed: Scope) -> Caller:
        """Who looks at the dashboard; its own requests, a websocket and uploads, are none that
        another site could make a browser send.

        Raises:
            HTTPException: 401, nobody; 403, it may not do what needs that scope.
        """
        if not self.settings.tokens or "authorization" in connection.headers:
            return self.admit(connection, needed)
        return _allowed(self._caller_by_session(_session_of(connection)), needed)

    def link(self, address: str) -> str:
        """Where to look with a browser.  With a local token the link lets one browser in, once.

        Args:
            address: ``http://127.0.0.1:8000``.
        """
        if not self.settings.tokens:
            return f"{address}/"
        if self._local is None:
            return f"{address}/login"
        return f"{address}/login?code={self.sessions.new_code(self._local)}"

    def log_in(self, secret: str) -> str | None:
        """A session for a token; None where it is not valid."""
        token = self.tokens.find(secret)
        valid = token is not None and token.state == "valid"
        return self.sessions.begin(token) if token is not None and valid else None

    def log_in_by_code(self, code: str) -> str | None:
        """A session for a login code; None where it was used, is too old, or never was."""
        token = self.sessions.redeem(code)
        return None if token is None else self.sessions.begin(token)

    def _caller(self, connection: HTTPConnection) -> Caller:
        if not self.settings.tokens:
            return Caller(ANONYMOUS, Scope.admin)
        header = connection.headers.get("authorization")
        if header is not None:
            return self._caller_by_token(header)
        caller = self._caller_by_session(_session_of(connection))
        method = connection.scope.get("method", "GET")  # a websocket has none
        if method not in LOOKING:
            raise HTTPException(
                403,
                f"A browser's session is good for looking only: {method} needs a token, sent as "
                f"`Authorization: Bearer dv_…`.",
            )
        return caller

    def _caller_by_session(self, session: str | None) -> Caller:
        if session is None:
            raise _unauthorised(NO_TOKEN)
        token = self.sessions.find(session)
        if token is None:
            raise _unauthorised(SESSION_OVER)
        return Caller(token.name, token.scope)

    def _caller_by_token(self, header: str) -> Caller:
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise _unauthorised(NO_TOKEN)
        key, _, session = secret.strip().partition(".")
        if hmac.compare_digest(key.encode(), self.key.encode()):
            return self._caller_by_session(session) if session else DASHBOARD
        token = self.tokens.find(secret.strip())
        state = "unknown" if token is None else token.state
        if token is None or state != "valid":
            raise _unauthorised(REFUSED[state], "invalid_token")
        return Caller(token.name, token.scope)

    def _ensure_local(self) -> None:
        secret = token_file.read(self.settings.token_file)
        token = self.tokens.find(secret) if secret else None
        if token is None or token.state != "valid" or token.scope != Scope.admin:
            secret = self.tokens.create_local()
            token = self.tokens.find(secret)
            token_file.write(self.settings.token_file, secret)
        self._local = token


class Requires(SecurityBase):
    """The dependency that ``requires`` gives; OpenAPI shows it as the scheme ``token``."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.scheme_name = "token"
        self.model = HTTPBearer(description="A token that `deconvoy token create` made.")

    async def __call__(self, connection: HTTPConnection) -> Caller:
        known: Caller | None = getattr(connection.state, "caller", None)
        if known is not None and known.scope >= self.scope:  # a guarded route has asked already
            return known
        gate: Gate = connection.app.state.gate
        try:
            caller = await run_in_threadpool(gate.admit, connection, self.scope)
        except HTTPException as refusal:
            if connection.scope["type"] == "websocket":
                raise WebSocketException(POLICY_VIOLATION, refusal.detail) from refusal
            raise
        connection.state.caller = caller  # for the log, too
        return caller


@functools.cache
def requires(scope: Scope) -> Requires:
    """A dependency of routes: ``caller: Annotated[Caller, Depends(requires(Scope.read))]``."""
    return Requires(scope)


def cookie_name(connection: HTTPConnection) -> str:
    """Of the session.  Cookies do not tell ports apart, and two services may share a host."""
    port = connection.url.port
    return COOKIE if port is None else f"{COOKIE}-{port}"


def _session_of(connection: HTTPConnection) -> str | None:
    return connection.cookies.get(cookie_name(connection))


def _allowed(caller: Caller, needed: Scope) -> Caller:
    if caller.scope < needed:
        raise HTTPException(
            403,
            f"This needs a token of scope {needed.value!r}, and yours has {caller.scope.value!r}: "
            "ask an operator for one (`deconvoy token create`).",
            {"WWW-Authenticate": _challenge("insufficient_scope", scope=needed.value)},
        )
    return caller


def set_cookie(response: Response, connection: HTTPConnection, session: str) -> None:
    response.set_cookie(
        cookie_name(connection),
        session,
        max_age=int(SESSION_LIFETIME.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=connection.url.scheme in ("https", "wss"),
    )


def _challenge(error: str | None = None, **parameters: str) -> str:
    told = {"realm": "deconvoy", **({"error": error} if error else {}), **parameters}
    return "Bearer " + ", ".join(f'{name}="{value}"' for name, value in told.items())


def _unauthorised(detail: str, error: str | None = None) -> HTTPException:
    return HTTPException(401, detail, {"WWW-Authenticate": _challenge(error)})
