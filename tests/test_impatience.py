"""Connections that are slow to ask are ended; those that ask in time may take theirs."""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service import impatience
from service.settings import Settings
from service.up import server_config
from tests.serving import serving

PATIENCE = 0.4


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """After a while, where that is asked for."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * PATIENCE)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"here"})


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(impatience, "HEAD_SECONDS", PATIENCE)
    with serving(server_config(answer, Settings())) as address:
        yield address


def connected(address: str) -> socket.socket:
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def is_ended(connection: socket.socket) -> bool:
    began = time.monotonic()
    ended = connection.recv(2**16) == b""
    return ended and 0.5 * PATIENCE < time.monotonic() - began < 20 * PATIENCE


@pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_head_without_an_end_is_not_waited_for(address: str, said: bytes) -> None:
    with connected(address) as connection:
        connection.sendall(said)
        assert is_ended(connection)


def test_nor_one_that_comes_letter_by_letter(address: str) -> None:
    with connected(address) as connection:
        for letter in range(100):
            try:
                connection.sendall(b"GET / HTTP/1.1\r\n"[letter : letter + 1] or b"x")
            except OSError:
                return
            time.sleep(PATIENCE / 10)
    pytest.fail("it was still listened to after ten times as long")


def test_nor_a_second_one(address: str) -> None:
    with connected(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"here" in connection.recv(2**16) + connection.recv(2**16)
        connection.sendall(b"GET / HT")
        while connection.recv(2**16):
            pass


def test_an_answer_may_take_longer(address: str) -> None:
    with httpx.Client(base_url=address) as client:
        for path in ("/slow", "/", "/slow"):
            assert client.get(path).text == "here"


def test_a_head_is_bounded_whatever_else_is_installed(address: str) -> None:
    # The connection ends while there is more to come, which not every client hears out.
    with contextlib.suppress(httpx.ReadError, httpx.WriteError):
        assert httpx.get(address, headers={"X": "x" * 200_000}).status_code == 400
