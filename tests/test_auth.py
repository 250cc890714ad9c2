"""Who is let in: tokens, scopes, browsers' sessions, login codes, the local token."""

import base64
import html
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI, Request, WebSocket
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from deconvoy.errors import RequestError
from service import catalogue_tables as tables
from service.api import login
from service.auth import Caller, Gate, Scope, requires
from service.catalogue import Catalogue
from service.guards import guards, problem_response
from service.settings import Settings, read_settings
from service.up import server_config
from tests.browsers import TestClient
from tests.serving import serving

ORIGIN = "http://127.0.0.1:8000"
LIVE = "ws://127.0.0.1:8000/live"
DAY = timedelta(days=1)


@dataclass
class Service:
    """A small application behind the gate, and a client of it."""

    gate: Gate
    app: FastAPI
    home: Path

    def browser(self, origin: str = ORIGIN) -> TestClient:
        return TestClient(self.app, base_url=origin, follow_redirects=False)

    def get(self, path: str, token: str | None = None, method: str = "GET", **headers: str) -> Any:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return self.browser().request(method, path, headers=headers)


def application(settings: Settings, gate: Gate) -> FastAPI:
    app = FastAPI(middleware=guards(settings))
    app.state.gate = gate
    app.include_router(login.router)

    @app.exception_handler(HTTPException)
    async def told(request: Request, error: HTTPException) -> Response:
        response = problem_response(error.status_code, "Refused", error.detail, "Authorization")
        response.headers.update(error.headers or {})
        return response

    @app.get("/")
    @app.head("/", include_in_schema=False)
    def look(caller: Annotated[Caller, Depends(requires(Scope.read))]) -> dict[str, str]:
        return {"name": caller.name, "scope": caller.scope}

    @app.post("/jobs")
    def submit(caller: Annotated[Caller, Depends(requires(Scope.submit))]) -> dict[str, str]:
        return {"name": caller.name, "scope": caller.scope}

    @app.delete("/all")
    def clear(caller: Annotated[Caller, Depends(requires(Scope.admin))]) -> dict[str, str]:
        return {"name": caller.name, "scope": caller.scope}

    @app.websocket("/live")
    async def watch(
        socket: WebSocket, caller: Annotated[Caller, Depends(requires(Scope.read))]
    ) -> None:
        await socket.accept()
        await socket.send_text(caller.name)
        await socket.close()

    return app


@pytest.fixture
def make(tmp_path: Path, catalogue: Catalogue) -> Callable[..., Service]:
    def made(**changes: Any) -> Service:
        settings = Settings(home=tmp_path / "own", **changes)
        gate = Gate(settings, catalogue)
        return Service(gate, application(settings, gate), settings.home)

    return made


@pytest.fixture
def service(make: Callable[..., Service]) -> Iterator[Service]:
    yield make()


def log_in(service: Service, browser: TestClient, scope: Scope = Scope.admin) -> str:
    """The token that the browser logged in with, named like its scope."""
    token = service.gate.tokens.create(scope.value, scope)
    answer = browser.post("/login", data={"token": token}, headers={"Origin": ORIGIN})
    assert answer.status_code == 303
    return token


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [("GET", "/", Scope.read), ("POST", "/jobs", Scope.submit), ("DELETE", "/all", Scope.admin)],
)
@pytest.mark.parametrize("scope", list(Scope))
def test_a_token_does_what_its_scope_allows(
    service: Service, method: str, path: str, needed: Scope, scope: Scope
) -> None:
    token = service.gate.tokens.create("ana", scope, DAY)
    answer = service.get(path, token, method)
    if list(Scope).index(scope) >= list(Scope).index(needed):
        assert answer.status_code == 200
        assert answer.json() == {"name": "ana", "scope": scope.value}
    else:
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"] == (
            f"This needs a token of scope '{needed.value}', and yours has '{scope.value}': "
            "ask an operator for one (`deconvoy token create`)."
        )
        assert f'scope="{needed.value}"' in answer.headers["www-authenticate"]


def test_scopes_are_ordered_and_not_by_the_alphabet() -> None:
    assert Scope.read < Scope.submit < Scope.admin
    assert Scope.admin > Scope.submit >= Scope.submit > Scope.read
    assert Scope.read <= Scope.read and not Scope.admin <= Scope.read
    assert max(Scope) == Scope.admin


def make_expired(service: Service) -> str:
    return service.gate.tokens.create("gone", Scope.admin, -timedelta(seconds=1))


def make_revoked(service: Service) -> str:
    token = service.gate.tokens.create("gone", Scope.admin)
    assert service.get("/", token).status_code == 200
    service.gate.tokens.revoke("gone")
    return token


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (lambda service: None, "This needs a token"),
        (lambda service: "Bearer", "This needs a token"),
        (lambda service: "Bearer  ", "This needs a token"),
        (lambda service: service.gate.tokens.create("a", Scope.read), "This needs a token"),
        (
            lambda service: "Basic " + base64.b64encode(b"ana:secret").decode(),
            "This needs a token",
        ),
        (lambda service: "Bearer dv_nobody", "This token is none that is known"),
        (lambda service: "Bearer \xff\xfe", "This token is none that is known"),
        (lambda service: "Bearer " + "x" * 5000, "This token is none that is known"),
        (lambda service: f"Bearer {make_expired(service)}", "This token has expired"),
        (lambda service: f"Bearer {make_revoked(service)}", "This token was revoked"),
    ],
    ids=[
        *("none", "empty", "blank", "no-scheme", "basic", "unknown", "bytes", "long"),
        *("expired", "revoked"),
    ],
)
def test_nobody_is_told_so_in_a_sentence(
    service: Service, header: Callable[[Service], str | None], told: str
) -> None:
    given = header(service)
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    answer = service.browser().get("/", headers=headers)
    assert answer.status_code == 401
    detail = answer.json()["detail"]
    assert detail.startswith(told) and detail.endswith(".")
    assert "gone" not in detail
    assert answer.headers["www-authenticate"].startswith('Bearer realm="deconvoy"')


def test_a_digest_is_no_token(service: Service) -> None:
    service.gate.tokens.create("ana", Scope.admin)
    with service.gate.tokens._database.reading() as connection:
        digest = connection.execute(sa.select(tables.tokens.c.digest)).scalar_one()
    assert service.get("/", digest).status_code == 401


def test_the_catalogue_holds_no_secret(service: Service, catalogue: Catalogue) -> None:
    service.gate.open()
    browser = service.browser()
    token = log_in(service, browser)
    code = service.gate.link(ORIGIN).partition("code=")[2]
    local = (service.home / "token").read_text().strip()
    secrets = [token, code, local, *browser.cookies.values()]
    assert len(secrets) == 4 and all(len(secret) > 40 for secret in secrets)
    with catalogue.database.reading() as connection:
        rows = [
            str(connection.execute(sa.select(table)).all())
            for table in tables.metadata.sorted_tables
        ]
    assert not [secret for secret in secrets if secret in "".join(rows)]


def test_the_last_use_is_noted_once_a_minute(service: Service, catalogue: Catalogue) -> None:
    token = service.gate.tokens.create("ana", Scope.read)
    assert service.gate.tokens.all()[0].used is None
    assert service.get("/", token).status_code == 200
    first = service.gate.tokens.all()[0].used
    assert first is not None and datetime.now(UTC) - first < timedelta(minutes=1)
    service.get("/", token)
    assert service.gate.tokens.all()[0].used == first
    hour_ago = first - timedelta(hours=1)
    with catalogue.database.writing() as connection:
        connection.execute(sa.update(tables.tokens).values(used=hour_ago))
    service.get("/", token)
    assert (service.gate.tokens.all()[0].used or hour_ago) > hour_ago


@pytest.mark.parametrize("name", ["", "a b", "local", "anonymous", "-a", "a" * 65, "ä", "a\n"])
def test_a_name_that_fits_no_token_is_refused(service: Service, name: str) -> None:
    with pytest.raises(RequestError, match="does not fit a token"):
        service.gate.tokens.create(name, Scope.read)


def test_a_name_is_free_again_once_its_token_is_revoked(service: Service) -> None:
    service.gate.tokens.create("ana", Scope.read)
    with pytest.raises(RequestError, match="'ana' already"):
        service.gate.tokens.create("ana", Scope.admin)
    service.gate.tokens.revoke("ana")
    with pytest.raises(RequestError, match="no token 'ana' to revoke"):
        service.gate.tokens.revoke("ana")
    service.gate.tokens.create("ana", Scope.admin)
    assert [token.state for token in service.gate.tokens.all()] == ["revoked", "valid"]


def test_a_browser_logs_in_with_a_token_and_looks(service: Service) -> None:
    with service.browser() as browser:
        page = browser.get("/login")
        assert page.status_code == 200 and '<form method="post" action="login">' in page.text
        assert not re.search(r"(src|href)=.(https?:)?//", page.text)
        assert page.headers["cache-control"] == "no-store"
        token = service.gate.tokens.create("ana", Scope.submit)
        answer = browser.post("/login", data={"token": f" {token} "}, headers={"Origin": ORIGIN})
        assert (answer.status_code, answer.headers["location"]) == (303, "./")
        cookie = answer.headers["set-cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/"))
        assert cookie.startswith("deconvoy-session-8000=")
        assert "Secure" not in cookie and token not in cookie
        assert browser.get("/").json() == {"name": "ana", "scope": "submit"}
        assert browser.head("/").status_code == 200
        with browser.websocket_connect(LIVE) as socket:
            assert socket.receive_text() == "ana"


@pytest.mark.parametrize(
    ("asked", "to"),
    [
        ("/unit?run=a&unit=3", "/unit?run=a&unit=3"),
        ("//elsewhere.example/unit", "./"),
        ("/\\elsewhere.example", "./"),
        ("///elsewhere.example/x", "./"),
        ("//[", "./"),
        ("http://[", "./"),
        ("/[", "/["),
        ("https://elsewhere.example", "./"),
        ("javascript:alert(1)", "./"),
        ("/a\nSet-Cookie: b", "./"),
        ("unit", "./"),
    ],
)
def test_after_the_login_one_is_where_one_wanted_to_be(
    service: Service, asked: str, to: str
) -> None:
    token = service.gate.tokens.create("ana", Scope.read)
    with service.browser() as browser:
        form = browser.get("/login", params={"next": asked}).text
        assert f'name="next" value="{html.escape(to)}"' in form
        given = {"token": "dv_wrong", "next": asked}
        refused = browser.post("/login", data=given, headers={"Origin": ORIGIN})
        assert f'name="next" value="{html.escape(to)}"' in refused.text
        given["token"] = token
        answer = browser.post("/login", data=given, headers={"Origin": ORIGIN})
        assert (answer.status_code, answer.headers["location"]) == (303, to)


def test_a_cookie_over_https_is_secure(service: Service) -> None:
    token = service.gate.tokens.create("ana", Scope.read)
    origin = "https://localhost"
    with service.browser(origin) as browser:
        answer = browser.post("/login", data={"token": token}, headers={"Origin": origin})
        assert "Secure" in answer.headers["set-cookie"]
        assert browser.get("/").status_code == 200


@pytest.mark.parametrize(
    ("proxies", "scheme", "secure"),
    [
        (None, "https", True),
        (None, "http", False),
        (("127.0.0.0/8",), "https", True),
        (("10.0.0.7", "::1"), "https", False),
        ((), "https", False),
    ],
)
def test_a_cookie_is_secure_where_a_proxy_that_is_believed_says_https(
    make: Callable[..., Service], proxies: tuple[str, ...] | None, scheme: str, secure: bool
) -> None:
    service = make(**({} if proxies is None else {"proxies": proxies}))
    token = service.gate.tokens.create("ana", Scope.read)
    with serving(server_config(service.app, service.gate.settings)) as address:
        forwarded = {"X-Forwarded-Proto": scheme}
        answer = httpx.post(f"{address}/login", data={"token": token}, headers=forwarded)
    assert answer.status_code == 303
    assert ("Secure" in answer.headers["set-cookie"]) == secure


def test_a_proxy_is_an_address_or_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECONVOY_PROXIES", '["10.0.0.7", "fd00::/8"]')
    assert [str(one) for one in read_settings().proxies] == ["10.0.0.7/32", "fd00::/8"]
    assert Settings(proxies=read_settings().proxies).environment()["DECONVOY_PROXIES"] == (
        '["10.0.0.7/32", "fd00::/8"]'
    )
    monkeypatch.setenv("DECONVOY_PROXIES", '["proxy.example"]')
    with pytest.raises(RequestError, match="DECONVOY_PROXIES.0.*IPv4 or IPv6 network"):
        read_settings()


@pytest.mark.parametrize(("method", "path"), [("POST", "/jobs"), ("DELETE", "/all")])
def test_a_cookie_changes_nothing(service: Service, method: str, path: str) -> None:
    with service.browser() as browser:
        token = log_in(service, browser)
        answer = browser.request(method, path, headers={"Origin": ORIGIN})
        assert answer.status_code == 403
        assert f"good for looking only: {method} needs a token" in answer.json()["detail"]
        # The header goes before the cookie, whatever either may do.
        bearer = {"Authorization": f"Bearer {token}"}
        assert browser.request(method, path, headers=bearer).status_code == 200
        assert browser.get("/", headers={"Authorization": "Bearer dv_x"}).status_code == 401


FOREIGN_PAGES = (
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9000"},  # the same site to a browser, which sends the cookie
    {"Origin": "http://127.0.0.1:9000", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
)
OWN_PAGES = (
    {},
    {"Origin": ORIGIN},
    {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"},  # a link was followed
)


@pytest.mark.parametrize("page", FOREIGN_PAGES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_page_of_another_origin_looks_by_the_cookie(
    service: Service, method: str, page: dict[str, str]
) -> None:
    with service.browser() as browser:
        token = log_in(service, browser)
        answer = browser.request(method, "/", headers=page)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
        if method == "GET":
            assert "another origin" in answer.json()["detail"]
        # A token is nothing that a browser sends by itself.
        bearer = {"Authorization": f"Bearer {token}"}
        assert browser.request(method, "/", headers={**page, **bearer}).status_code == 200


@pytest.mark.parametrize("page", OWN_PAGES)
def test_pages_of_our_own_look_by_the_cookie(service: Service, page: dict[str, str]) -> None:
    with service.browser() as browser:
        log_in(service, browser)
        assert browser.get("/", headers=page).json() == {"name": "admin", "scope": "admin"}


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9000"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/jobs"), ("DELETE", "/all"), ("POST", "/login"), ("POST", "/logout")],
)
def test_a_page_of_another_origin_changes_nothing_by_the_cookie(
    service: Service, method: str, path: str, origin: str
) -> None:
    with service.browser() as browser:
        log_in(service, browser)
        answer = browser.request(method, path, headers={"Origin": origin})
        assert answer.status_code == 403 and "of the Origin" in answer.json()["detail"]
        assert browser.get("/").status_code == 200, "the session is still there"
        with pytest.raises(WebSocketDisconnect) as closed:
            browser.websocket_connect(LIVE, headers={"Origin": origin}).__enter__()
        assert closed.value.code == 1008


@pytest.mark.parametrize("given", ["dv_nobody", "", "<script>"])
def test_a_browser_with_a_wrong_token_is_asked_again(service: Service, given: str) -> None:
    with service.browser() as browser:
        answer = browser.post("/login", data={"token": given}, headers={"Origin": ORIGIN})
        assert answer.status_code == 401 and "www-authenticate" in answer.headers
        assert "does not let you in" in answer.text and "<form" in answer.text
        assert "<script>" not in answer.text
        assert not browser.cookies
        assert browser.post("/login", content=b"\xff{", headers={}).status_code == 401


def test_a_session_ends_with_logging_out(service: Service) -> None:
    with service.browser() as browser:
        log_in(service, browser)
        (kept,) = browser.cookies.values()
        answer = browser.post("/logout", headers={"Origin": ORIGIN})
        assert (answer.status_code, answer.headers["location"]) == (303, "./login")
        assert not browser.cookies
        assert "This needs a token" in browser.get("/").json()["detail"]
        # Whoever copied the cookie has nothing, either.
        stolen = browser.get("/", headers={"Cookie": f"deconvoy-session-8000={kept}"})
        assert stolen.status_code == 401 and "session is over" in stolen.json()["detail"]


def end_by_revoking(service: Service) -> None:
    service.gate.tokens.revoke("admin")


def end_by_age(service: Service) -> None:
    with service.gate.tokens._database.writing() as connection:
        connection.execute(sa.update(tables.sessions).values(expires=datetime.now(UTC)))


def end_with_the_token(service: Service) -> None:
    with service.gate.tokens._database.writing() as connection:
        connection.execute(sa.update(tables.tokens).values(expires=datetime.now(UTC)))


@pytest.mark.parametrize("end", [end_by_revoking, end_by_age, end_with_the_token])
def test_a_session_ends(service: Service, end: Callable[[Service], None]) -> None:
    with service.browser() as browser:
        log_in(service, browser)
        assert browser.get("/").status_code == 200
        end(service)
        answer = browser.get("/")
        assert answer.status_code == 401 and "session is over" in answer.json()["detail"]
        with pytest.raises(WebSocketDisconnect) as closed, browser.websocket_connect(LIVE):
            pass
        assert (closed.value.code, "session is over" in closed.value.reason) == (1008, True)


def test_a_websocket_takes_a_token_and_refuses_nobody(service: Service) -> None:
    token = service.gate.tokens.create("ana", Scope.read)
    with service.browser() as browser:
        bearer = {"Authorization": f"Bearer {token}"}
        with browser.websocket_connect(LIVE, headers=bearer) as socket:
            assert socket.receive_text() == "ana"
        with pytest.raises(WebSocketDisconnect) as closed, browser.websocket_connect(LIVE):
            pass
        assert (closed.value.code, "needs a token" in closed.value.reason) == (1008, True)


def test_the_link_of_the_terminal_lets_one_browser_in(service: Service) -> None:
    service.gate.open()
    link = service.gate.link(ORIGIN)
    assert link.startswith(f"{ORIGIN}/login?code=")
    with service.browser() as browser:
        answer = browser.get(link)
        assert answer.status_code == 200 and 'http-equiv="refresh"' in answer.text
        assert browser.get("/").json() == {"name": "local", "scope": "admin"}
    with service.browser() as other:
        answer = other.get(link)
        assert answer.status_code == 401 and "was used already" in answer.text
        assert not other.cookies and "<form" in answer.text
        assert other.get("/login?code=never").status_code == 401


def test_a_login_code_is_good_for_minutes(service: Service) -> None:
    service.gate.open()
    token = service.gate.tokens.all()[0]
    late = service.gate.sessions.new_code(token, -timedelta(seconds=1))
    assert service.gate.log_in_by_code(late) is None
    revoked = service.gate.sessions.new_code(token)
    service.gate.tokens.revoke("local")
    assert service.gate.log_in_by_code(revoked) is None


def test_the_local_token_is_a_file_of_its_owner_alone(
    service: Service, make: Callable[..., Service]
) -> None:
    service.gate.open()
    file = service.home / "token"
    assert (file.stat().st_mode & 0o777, service.home.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [path.name for path in service.home.iterdir()] == ["token"]
    token = file.read_text().strip()
    assert re.fullmatch(r"dv_[\w-]{43}", token)
    assert service.get("/all", token, "DELETE").json() == {"name": "local", "scope": "admin"}
    make().gate.open()  # the next start goes on with it
    assert file.read_text().strip() == token
    service.gate.tokens.revoke("local")
    make().gate.open()
    assert file.read_text().strip() != token
    assert service.get("/", file.read_text().strip()).status_code == 200
    file.write_text("dv_of_some_other_catalogue\n")
    make().gate.open()
    assert service.get("/", file.read_text().strip()).status_code == 200


def test_a_local_token_is_not_put_where_others_may_write(service: Service) -> None:
    service.home.mkdir()
    service.home.chmod(0o777)
    with pytest.raises(RequestError, match="Others may write.*chmod 700"):
        service.gate.open()
    assert list(service.home.iterdir()) == []


def test_without_tokens_everybody_on_this_machine_may_do_everything(
    make: Callable[..., Service],
) -> None:
    service = make(tokens=False)
    service.gate.open()
    assert service.get("/all", method="DELETE").json() == {"name": "anonymous", "scope": "admin"}
    assert service.gate.link(ORIGIN) == f"{ORIGIN}/"
    assert not service.home.exists()
    assert service.get("/login").status_code == 303


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "deconvoy.example"])
def test_beyond_this_machine_a_token_is_a_must(make: Callable[..., Service], host: str) -> None:
    with pytest.raises(RequestError, match=f"{host}.*DECONVOY_TOKENS"):
        make(host=host, tokens=False).gate.open()
    service = make(host=host)
    service.gate.tokens.create("late", Scope.admin, -DAY)
    with pytest.raises(RequestError, match=f"{host}.*`deconvoy token create"):
        service.gate.open()
    service.gate.tokens.create("ana", Scope.admin, DAY)
    service.gate.open()
    assert not service.home.exists(), "nobody asked for a local token"
    assert service.gate.link("http://deconvoy.example") == "http://deconvoy.example/login"


def test_no_secret_is_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service.gate.open()
    with service.browser() as browser:
        token = log_in(service, browser)
        service.get("/", token)
        service.get("/", "dv_wrong_but_secret")
    ours = [record for record in caplog.records if not record.name.startswith("http")]
    told = " ".join(record.getMessage() for record in ours)
    local = (service.home / "token").read_text().strip()
    assert not [secret for secret in (token, local, "dv_wrong") if secret in told]


def test_the_scheme_is_in_the_openapi_document(service: Service) -> None:
    document = service.app.openapi()
    scheme = document["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert document["paths"]["/jobs"]["post"]["security"] == [{"token": []}]
    assert "/login" not in document["paths"]
