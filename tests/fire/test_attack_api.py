"""Attackers at the API of a real service: nobody comes in, nothing leaves, it goes on answering."""

import csv
import json
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import deconvoy
from deconvoy.client_job import ClientJob
from deconvoy.errors import JobFailed
from tests.fire import attackers
from tests.fire.attackers import HOSTILE, SECRET, Fortress, Route, half_open, lure, request, say
from tests.fire.conftest import Fire, Tell
from tests.runs import small_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

VALUES = {
    "run_id": "plain", "other_id": "plain", "job_id": "none-1f0a9c3e", "layer": "relu2",
    "unit": "0", "image": "0", "suffix": "png", "network": "0", "path": "zarr.json",
}  # fmt: skip

NEEDS = {"GET": "read", "HEAD": "read", "POST": "submit", "PATCH": "submit", "PUT": "submit",
         "DELETE": "submit"}  # fmt: skip
NEEDS_MORE = {("DELETE", "/v1/runs/{run_id}"): "admin"}
"""What a route asks for, unless its method tells: a new one that asks for less fails here."""

OPEN = {"/healthz"}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[attackers.Lure]:
    """A service of this machine's network that nobody is to be led to."""
    with lure(content=SECRET.encode()) as asked:
        yield asked


@pytest.fixture(scope="module")
def fortress(
    tmp_path_factory: pytest.TempPathFactory, elsewhere: attackers.Lure
) -> Iterator[Fortress]:
    root = f"{elsewhere.address}/public"
    with Fortress(tmp_path_factory.mktemp("fortress"), roots=[root]) as made:
        yield made


@pytest.fixture(scope="module")
def every(fortress: Fortress) -> list[Route]:
    document = httpx.get(f"{fortress.url}/openapi.json").json()
    return list(attackers.routes(document, VALUES))


@pytest.fixture(autouse=True)
def _it_still_answers(fortress: Fortress) -> Iterator[None]:
    """After every attack: within a second, and with no error of its own in its log."""
    before = len(fortress.service.log())
    yield
    begun = time.monotonic()
    assert httpx.get(f"{fortress.url}/healthz", timeout=10).is_success
    assert time.monotonic() - begun < 2
    said = fortress.service.log()[before:]
    assert "Traceback" not in said, said[-4000:]
    assert not re.search(r"status=5\d\d", said), said[-4000:]


def refused(answer: attackers.Answer, *statuses: int) -> bool:
    """Refused in our own words, and nothing let out."""
    leaks = SECRET.encode() in answer.whole or b"root:x:" in answer.whole
    told = answer.status in statuses and answer.headers.get("content-type") == PROBLEM
    return told and not leaks


PROBLEM = "application/problem+json"


# -- who is let in ---------------------------------------------------------------------------------


def no_tokens(fortress: Fortress) -> dict[str, dict[str, str]]:
    """Everything that is not a token, and looks more or less like one."""
    good, over = fortress.tokens["admin"], fortress.tokens["revoked"]
    said = {
        "cut short": good[:-1], "longer": f"{good}A", "other case": good.swapcase(), "over": over,
        "expired": fortress.tokens["expired"], "with a dot": f"{good}.x", "twice": f"{good} {good}",
        "digest": "0" * 64, "percent": f"{good[:-1]}%", "SQL": "dv_' OR 1=1 --", 
    }  # fmt: skip
    bearer = {name: {"Authorization": f"Bearer {secret}"} for name, secret in said.items()}
    return bearer | {
        "nothing": {},
        "Basic": {"Authorization": f"Basic {good}"},
        "empty": {"Authorization": "Bearer"},
        "bare": {"Authorization": good},
        "cookie": {"Cookie": f"deconvoy-session={good}; deconvoy-session-{fortress.host[-5:]}=x"},
        "another header": {"X-Api-Key": good, "Proxy-Authorization": f"Bearer {good}"},
        "from here": {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"},
        "as GET": {"X-HTTP-Method-Override": "GET", "X-Original-URL": "/healthz"},
    }


def test_no_route_answers_who_has_no_token(
    fortress: Fortress, every: list[Route], tell: Tell
) -> None:
    """What the document has today, and whatever it will have."""
    tries = no_tokens(fortress)
    asked = 0
    with httpx.Client(base_url=fortress.url, timeout=60) as client:
        for route in every:
            assert route.open == (route.template in OPEN), route
            if route.open:
                continue
            for name, headers in tries.items():
                body = {} if route.method in ("GET", "HEAD") else {"content": b"{}"}
                answer = client.request(route.method, route.path, headers=headers, **body)  # type: ignore[arg-type]
                endless = route.method == "HEAD" and route.template.endswith("/events")
                assert answer.status_code == (405 if endless else 401), (route, name)
                asked += 1
            in_query = client.request(
                route.method, f"{route.path}?token={fortress.tokens['admin']}"
            )
            assert in_query.status_code in (401, 405), route
    assert asked > 500
    tell("attack", routes=len(every), requests_without_a_token=asked, let_in=0)


def test_no_route_does_more_than_a_scope_allows(
    fortress: Fortress, every: list[Route], tell: Tell
) -> None:
    scopes = ["read", "submit", "admin"]
    tried = 0
    with httpx.Client(base_url=fortress.url, timeout=60) as client:
        for route in every:
            needed = NEEDS_MORE.get((route.method, route.template), NEEDS[route.method])
            for scope in scopes[: scopes.index(needed)]:
                answer = client.request(route.method, route.path, headers=fortress.bearer(scope))
                assert answer.status_code == 403, (route, scope, answer.text)
                assert repr(needed) in answer.json()["detail"]
                tried += 1
            if needed == "read" and not route.template.endswith("/events"):
                looked = client.request(route.method, route.path, headers=fortress.bearer("read"))
                assert looked.status_code in (200, 404, 422), (route, looked.text)
                assert "text/html" not in looked.headers.get("content-type", ""), route
                assert "access-control-allow-origin" not in looked.headers, route
    assert tried >= 7
    tell("attack", requests_of_too_small_a_scope=tried)


def test_no_method_but_its_own(fortress: Fortress, every: list[Route]) -> None:
    """And none by another name; what a preflight asks for is not granted."""
    of: dict[str, set[str]] = {}
    for route in every:
        of.setdefault(route.path, set()).add(route.method)
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "DELETE",
                 "Access-Control-Request-Headers": "authorization"}  # fmt: skip
    with httpx.Client(base_url=fortress.url, timeout=60) as client:
        for path, methods in of.items():
            for method in {"PUT", "PATCH", "POST", "DELETE", "TRACE", "PROPFIND"} - methods:
                answer = client.request(method, path, headers=fortress.bearer())
                assert answer.status_code == 405, (method, path, answer.text)
            asked = client.options(path, headers=preflight)
            assert asked.status_code in (403, 405)
            assert not [name for name in asked.headers if name.startswith("access-control-")]


def test_guesses_are_told_in_the_metrics(fortress: Fortress) -> None:
    """Nobody is locked out: 256 random bits are not guessed, and a lock would be a weapon.  An
    operator is told (docs/operate.md)."""
    with httpx.Client(base_url=fortress.url, timeout=60) as client:
        for number in range(50):
            form = {"token": f"dv_{number:043d}"}
            assert client.post("/login", data=form).status_code == 401
            guess = {"Authorization": f"Bearer dv_{number:043d}"}
            assert client.get("/v1/runs", headers=guess).status_code == 401
        told = client.get("/metrics", headers=fortress.bearer("read")).text
        assert client.get("/v1/runs", headers=fortress.bearer("read")).is_success
    counted = re.findall(r'deconvoy_request_seconds_count\{.*status="401"\} (\d+)', told)
    assert sum(map(int, counted)) >= 100


# -- where names lead ------------------------------------------------------------------------------

UP = ("..", "%2e%2e", "%2E.", "..%2f", "..%5c", "%2e%2e%5c", "..%00", "%00", "%c0%ae%c0%ae",
      "%252e%252e", "....//", "..;", "%uff0e%uff0e", "%ef%bc%8e%ef%bc%8e", "/etc", "%2fetc",
      "%2fproc%2fself", "C:%5c", "~", "%0d%0aX-Evil:%201", "linked", "plain%2f..%2f..", "-rf",
      "*", "file:%2f%2f%2fetc")  # fmt: skip
"""Ways up, or out, in a part of a path."""


def test_no_name_leads_out(fortress: Fortress, every: list[Route], tell: Tell) -> None:
    """In the place of every part of every path, and behind all of them."""
    asked = 0
    for route in every:
        if route.method != "GET" or "{" not in route.template or route.template.endswith("/events"):
            continue
        for part in re.findall(r"\{(\w+)\}", route.template):
            for way in UP:
                target = route.template.format(
                    **{**VALUES, part: f"{way}/secret" if part == "path" else way}
                )
                answer = fortress.sends("GET", target, fortress.bearer("read"))
                assert refused(answer, 400, 404, 422), (target, answer.whole[:300])
                assert "x-evil" not in answer.headers, target
                asked += 1
    tell("attack", ways_out_of_paths=asked, found_open=0)


@pytest.mark.parametrize(
    "path",
    [
        *("out.json", "layers/out/", "layers/out/secret.txt", "layers/out/secret/zarr.json"),
        *("images/loop", "images/loop/", "images/loop/x", "layers/../out.json", ".", "..", "//"),
        *("layers/relu2/c/../../../out.json", "zarr.json/", "zarr.json%00.png", "ZARR.JSON/.."),
        *("layers/relu2/%2e%2e/%2e%2e/out.json", "ledger/driver.lock", "ledger//driver.lock"),
        *("ledger/driver.lock/", "ledger/%64river.lock", "ledger/./driver.lock", "%2e/zarr.json"),
    ],
)
@pytest.mark.parametrize("run", ["outward", "plain/zarr/../../outward"])
def test_no_link_or_dot_leads_out_of_a_run(fortress: Fortress, run: str, path: str) -> None:
    for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": "*"}):
        target = f"/v1/runs/{run}/zarr/{path}"
        answer = fortress.sends("GET", target, fortress.bearer("read") | headers)
        assert refused(answer, 404), answer.whole[:300]


def test_a_run_of_any_name_is_reached_by_it_alone(fortress: Fortress) -> None:
    """Its name is a folder's, and may be markup."""
    with httpx.Client(base_url=fortress.url, headers=fortress.bearer(), timeout=60) as client:
        listed = {run["id"] for run in client.get("/v1/runs").json()["runs"]}
        assert listed == {"plain", "outward", HOSTILE[0]}
        for run in ("plain", HOSTILE[0]):
            shown = client.get(f"/v1/runs/{quoted(run)}")
            assert shown.is_success and shown.headers["content-type"] == "application/json"
        changed = {"name": attackers.SPOKEN[:200], "add_tags": list(HOSTILE[:4])}
        said = client.patch(f"/v1/runs/{quoted(HOSTILE[0])}", json=changed)
        assert said.is_success and said.json()["tags"] == list(HOSTILE[:4])
        table = client.get(f"/v1/runs/{quoted(HOSTILE[0])}/table", params={"format": "csv"})
        assert table.is_success and table.headers["content-type"].startswith("text/csv")
        assert "\n" not in table.headers.get("content-disposition", "")


def quoted(name: str) -> str:
    return "".join(f"%{byte:02X}" for byte in name.encode())


# -- where a spec leads ----------------------------------------------------------------------------


def places(fortress: Fortress, elsewhere: attackers.Lure) -> list[str]:
    """None of which a job may read."""
    root = f"{elsewhere.address}/public"
    host = elsewhere.address.removeprefix("http://")
    return [
        "http://169.254.169.254/latest/meta-data/", "http://[::ffff:169.254.169.254]/latest",
        f"{elsewhere.address}/secret", f"{elsewhere.address}/publicsecret",
        f"http://LOCALHOST:{host.rpartition(':')[2]}/public", f"https://{host}/public",
        f"{root}/../secret", f"{root}/%2e%2e/secret", f"{root}/..\\secret", f"{root}\\..\\secret",
        f"http://{host}@169.254.169.254/public", f"http://x@{host}/public",
        f"{root}/a/../../secret",
        f"http://{host}#@169.254.169.254/public", f"//{host}/public", f"HTTP://{host}/secret",
        "file:///etc/passwd", "gopher://127.0.0.1:6379/_x", "s3://secret/private",
        "s3://169.254.169.254/latest", "s3://../secret", "gs://secret/x", "az://secret/x",
        "/etc/passwd", "/proc/self/environ", str(fortress.folder / "secret.txt"),
        str(fortress.data / "link.png"), f"{fortress.data}/../secret.txt", "../secret.txt",
        f"{fortress.data}\0/x", str(fortress.home / "token"), str(fortress.home / "catalogue.db"),
        f"{fortress.home}/runs/.uploads/../../token", "~/.deconvoy/token", "\\\\host/share",
        f"{fortress.data}/shard-{{000..002}}/../../secret.tar",
    ]  # fmt: skip


FIELDS: tuple[tuple[str, Any], ...] = (
    ("data.uri", lambda place: {"data": {"uri": place}}),
    ("data.uri of several", lambda place: {"data": {"uri": ["shapes?size=9", place]}}),
    ("data.labels", lambda place: {"data": {"uri": "shapes?size=9", "labels": place}}),
    ("data.boxes", lambda place: {"data": {"uri": "shapes?size=9", "boxes": place}}),
    ("data.parts", lambda place: {"data": {"uri": "shapes?size=9", "parts": place}}),
    ("model.weights", lambda place: {"model": {"name": "deconvoy/zfnet_small", "weights": place}}),
    (
        "model.checkpoints",
        lambda place: {"model": {"name": "deconvoy/zfnet_small", "checkpoints": [place]}},
    ),
    ("model.classes", lambda place: {"model": {"name": "deconvoy/zfnet_small", "classes": place}}),
    ("model.name", lambda place: {"model": {"name": f"{place}/evil.py:make"}}),
    (
        "analyses.probe.data",
        lambda place: {"analyses": [{"kind": "probe", "data": {"uri": place}}]},
    ),
)
STUDY = {"kind": "study", "base": "deconvoy/zfnet_small", "edits": [{"remove": [3]}]}


def test_no_spec_leads_where_a_job_may_not_read(
    fortress: Fortress, elsewhere: attackers.Lure, tell: Tell
) -> None:
    plain = {"model": {"name": "deconvoy/zfnet_small"}, "data": {"uri": "shapes?size=9"}}
    tried = 0
    with httpx.Client(
        base_url=fortress.url, headers=fortress.bearer("submit"), timeout=60
    ) as client:
        for place in places(fortress, elsewhere):
            specs = [plain | make(place) for _, make in FIELDS]
            specs += [STUDY | {"data": {"uri": place}}]
            specs += [STUDY | {"data": {"uri": "shapes?size=9"}, "validation": {"uri": place}}]
            for spec in specs:
                for route in ("/v1/jobs", "/v1/plans"):
                    answer = client.post(route, json=spec, timeout=60)
                    assert answer.status_code == 422, (route, spec, answer.text)
                    assert SECRET not in answer.text and "root:x:" not in answer.text
                    tried += 1
        assert client.get("/v1/jobs").json()["jobs"] == []
    assert elsewhere.asked == []
    tell("attack", places_that_no_job_may_read=tried, asked_of_them=0)


def test_no_list_and_no_link_leads_where_a_job_may_not_read(
    fortress: Fortress, elsewhere: attackers.Lure, fire: Fire, tell: Tell
) -> None:
    """A list below a root may name any place: its job ends before it reads.  A link is skipped."""
    client = deconvoy.Client(fortress.url, fortress.tokens["submit"])
    outside = [one for one in places(fortress, elsewhere) if "\0" not in one]
    named = [f"photographs/{HOSTILE[0]}/{HOSTILE[0]}.png", *outside]
    with (fortress.data / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path"], *([one] for one in named)])
    mixed = fortress.data / "mixed"
    shutil.copytree(fortress.data / "photographs", mixed)
    (mixed / "link.png").symlink_to(fortress.folder / "secret.txt")
    plain = {"layers": ["relu2"], "analyses": [{"kind": "top", "k": 3}]}

    def job(uri: Path) -> ClientJob:
        given = {"uri": str(uri), "max_bad": 1.0}
        return client.submit(small_spec(name="led astray", data=given, **plain))

    with pytest.raises(JobFailed, match="is not below a root") as failed:
        job(fortress.data / "list.csv").wait(timeout=240.0)
    assert SECRET not in str(failed.value)
    if fire.full:
        (skipped,) = job(mixed).wait(timeout=240.0).run().skipped().to_pylist()
        assert "not below a root" in str(skipped) and SECRET not in str(skipped)
    assert elsewhere.asked == []
    tell("attack", places_of_a_list_that_no_job_may_read=len(outside))


# -- too much of everything ------------------------------------------------------------------------

MIB = 2**20


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def wide(count: int) -> bytes:
    return b"{" + b",".join(b'"f%d":%d' % (number, number) for number in range(count)) + b"}"


BODIES: dict[str, bytes] = {
    "deep": deep(100_000),
    "deep lists": b"[" * 500_000,
    "wide": wide(60_000),
    "a large number": b'{"seed":' + b"9" * 900_000 + b"}",
    "a large exponent": b'{"seed":1e999999999}',
    "not a number": b'{"seed":NaN,"data":{"limit":Infinity}}',
    "a long text": b'{"name":"' + b"x" * 900_000 + b'"}',
    "long lists": b'{"layers":[' + b",".join([b"1"] * 400_000) + b"]}",
    "a long key": b'{"' + b"k" * 900_000 + b'":1}',
    "one key often": b"{" + b",".join([b'"name":"x"'] * 80_000) + b"}",
    "no text": b"\xff\xfe{}",
    "half a pair": b'{"name":"\\ud800"}',
    "NUL": b'{"name":"a\\u0000b"}',
    "UTF-16": "{}".encode("utf-16"),
    "nothing": b"",
    "many globs": json.dumps({"layers": ["*" * 200] * 2000}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("route", ["/v1/plans", "/v1/jobs"])
def test_a_body_of_too_much_is_refused_soon(fortress: Fortress, route: str, name: str) -> None:
    headers = fortress.bearer("submit") | {"Content-Type": "application/json"}
    begun = time.monotonic()
    answer = fortress.sends("POST", route, headers, BODIES[name])
    assert refused(answer, 400, 413, 422), answer.whole[:300]
    assert time.monotonic() - begun < 15
    assert len(answer.whole) < 2 * MIB


def test_queries_and_heads_of_too_much_are_refused(fortress: Fortress, every: list[Route]) -> None:
    bearer = fortress.bearer("read")
    for value in ("9" * 5000, "-1", "1e9", "x" * 40_000, "%00", "%ff", "%F0%9F", "[]", "nan"):
        for route in every:
            if route.method == "GET" and route.template.startswith("/v1/runs"):
                for name in ("limit", "offset", "unit", "tile", "side", "layer", "units"):
                    answer = fortress.sends("GET", f"{route.path}?{name}={value}", bearer)
                    assert 200 <= answer.status < 500, (route, name, value, answer.whole[:300])
    for said in (
        request("GET", "/healthz", fortress.host, {"X": "x" * MIB}),
        request("GET", "/" + "x" * MIB, fortress.host),
        request("GET", "/healthz", fortress.host, {f"X{n}": "x" * 90 for n in range(5000)}),
        request("GET", "/healthz?" + "&".join(["a=1"] * 60_000), fortress.host),
        request("X" * MIB, "/healthz", fortress.host),
    ):
        answer = say(fortress.url, said)
        assert answer.status in (0, 400) and answer.closed


def test_uploads_of_too_much_are_refused(fortress: Fortress) -> None:
    """Whatever length they claim; names of parts and files mean nothing to a body."""
    most = 16 * MIB
    bearer = fortress.bearer("submit")
    for headers, body in (
        ({"Content-Length": str(most + 1)}, b"x"),
        ({"Content-Length": "9" * 30}, b"x"),
        ({"Content-Length": "-1"}, b"x"),
        ({"Transfer-Encoding": "chunked"}, b"%x\r\n" % (most + 1) + b"x" * (most + 1)),
        ({"Content-Length": "4", "Transfer-Encoding": "chunked"}, b"2\r\n{}\r\n0\r\n\r\n"),
    ):
        answer = fortress.sends("POST", "/v1/uploads", bearer | headers, body)
        assert answer.status in (0, 400, 413) and answer.closed, answer.whole[:300]
    part = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="../../../token"\r\n'
        b"Content-Type: image/png\r\n\r\n<svg onload=alert(1)>\r\n--b--\r\n"
    )
    typed = bearer | {"Content-Type": "multipart/form-data; boundary=b"}
    for body in (part, b"<svg/>", b"GIF89a<script>", b"\x89PNG\r\n\x1a\n", b"", b"%!PS"):
        answer = fortress.sends("POST", "/v1/uploads", typed, body)
        assert refused(answer, 422), answer.whole[:300]
    assert not list((fortress.runs / ".uploads").glob("*"))


def test_what_strangers_send_is_not_kept(fortress: Fortress, fire: Fire, tell: Tell) -> None:
    """Of 16 MiB each, in chunks without an end, nothing stays; nor is a form read that hides its
    length."""
    before, count = fortress.memory(), fire.of(8, 32)
    head = request("POST", "/v1/uploads", fortress.host, {"Transfer-Encoding": "chunked"})
    chunk = b"%x\r\n" % (15 * MIB) + b"x" * (15 * MIB)
    opened = []
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", int(fortress.host.split(":")[1])))
        opened.append(connection)
        try:
            connection.sendall(head + chunk)
        except OSError:  # it was told off, and the connection ended
            continue
    grown = fortress.memory() - before
    for connection in opened:
        connection.close()
    hiding = {"Content-Length": "4", "Transfer-Encoding": "chunked"}
    answer = fortress.sends("POST", "/login", hiding, chunk)
    assert answer.status in (0, 400)
    assert grown < 40
    tell("attack", MiB_sent_by_strangers=16 * count, MiB_kept_of_it=round(max(grown, 0.0), 1))


# -- slow, and many --------------------------------------------------------------------------------


def test_half_open_connections_hold_up_nobody(fortress: Fortress, fire: Fire, tell: Tell) -> None:
    """Heads and forms without an end, and readers that do not read; a head is waited for 20 s."""
    count = fire.of(50, 500)
    form = (
        b"POST /login HTTP/1.1\r\nHost: "
        + fortress.host.encode()
        + b"\r\nContent-Length: 99\r\n\r\nt"
    )
    with (
        half_open(fortress.url, count, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ") as slow,
        half_open(fortress.url, count, b""),
        half_open(fortress.url, count, form),
    ):
        taken = []
        with httpx.Client(
            base_url=fortress.url, headers=fortress.bearer("read"), timeout=60
        ) as client:
            for _ in range(50):
                begun = time.monotonic()
                assert client.get("/v1/runs/plain/layers/relu2/units/0").is_success
                taken.append(time.monotonic() - begun)
        if fire.full:
            time.sleep(21)
            with ThreadPoolExecutor(50) as pool:
                assert all(pool.map(lambda one: attackers.heard(one, 1)[1], slow))
    assert sorted(taken)[45] < 1.0
    tell("attack", half_open_connections=3 * count, median_ms_meanwhile=1000 * sorted(taken)[25])


# -- what is said about oneself --------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "169.254.169.254", "localhost:1@evil", ""]
)
def test_no_other_name_is_answered(fortress: Fortress, host: str, every: list[Route]) -> None:
    """A page elsewhere whose name leads here (DNS rebinding), with whatever it may know."""
    for route in every[:: 7 if host else 30]:
        answer = say(fortress.url, request(route.method, route.path, host, fortress.bearer()))
        assert answer.status in (400, 421), (route, answer.whole[:300])
    forwarded = {"X-Forwarded-Host": host, "Forwarded": f"host={host}"} | fortress.bearer()
    shown = fortress.sends("GET", "/v1/runs?limit=1", forwarded)
    assert shown.status == 200 and b"evil" not in shown.whole


SMUGGLED = b"GET /v1/runs HTTP/1.1\r\nHost: evil.example\r\n\r\n"


@pytest.mark.parametrize(
    "lengths",
    [
        *(b"Content-Length: 4\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: xchunked"),
        *(b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding : chunked"),
        *(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Content-Length: +2"),
        *(b"Content-Length: 2\r\nContent-Length: 60", b"Content-Length: 2, 60"),
        *(b"Content-Length: 0x2", b"Content-Length: 2\r\n Content-Length: 60"),
        *(b"Transfer-Encoding:\x0bchunked", b"X: y\x00\r\nTransfer-Encoding: chunked"),
    ],
)
def test_nothing_is_smuggled_behind_a_request(fortress: Fortress, lengths: bytes) -> None:
    """What servers and proxies may take for different lengths is refused, and the connection
    ended."""
    bearer = fortress.bearer("submit")["Authorization"].encode()
    head = b"POST /v1/plans HTTP/1.1\r\nHost: " + fortress.host.encode()
    head += b"\r\nAuthorization: " + bearer + b"\r\n" + lengths + b"\r\n\r\n"
    answer = say(fortress.url, head + b"2\r\n{}\r\n0\r\n\r\n" + SMUGGLED, 5)
    assert answer.status == 400 and answer.closed, answer.whole[:300]
    assert answer.whole.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "target", ["*", "..", "//", "///evil.example/x", "http://evil.example/v1/runs",
               "evil.example:80", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
               "/static/../../../etc/passwd",
               "/docs/..%2f..%2fsecret", "/docs/%2e%2e/app.py", "/media/..%2f..%2fetc%2fpasswd",
               "/component/x/../../../etc/passwd", "/_stcore/../v1/runs", "/%00", "/%ff%0d%0aX: y"]
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "CONNECT"])
def test_odd_targets_are_no_way_in(fortress: Fortress, method: str, target: str) -> None:
    for headers in ({}, fortress.bearer("read"), {"Accept": "text/html"}):
        answer = fortress.sends(method, target, headers)
        assert answer.status < 500 and SECRET.encode() not in answer.whole
        assert b"root:x:" not in answer.whole and b'"runs":' not in answer.whole
        assert "x" not in answer.headers
        to = answer.headers.get("location", "/login")
        assert to.startswith("/login") and "\\" not in to


def test_the_log_is_one_line_a_request_and_tells_no_secret(fortress: Fortress) -> None:
    fortress.sends("GET", "/v1/runs/x%0aevil%20line", fortress.bearer("read"))
    fortress.sends("GET", f"/v1/runs?text={fortress.tokens['read']}", fortress.bearer("read"))
    fortress.sends("GET", "/v1/runs", fortress.bearer("read") | {"X-Request-Id": "a b\x1b[31m"})
    said = fortress.service.log()
    assert "\nevil line" not in said and "\x1b" not in said
    assert not [secret for secret in fortress.tokens.values() if secret in said]


def test_secrets_are_compared_in_one_time() -> None:
    """By reading: where a secret is compared, it is by ``hmac.compare_digest``, or by the database,
    which compares digests of 256 random bits."""
    service = Path(__file__).parents[2] / "service"
    compared = re.compile(
        r"\b(secret|digest|key|session|code)\b\)?\s*[!=]=|[!=]=\s*\w*(secret|digest)"
    )
    for name in ("auth.py", "tokens.py", "sessions.py"):
        text = (service / name).read_text()
        in_database = re.sub(r"\.c\.digest == ", " is ", text)
        assert "compare_digest" in text and not compared.search(in_database), name
