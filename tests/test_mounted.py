"""What stands before the dashboard's pages, for targets and addresses of any form."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from service.mounted import PAGE_HEADERS, ApiFirst, FrontPage, front_page
from tests.browsers import TestClient


async def streamlits(request: Request) -> Response:
    """Its own page at every address, and its files."""
    script = request.url.path.endswith(".js")
    return PlainTextResponse("file") if script else HTMLResponse("its own")


@pytest.fixture
def client() -> Iterator[TestClient]:
    api = FastAPI()

    @api.get("/v1/runs")
    def runs() -> str:
        return "the API's"

    pages = Starlette(routes=[Route("/{path:path}", streamlits)])
    both = ApiFirst(FrontPage(pages, "ours"), api)
    with TestClient(both, base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.mark.parametrize("target", ["*", "127.0.0.1:443", "v1", "v1/runs", ""])
def test_a_target_that_is_no_path_is_nothing_of_the_api(target: str) -> None:
    """As ``OPTIONS *`` and ``CONNECT host:port`` have them."""
    reached: list[str] = []

    def of(name: str) -> Any:
        async def answer(*_: object) -> None:
            reached.append(name)

        return answer

    apps: Any = ApiFirst(of("pages"), of("api"))
    for path in (target, "/v1/runs"):
        asyncio.run(apps({"type": "http", "path": path}, None, None))
    assert reached == ["pages", "api"]


@pytest.mark.parametrize("path", ["/", "/unit", "/unit?layer=relu5", "/a/b", "/a/b/", "/x.html"])
def test_every_page_is_under_the_same_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    deep = path.partition("?")[0].count("/") > 1 or "." in path
    assert answer.text == ("its own" if deep else "ours")
    assert PAGE_HEADERS.items() <= {name: answer.headers.get(name) for name in PAGE_HEADERS}.items()


def test_files_and_the_api_are_as_they_are(client: TestClient) -> None:
    file, runs = client.get("/static/main.js"), client.get("/v1/runs")
    assert file.text == "file" and "content-security-policy" not in file.headers
    assert runs.json() == "the API's" and client.get("/v1/nothing").status_code == 404


def test_the_front_page_asks_for_the_server_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "static").mkdir()
    (tmp_path / "static/index.html").write_text(
        "<html><head><title>Streamlit</title>"
        '<link rel="preload" href="./static/a.woff2" as="font" type="font/woff2"></head></html>'
    )
    html = front_page(tmp_path)
    assert "<title>Deconvoy</title>" in html and "preload" not in html
    assert html.startswith("<html><head><script>window.__streamlit=")
