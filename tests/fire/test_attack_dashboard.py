"""Attackers at the dashboard: markup in every name, pages of other origins, the session, the form.

A browser looks at every view of runs whose names are markup: nothing of it runs, and nothing is
asked of another host.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Page

import deconvoy
from deconvoy import report
from tests import visitor
from tests.fire.attackers import HACKED, HOSTILE, SPOKEN, Fortress, lure, request, say
from tests.fire.conftest import Fire, Tell
from tests.visitor import Visitor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(visitor.missing() is not None, reason=str(visitor.missing())),
]


@pytest.fixture(scope="module")
def fortress(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fortress]:
    with Fortress(tmp_path_factory.mktemp("looked-at"), "--ray", "none") as made:
        changed = {"name": SPOKEN[:200], "add_tags": list(HOSTILE[:4])}
        run = f"{made.url}/v1/runs/{quote(HOSTILE[0], safe='')}"
        httpx.patch(run, json=changed, headers=made.bearer()).raise_for_status()
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with visitor.browser() as started:
        yield started


@pytest.fixture
def visit(browser: Browser, fortress: Fortress) -> Iterator[Visitor]:
    made = Visitor(browser, fortress.url)
    made.log_in(fortress.tokens["submit"])
    yield made
    made.close()


def is_untouched(page: Page) -> bool:
    """Nothing of a name has become a script, a handler, a style or a link of its own."""
    found = page.evaluate(
        """() => ({
            ran: window.hacked !== undefined,
            handlers: [...document.querySelectorAll('*')].filter(one => [...one.attributes].some(
                each => each.name.startsWith('on'))).length,
            scripts: [...document.scripts].filter(one => one.textContent.includes('hacked')).length,
            styles: [...document.querySelectorAll('style')].filter(
                one => one.textContent.includes('evil.example')).length,
            elements: document.querySelectorAll('img[src="x"], img[src$="/x"]').length,
            links: [...document.querySelectorAll('a,img,iframe,form')].filter(one =>
                /javascript:|evil\\.example/.test(one.href || one.src || one.action || '')).length,
        })"""
    )
    return not any(found.values())


def views(fortress: Fortress) -> list[str]:
    run = quote(HOSTILE[0], safe="")
    spoken = quote(SPOKEN, safe="")
    return [
        *("/", f"/?text={spoken}", f"/run?run={run}", f"/layer?run={run}&layer=relu2"),
        *(f"/unit?run={run}&layer=relu2&unit=0", f"/unit?run={run}&layer=logits&unit=1"),
        *(f"/images?run={run}", f"/image?run={run}&image=0", f"/image?run={run}&image=3"),
        *(f"/search?run={run}&q=img", f"/search?run={run}&q={spoken}", f"/analysis?run={run}"),
        *(f"/compare?run={run}&with=plain", f"/upload?run={run}", "/jobs", f"/new?run={run}"),
        *(f"/run?run={spoken}", f"/layer?run=plain&layer={spoken}", f"/job?id={spoken}"),
        *(f"/unit?run=plain&layer=relu2&unit={spoken}", f"/image?run=plain&image={spoken}"),
        *(f"/images?run=plain&label={spoken}", f"/analysis?run=plain&kind={spoken}"),
        *(f"/{quote(HOSTILE[0], safe='')}", f"/layer?run=plain&layer=relu2&order={spoken}"),
    ]


def test_no_name_is_markup_in_any_view(
    visit: Visitor, fortress: Fortress, fire: Fire, tell: Tell
) -> None:
    shown = views(fortress)
    for address in shown:
        visit.page.goto(fortress.url + address)
        visit.waits()
        visit.page.wait_for_timeout(fire.of(50, 500))
        if address.startswith("/images?run=%3C"):
            assert HOSTILE[0] in visit.page.inner_text("body"), "the names are there, as text"
        assert is_untouched(visit.page), address
    # That a view is not there is told in the console, too.
    wrong = [one for one in visit.wrong if re.search("elsewhere|Security Policy|Refused", one)]
    assert wrong == []
    text = visit.page.goto(f"{fortress.url}/v1/runs/plain/images")
    assert text is not None and HOSTILE[0] in text.text()
    assert is_untouched(visit.page)
    tell("attack", views_of_hostile_names=len(shown), scripts_run=0, foreign_requests=0)


def test_the_report_is_inert(browser: Browser, fortress: Fortress, tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    run = deconvoy.open(fortress.runs / HOSTILE[0])
    place.write_text("".join(report.pages(run)), encoding="utf-8")
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.goto(place.as_uri())
    assert is_untouched(page) and page.locator("script, iframe, object, form").count() == 0
    assert HACKED in page.inner_text("body"), "the names are there, as text"
    assert [one for one in asked if not one.startswith(("file:", "data:"))] == []
    page.close()


def test_errors_and_the_reference_are_inert(visit: Visitor, fortress: Fortress) -> None:
    for address in (
        *(f"/v1/runs/{quote(SPOKEN, safe='')}", f"/v1/runs?{quote(HOSTILE[0])}=1", "/docs"),
        *(f"/docs/{quote(HOSTILE[1])}", f"/login?next={quote(SPOKEN)}", f"/{quote(SPOKEN)}"),
        *(f"/login?code={quote(SPOKEN)}", f"/login?next=/{quote(HOSTILE[1])}"),
    ):
        answer = visit.page.goto(fortress.url + address)
        assert answer is not None and is_untouched(visit.page), address
        kind = answer.headers["content-type"]
        assert "text/html" not in kind or "content-security-policy" in answer.headers, address


def test_a_page_of_another_origin_gets_nothing_done(
    browser: Browser, visit: Visitor, fortress: Fortress
) -> None:
    """In a browser that is logged in: forms, pictures, scripts, fetches, frames, websockets."""
    secret = f"{fortress.url}/v1/runs/plain"
    page = f"""<title>evil</title><body>
    <form id=out method=post action="{fortress.url}/logout"></form>
    <form id=in method=post action="{fortress.url}/login"><input name=token value=x></form>
    <img id=picture src="{secret}/layers/relu2/units/0.png"><script src="{secret}"></script>
    <iframe id=frame src="{fortress.url}/login"></iframe>
    <script>
    window.got = {{}};
    const tries = {{
      read: () => fetch("{secret}", {{credentials: "include"}}).then(one => one.text()),
      change: () => fetch("{secret}", {{method: "PATCH", credentials: "include", body: "{{}}"}})
        .then(one => one.text()),
      submit: () => fetch("{fortress.url}/v1/jobs", {{method: "POST", mode: "no-cors",
        credentials: "include", body: "{{}}"}}).then(one => one.text()),
      live: () => new Promise((yes, no) => {{
        const live = new WebSocket("{fortress.url.replace("http", "ws")}/_stcore/stream");
        live.onopen = () => yes("open"); live.onerror = () => no("shut");
      }}),
    }};
    window.all = Promise.all(Object.entries(tries).map(([name, go]) =>
      go().then(told => got[name] = told || "", why => got[name] = null)));
    </script>""".encode()
    with lure(content=page) as evil:
        tab = visit.page.context.new_page()
        tab.goto(f"{evil.address}/page.html")
        tab.set_content(page.decode())
        tab.evaluate("window.all")
        got = tab.evaluate("window.got")
        assert got["read"] is None and got["change"] is None and got["live"] is None, got
        assert not got["submit"]
        assert tab.evaluate("document.getElementById('picture').naturalWidth") == 0
        assert tab.evaluate("document.getElementById('frame').contentDocument") is None
        for form in ("out", "in"):
            with tab.expect_navigation():
                tab.evaluate(f"document.getElementById('{form}').submit()")
            assert "may not do this" in tab.inner_text("body")
            tab.goto(f"{evil.address}/page.html")
            tab.set_content(page.decode())
        tab.close()
    visit.page.goto(f"{fortress.url}/v1/runs/plain")
    assert '"id":"plain"' in visit.page.inner_text("body"), "the session is still there"


def test_the_session_is_the_browsers_alone(visit: Visitor, fortress: Fortress) -> None:
    (cookie,) = visit.page.context.cookies()
    assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and cookie["path"] == "/"
    assert cookie["domain"] == "127.0.0.1", "of no other host"
    assert visit.page.evaluate("document.cookie") == ""
    assert not visit.page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})").count(
        str(cookie["value"])
    )
    held = {"Cookie": f"{cookie['name']}={cookie['value']}"}
    assert fortress.sends("GET", "/v1/runs", held).status == 200
    for method, path in (("POST", "/v1/jobs"), ("PATCH", "/v1/runs/plain"),
                         ("DELETE", "/v1/runs/plain")):  # fmt: skip
        assert fortress.sends(method, path, held, b"{}").status == 403
    for other in (f"{cookie['value']}x", str(cookie["value"])[:-1], "", fortress.tokens["admin"]):
        wrong = {"Cookie": f"{cookie['name']}={other}"}
        assert fortress.sends("GET", "/v1/runs", wrong).status == 401


@pytest.mark.parametrize(
    "to",
    [
        *("//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)"),
        *("/%09/evil.example", "\t//evil.example", "/.//evil.example", "///evil.example"),
        *("http:evil.example", "/login?next=//evil.example", "/;@evil.example", "data:text/html,x"),
        *("/%5cevil.example", "/%2f%2fevil.example", "\N{FULLWIDTH SOLIDUS}/evil.example"),
    ],
)
def test_the_login_leads_nowhere_else(browser: Browser, fortress: Fortress, to: str) -> None:
    guest = Visitor(browser, fortress.url)
    guest.page.goto(f"{fortress.url}/login?next={quote(to, safe='')}")
    guest.page.get_by_label("Token").fill(fortress.tokens["read"])
    with guest.page.expect_navigation():
        guest.page.get_by_role("button", name="Log in").click()
    assert guest.page.url.startswith(f"{fortress.url}/")
    guest.close()
    assert not [one for one in guest.wrong if "elsewhere" in one]


STREAM = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


def test_the_dashboards_stream_opens_to_nobody_else(fortress: Fortress) -> None:
    ours = {"Origin": fortress.url, **fortress.bearer("read")}
    opened = say(fortress.url, request("GET", "/_stcore/stream", fortress.host, STREAM | ours), 1)
    assert opened.status == 101
    for headers in (
        {"Origin": fortress.url},
        {**ours, "Authorization": f"Bearer {fortress.tokens['revoked']}"},
        {**ours, "Authorization": f"Bearer {fortress.tokens['expired']}"},
        *({**ours, "Origin": origin} for origin in ("http://evil.example", "null", "file://", "")),
        {**ours, "Origin": fortress.url.replace("127.0.0.1", "localhost")},
        {**ours, "Origin": fortress.url + "1"},
    ):
        said = request("GET", "/_stcore/stream", fortress.host, STREAM | headers)
        assert say(fortress.url, said, 2).status == 403, headers
    foreign = request("GET", "/_stcore/stream", "evil.example", STREAM | ours)
    assert say(fortress.url, foreign, 2).status in (403, 421)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/unit?run=plain", "/_stcore/health", "/_stcore/host-config", "/_stcore/metrics"),
        *("/_stcore/script-health-check", "/_stcore/stream", "/media/x.png", "/static/js/x.js"),
        *("/component/x/y", "/app/static/x", "/favicon.png", "/index.html", "//v1/runs"),
        *("/_stcore/upload_file/x/y", "/_stcore/bidi-components/x", "/%76%32/runs", "/V1/runs"),
    ],
)
def test_no_page_without_a_session(fortress: Fortress, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        answer = fortress.sends(method, path)
        assert answer.status == 401, (method, answer.whole[:200])
        assert b"Streamlit" not in answer.whole


def test_what_is_handed_to_the_dashboard_takes_a_scope_and_is_bounded(fortress: Fortress) -> None:
    """Names of files and of parts lead nowhere."""
    part = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="../../../evil.png"\r\n'
        b"Content-Type: image/png\r\n\r\nx\r\n--b--\r\n"
    )
    typed = {"Content-Type": "multipart/form-data; boundary=b"}
    for way in ("a/b", "..%2f..%2fa/b", "a/..%2f..%2fb", "%00/b", "a/" + "b" * 5000):
        path = f"/_stcore/upload_file/{way}"
        for scope, statuses in (("read", (403,)), ("submit", (204, 400, 401, 404))):
            answer = fortress.sends("PUT", path, typed | fortress.bearer(scope), part)
            assert answer.status in statuses, (way, scope, answer.whole[:300])
    large = fortress.bearer("submit") | typed | {"Content-Length": str(17 * 2**20)}
    assert fortress.sends("PUT", "/_stcore/upload_file/a/b", large).status == 413
    assert not list(fortress.folder.rglob("evil*"))
