"""What every route owes: strangers learn nothing, HEAD is as GET, and 405 says what there is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.scopes import Scope
from tests.runs import small_spec
from tests.serving import problem_of, served, settings_of

SPEC: dict[str, Any] = small_spec().to_json()
WRONG = b'{"no json'
JSON = {"Content-Type": "application/json"}


class Service:
    """A service with tokens, and a queue whose dispatcher is not there."""

    def __init__(self, home: Path, runs: Path) -> None:
        settings = settings_of(home, runs=str(runs), tokens=True, ray="local")
        self.app = create_app(settings)
        self.http = httpx.Client()

    def bearer(self, scope: Scope) -> dict[str, str]:
        tokens = self.app.state.gate.tokens
        name = f"{scope.value}-{len(tokens.all())}"
        return {"Authorization": f"Bearer {tokens.create(name, scope)}"}

    def operations(self) -> Iterator[tuple[str, str]]:
        """Method and address of every documented one, with names of what is nowhere."""
        for path, methods in self.app.openapi()["paths"].items():
            for method in methods:
                yield method.upper(), re.sub(r"\{.+?\}", "x", path)


@pytest.fixture(scope="module")
def service(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("home"), small_run.parent)
    with served(made.app) as address, httpx.Client(base_url=address, timeout=60) as made.http:
        yield made


def test_strangers_are_asked_for_a_token_before_anything_else(service: Service) -> None:
    asked = list(service.operations())
    assert len(asked) > 30
    for method, path in asked:
        if path == "/healthz":
            continue
        answer = service.http.request(
            method, f"{path}?nonsense=1&limit=x", content=WRONG, headers=JSON
        )
        assert answer.status_code == 401, (method, path, answer.text)
        assert "needs a token" in problem_of(answer, 401)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs"),
        ("POST", "/v1/plans"),
        ("PATCH", "/v1/runs/small"),
        ("DELETE", "/v1/runs/small"),
        ("DELETE", "/v1/jobs/nowhere"),
        ("POST", "/v1/jobs/nowhere/resume"),
    ],
)
def test_a_scope_too_small_is_told_before_what_is_wrong(
    service: Service, method: str, path: str
) -> None:
    reader = service.bearer(Scope.read) | JSON
    for body in (WRONG, b"\xff", b"[]", b'{"modle": 1}'):
        answer = service.http.request(method, f"{path}?nonsense=1", content=body, headers=reader)
        assert "'read'" in problem_of(answer, 403)


def test_with_a_token_the_body_is_looked_at(service: Service) -> None:
    submitter = service.bearer(Scope.submit) | JSON
    for path in ("/v1/jobs", "/v1/plans"):
        problem_of(service.http.post(path, content=WRONG, headers=submitter), 400, "body")


# -- HEAD, and methods that are not there ----------------------------------------------------------


READABLE = (
    *("/healthz", "/metrics", "/docs", "/openapi.json", "/login", "/v1/models", "/v1/runs"),
    *("/v1/runs/small", "/v1/runs/small/layers", "/v1/runs/small/layers/relu2"),
    *("/v1/runs/small/layers/relu2/units", "/v1/runs/small/layers/relu2/units/40"),
    *("/v1/runs/small/layers/relu2/units/40.png", "/v1/runs/small/figures/relu2.png"),
    *("/v1/runs/small/images", "/v1/runs/small/images/21", "/v1/runs/small/occlusion"),
    *("/v1/runs/small/table", "/v1/runs/small/query", "/v1/runs/small/query/purity"),
    *("/v1/runs/small/zarr/zarr.json", "/v1/jobs", "/v1/jobs/nowhere", "/v1/runs/nowhere"),
    *("/v1/runs/small/query/nothing", "/v1/runs/small?nonsense=1"),
)


@pytest.mark.parametrize("path", READABLE)
def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    reader = service.bearer(Scope.read)
    get, head = (service.http.request(m, path, headers=reader) for m in ("GET", "HEAD"))
    assert head.status_code == get.status_code and head.content == b""
    told = ("content-type", "content-length", "etag", "cache-control", "content-disposition")
    for name in told if path != "/metrics" else ("content-type",):  # which counts what was asked
        assert head.headers.get(name) == get.headers.get(name), name
    if path not in ("/healthz", "/docs", "/openapi.json", "/login"):
        assert service.http.head(path).status_code == 401


@pytest.mark.parametrize("form", ["arrow", "parquet", "csv"])
def test_the_head_of_a_stream_of_rows_makes_none(
    service: Service, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, path = service.bearer(Scope.read), f"/v1/runs/small/table?format={form}"
    get = service.http.get(path, headers=reader)
    monkeypatch.setattr("service.formats._pieces", None)
    head = service.http.head(path, headers=reader)
    assert head.status_code == 200 and head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["content-disposition"] == get.headers["content-disposition"]


def test_every_readable_route_has_a_head_but_the_endless_one(service: Service) -> None:
    from starlette.routing import Match

    def answers(method: str, path: str) -> bool:
        scope = {"type": "http", "method": method, "path": path, "root_path": ""}
        return any(route.matches(scope)[0] is Match.FULL for route in service.app.routes)

    readable = [path for method, path in service.operations() if method == "GET"]
    without = [path for path in readable if not answers("HEAD", path)]
    assert len(readable) > 25 and without == ["/v1/jobs/x/events"]
    assert "HEAD is answered" in service.app.openapi()["info"]["description"]


def test_the_head_of_a_login_link_does_not_use_it_up(service: Service) -> None:
    gate = service.app.state.gate
    link = gate.link("")
    assert service.http.head(link).status_code == 200
    assert "logged in" in service.http.get(link).text


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/runs/small", "GET, HEAD, PATCH, DELETE"),
        ("PATCH", "/v1/jobs", "GET, HEAD, POST"),
        ("POST", "/v1/jobs/x", "GET, HEAD, DELETE"),
        ("GET", "/v1/jobs/x/resume", "POST"),
        ("HEAD", "/v1/jobs/x/events", "GET"),
        ("POST", "/healthz", "GET, HEAD"),
        ("DELETE", "/v1/runs/small/zarr/zarr.json", "GET, HEAD"),
        ("PUT", "/login", "GET, HEAD, POST"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
def test_a_method_that_is_not_there_is_told_with_all_that_are(
    service: Service, method: str, path: str, allowed: str
) -> None:
    answer = service.http.request(method, path)
    assert answer.status_code == 405 and answer.headers["allow"] == allowed
    if method != "HEAD":
        assert allowed in problem_of(answer, 405)
