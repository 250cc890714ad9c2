"""``deconvoy up`` as a process of its own, as somebody starts it in a shell."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

START_SECONDS = 60.0

OTHERS = ("DECONVOY_", "RAY_")
"""Variables of whoever runs the tests, that must not reach the service."""


class Service:
    """One with a home of its own; as a context it ends with all its processes.

    Args:
        home: its folder; ``small.yaml`` and all else that jobs read is below the parent.
        options: further ones of ``deconvoy up``.
    """

    def __init__(self, home: Path, *options: str) -> None:
        self.home, self._options = home, options
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = home.parent / f"{home.name}.log"

    def __enter__(self) -> "Service":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it; a second time on the port it had."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(OTHERS)}
        said = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "up", "--port", str(self._port)]
                + list(self._options),
                cwd=self.home.parent,
                env={**clean, "DECONVOY_HOME": str(self.home)},
                stdout=log,
                stderr=log,
                # What runs the tests in the background may have told them to ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

        def port() -> str | None:
            assert self._process is not None and self._process.poll() is None, self.log()
            text = self._log.read_bytes()[said:].decode()
            found = re.search(r"Deconvoy is at http://127\.0\.0\.1:(\d+)", text)
            return None if found is None else found[1]

        self._port = int(eventually(port, START_SECONDS))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def head(self) -> int:
        """The process that is its Ray."""
        return int(json.loads((self.home / "ray.json").read_text())["pid"])

    def processes(self) -> set[int]:
        """Its own, its Ray's, and all below them."""
        return {self.pid, self.head(), *below(self.pid), *below(self.head())}

    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """As the kernel does where memory is short."""
        os.kill(self.pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait(30)

    def stop(self) -> int:
        """As Ctrl-C does; its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)


def below(pid: int) -> Iterator[int]:
    """The children of a process, and theirs."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        children = [child for child, parent in parents.items() if parent == one]
        yield from children
        waiting += children


def command_of(pid: int) -> str:
    """How a process was started; empty of one that ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(look: Callable[[], T | None], seconds: float = 60.0) -> T:
    """What ``look`` returns as soon as that is something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {look}"
        time.sleep(0.05)
    return found
