"""A real S3 server for tests: moto, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

BUCKET = "photographs"

SECONDS_TO_START = 60


@contextmanager
def s3_server(log: Path, host: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Yields the environment variables that lead to it; it has one empty bucket.

    Args:
        host: an address of this machine.
    """
    with socket.socket() as probe:  # the server tells nobody which port it took
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    address = f"http://{host}:{port}"
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=sink, env=dict(os.environ))
        try:
            _wait_for(address, server, log)
            request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request, timeout=10).close()
            yield environment
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (URLError, OSError):
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"moto did not start: {log.read_text()}") from None
            time.sleep(0.1)
