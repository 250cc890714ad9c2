"""The local token is shown to the service of this home, and to nobody else who listens where that
one did."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import deconvoy
from deconvoy import errors
from deconvoy.token_file import lock_file, token_for
from service.token_file import good_at
from tests.typing_in import Type, type_
from tests.upped import Service

__all__ = ["type_"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DECONVOY_TOKEN", raising=False)
    monkeypatch.setenv("DECONVOY_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text("dv_local\n")
    return tmp_path / "home"


@contextmanager
def thief(port: int = 0) -> Iterator[tuple[int, list[str | None]]]:
    """Somebody who listens; its port and the tokens that it was shown."""
    shown: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers.get("authorization"))
            content = b'{"detail": "Show it to me."}'
            self.send_response(401)
            self.send_header("content-type", "application/problem+json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nobody listens."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port, shown
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_whoever_listens_where_no_service_is_gets_no_token(home: Path, type_: Type) -> None:
    with thief() as (port, shown):
        code, _, err = type_("jobs", "--url", f"http://127.0.0.1:{port}")
        assert code == 2 and f"{str(home / 'token')!r} where `deconvoy up`" in err
        with pytest.raises(errors.RequestError):
            deconvoy.open(f"http://localhost:{port}/v1/runs/x")
        assert shown and set(shown) == {None}


def test_whoever_comes_after_the_service_gets_no_token(home: Path) -> None:
    """The same client, which has shown it to the service before."""
    with Service(home, "--ray", "none") as service:
        client = deconvoy.Client(service.url)
        assert list(client.runs()) == []
        named = service.url.replace("127.0.0.1", "localhost")
        assert list(deconvoy.Client(named).runs()) == []
        token = (home / "token").read_text().strip()
        assert token_for(service.url) == token
        service.kill()  # which leaves behind whatever it wrote
    assert token_for(service.url) is None
    with thief(int(service.url.rpartition(":")[2])) as (_, shown):
        with pytest.raises(errors.NotAllowed):
            list(client.runs())
    assert set(shown) == {None}
    with service:  # and there it is again
        assert list(client.runs()) == []


def test_the_token_is_for_the_address_of_the_service_alone(home: Path) -> None:
    with good_at(home, "127.0.0.1", 8000):
        assert token_for("http://127.0.0.1:8000/v1") == "dv_local"
        for url in ("http://127.0.0.1:8001", "http://127.0.0.1", "http://[::1]:8000",
                    "http://localhost:8000", "http://10.0.0.1:8000"):  # fmt: skip
            assert token_for(url) is None, url
    assert token_for("http://127.0.0.1:8000/v1") is None


def test_another_machine_with_this_home_has_no_service(home: Path) -> None:
    with good_at(home, "127.0.0.1", 8000):
        file = lock_file(home, "127.0.0.1", 8000)
        assert file.read_text() == socket.gethostname()
        file.write_text("another")
        assert token_for("http://127.0.0.1:8000") is None


def test_a_lock_that_others_could_hold_proves_nothing(home: Path) -> None:
    file = lock_file(home, "127.0.0.1", 8000)
    file.parent.mkdir()
    file.touch(mode=0o644)
    with good_at(home, "127.0.0.1", 8000):
        assert token_for("http://127.0.0.1:8000") == "dv_local"  # it was made its own
        os.chmod(file, 0o604)
        assert token_for("http://127.0.0.1:8000") is None


def test_a_service_waits_for_those_who_look(home: Path) -> None:
    look = (
        "from deconvoy.token_file import token_for\n"
        "print('looking', flush=True)\n"
        "while True: token_for('http://127.0.0.1:8000')"
    )
    with subprocess.Popen([sys.executable, "-c", look], stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None and looking.stdout.readline()
        for _ in range(200):
            with good_at(home, "127.0.0.1", 8000):
                assert token_for("http://127.0.0.1:8000") == "dv_local"
        looking.kill()
