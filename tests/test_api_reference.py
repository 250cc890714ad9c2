"""The page of all routes: everything on it comes from the service itself."""

import base64
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from service.app import create_app
from tests import visitor
from tests.serving import problem_of, served, settings_of

CHROMIUM = visitor.installed()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    app = create_app(settings_of(tmp_path_factory.mktemp("home")))
    with served(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_the_page_names_no_host_and_all_it_names_is_here(client: httpx.Client) -> None:
    page = client.get("/docs").raise_for_status()
    assert page.headers["content-type"].startswith("text/html") and "//" not in page.text
    named = re.findall(r"(?:src|href)=\"([^\"]+)\"|url: '([^']+)'", page.text)
    addresses = [one or other for one, other in named]
    assert addresses == [
        *("docs/swagger-ui.css", "data:,", "docs/swagger-ui-bundle.js", "openapi.json")
    ]
    kinds = {"css": "text/css", "js": "text/javascript", "json": "application/json"}
    for address in addresses:
        if not address.startswith("data:"):
            answer = client.get(urljoin("/docs", address)).raise_for_status()
            assert answer.headers["content-type"].startswith(kinds[address.rpartition(".")[2]])
    assert '"validatorUrl": null' in page.text


def test_the_page_lets_a_browser_ask_nobody_else(client: httpx.Client) -> None:
    page = client.get("/docs")
    policy = page.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["connect-src"] == "'self'"
    assert "http" not in policy and "*" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'self' 'sha256-{digest}'"


def test_files_are_kept_by_browsers_and_others_are_none(client: httpx.Client) -> None:
    first = client.get("/docs/swagger-ui.css")
    again = client.get("/docs/swagger-ui.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("redoc.standalone.js", "nothing.css", ".."):
        assert "swagger-ui.css" in problem_of(client.get(f"/docs/{name.replace('.', '%2e')}"), 404)
    for path in ("/redoc", "/docs/..%2f__init__.py"):
        problem_of(client.get(path), 404)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_the_routes(client: httpx.Client, tmp_path: Path) -> None:
    """Under the page's own policy, so a script that it forbids would leave the page empty."""
    assert CHROMIUM is not None
    shown = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=10000"),
            str(client.base_url.join("/docs")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert "opblock-summary-path" in shown and "/v1/plans" in shown.replace("\u200b", "")
