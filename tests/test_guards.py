"""What every request meets first: which Host, which Origin, how large a body."""

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from starlette.websockets import WebSocketDisconnect

from service.guards import FORM_BYTES, guards
from service.settings import Settings
from tests.browsers import TestClient

MOST = 2048
LIVE = "ws://127.0.0.1:8000/live"


def application(**changes: object) -> FastAPI:
    app = FastAPI(middleware=guards(Settings(body_bytes=MOST, **changes)))

    @app.api_route("/", methods=["GET", "HEAD", "POST", "PUT", "DELETE"])
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/login")
    async def echo(code: str) -> str:
        return code

    @app.websocket("/live")
    async def greet(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    return app


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = application(host="10.0.0.7", hosts=("deconvoy.example", "[fe80::1]"))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8000", "localhost:1", "LOCALHOST", "localhost.", "[::1]:8000"),
        *("[::1]", "10.0.0.7:8000", "deconvoy.example", "Deconvoy.Example:443", "[fe80::1]:80"),
    ],
)
def test_a_name_of_this_service_is_let_through(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "evil@127.0.0.1"),
        *("127.0.0.1:8000@evil", "127.0.0.1/x", "127.0.0.1:port", "10.0.0.8", "testserver", "[::1"),
        *("127.0.0.1?x", "127.0.0.1#x", "0.0.0.0", "127.0.0.1, evil.example"),
    ],
)
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 421
    assert answer.headers["content-type"] == "application/problem+json"
    assert "DECONVOY_HOSTS" in answer.json()["detail"]
    assert answer.json()["status"] == 421


def test_a_foreign_host_opens_no_websocket(client: TestClient) -> None:
    with client.websocket_connect(LIVE) as socket:
        assert socket.receive_text() == "hello"
    with pytest.raises(WebSocketDisconnect) as closed:
        client.websocket_connect(LIVE, headers={"Host": "evil.example"}).__enter__()
    assert (closed.value.code, "The Host" in closed.value.reason) == (1008, True)


FOREIGN = (
    *("http://evil.example", "null", "", "http://127.0.0.1:8001", "https://127.0.0.1"),
    *("http://localhost:8000", "file://", "http://127.0.0.1:port", "127.0.0.1:8000"),
)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_a_foreign_origin_changes_nothing(
    client: TestClient, method: str, origin: str
) -> None:
    answer = client.request(method, "/", headers={"Origin": origin})
    assert answer.status_code == 403
    assert "may not do this" in answer.json()["detail"]


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_a_foreign_origin_opens_no_websocket(client: TestClient, origin: str) -> None:
    with pytest.raises(WebSocketDisconnect) as closed:
        client.websocket_connect(LIVE, headers={"Origin": origin}).__enter__()
    assert (closed.value.code, "the Origin" in closed.value.reason) == (1008, True)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://localhost", "localhost:80"),
        # A proxy may end TLS, and may say another Host.
        ("https://deconvoy.example", "deconvoy.example"),
        ("https://deconvoy.example:8443", "127.0.0.1:8000"),
    ],
)
def test_a_page_of_our_own_may_send(client: TestClient, origin: str, host: str) -> None:
    headers = {"Origin": origin, "Host": host}
    assert client.post("/", headers=headers).status_code == 200
    with client.websocket_connect(LIVE, headers=headers) as socket:
        assert socket.receive_text() == "hello"


def test_a_program_sends_no_origin_and_looking_needs_none(client: TestClient) -> None:
    assert client.post("/").status_code == 200
    foreign = {"Origin": "http://evil.example"}
    assert client.get("/", headers=foreign).status_code == 200
    assert client.head("/", headers=foreign).status_code == 200


def in_pieces(size: int) -> Iterator[bytes]:
    """Without a length, so it is sent in chunks."""
    for start in range(0, size, 500):
        yield b"x" * min(500, size - start)


def test_a_body_may_be_as_large_as_allowed(client: TestClient) -> None:
    assert client.post("/", content=b"x" * MOST).json() == MOST
    assert client.post("/", content=in_pieces(MOST)).json() == MOST
    assert client.post("/", content=in_pieces(0)).json() == 0
    assert client.get("/").json() == 0


def test_an_oversized_body_is_refused_with_and_without_its_length(client: TestClient) -> None:
    for content in (b"x" * (MOST + 1), in_pieces(MOST + 1), in_pieces(100 * MOST)):
        answer = client.post("/", content=content)
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert f"more than {MOST} bytes" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("length", "status"), [("-1", 400), ("x", 400), ("", 400), ("9" * 5000, 413), ("²", 400)]
)
def test_a_length_that_is_none_is_refused(client: TestClient, length: str, status: int) -> None:
    headers = {"Content-Length": length.encode("utf-8")}
    assert client.post("/", content=b"x", headers=headers).status_code == status


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def test_an_oversized_body_is_refused_by_a_real_server() -> None:
    """Which hands on the chunks as they come, and holds a body to the length it claims."""
    with served(application()) as address:
        assert httpx.post(address, content=in_pieces(MOST)).json() == MOST
        assert httpx.post(address, content=in_pieces(MOST + 1)).status_code == 413
        assert httpx.post(address, content=b"x" * (MOST + 1)).status_code == 413
        assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 421
        assert httpx.post(address, headers={"Origin": "null"}).status_code == 403


def said_to(address: str, *pieces: bytes) -> bytes:
    """What a server answers to bytes as they stand."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while b"}" not in answer and (more := connection.recv(2**16)):
            answer += more
        return answer


@pytest.mark.parametrize("lengths", [b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n"])
def test_no_length_hides_a_longer_body(lengths: bytes) -> None:
    """h11 goes by the chunks where a request says both."""
    with served(application()) as address:
        host = address.removeprefix("http://").encode()
        head = b"POST / HTTP/1.1\r\nHost: " + host + b"\r\n" + lengths + b"\r\n"
        chunk = b"%x\r\n" % (4 * MOST) + b"x" * (4 * MOST) + b"\r\n0\r\n\r\n"
        answer = said_to(address, head, chunk)
    assert answer.startswith(b"HTTP/1.1 400") and b"send one of them" in answer


def test_a_body_is_counted_whatever_length_it_claims() -> None:
    async def claims_little(scope: Any, receive: Any, send: Any) -> None:
        """A server that does not hold a body to its length."""
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], (b"content-length", b"4")]
        await application()(scope, receive, send)

    async def without_encoding(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["headers"] = [one for one in scope["headers"] if one[0] != b"transfer-encoding"]
        await claims_little(scope, receive, send)

    with served(without_encoding) as address:  # type: ignore[arg-type]
        assert httpx.post(address, content=in_pieces(100 * MOST)).status_code == 413


def test_who_is_refused_is_not_listened_to() -> None:
    """An answer that needs no body does not wait for one, and nothing of it is kept."""
    with served(application()) as address:
        host = address.removeprefix("http://").encode()
        head = b"PATCH / HTTP/1.1\r\nHost: " + host + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert said_to(address, head, b"400\r\nxxx").startswith(b"HTTP/1.1 405")


def test_who_goes_away_in_the_middle_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    with served(application()) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"POST / HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 99\r\n\r\nxx"
            connection.sendall(head.encode())
            time.sleep(0.3)
        time.sleep(0.3)
        assert httpx.get(address).is_success
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_the_form_of_strangers_is_small() -> None:
    app = application()

    @app.post("/login")
    async def read(request: Request) -> int:
        return len(await request.body())

    app.user_middleware[:] = guards(Settings())
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        assert client.post("/login", content=b"x" * FORM_BYTES).json() == FORM_BYTES
        for content in (b"x" * (FORM_BYTES + 1), in_pieces(FORM_BYTES + 1)):
            refused = client.post("/login", content=content)
            assert refused.status_code == 413 and "a token" in refused.json()["detail"]
        assert client.post("/", content=b"x" * (FORM_BYTES + 1)).json() == FORM_BYTES + 1


def test_a_login_code_is_not_in_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "uvicorn.access")
    with served(application()) as address:
        assert httpx.get(f"{address}/login?code=secret").json() == "secret"
        foreign = {"Host": "evil.example"}
        assert httpx.get(f"{address}/login?code=secret", headers=foreign).status_code == 421
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert len(lines) == 2 and all('"GET /login?hidden HTTP/1.1"' in line for line in lines)
