"""`docker-compose.yml` as Compose reads it, and its commands as a container would run them, here.

What a container has of its own is replaced: names of other services by addresses, ports by free
ones, folders by temporary ones.  Everything else of a command and its environment stays.
"""

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / ".env.example"

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^}]*))?\})")


def example() -> dict[str, str]:
    """The variables that .env.example sets."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value for name, value in pairs}


def filled() -> dict[str, str]:
    """The same with secrets."""
    return {name: value or f"{name.lower()}0123456789" for name, value in example().items()}


def read(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with its variables put in.

    Raises:
        ValueError: one that must be set is not.
    """

    def put_in(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(lambda match: _value_of(match, variables), value)
        if isinstance(value, dict):
            return {key: put_in(each) for key, each in value.items()}
        return [put_in(each) for each in value] if isinstance(value, list) else value

    found: dict[str, Any] = put_in(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")))
    return found


def _value_of(match: re.Match[str], variables: Mapping[str, str]) -> str:
    name, kind, rest = match.groups()
    if name is None:
        return "$"
    given = variables.get(name, "")
    if not given and kind == "?":
        raise ValueError(f"{name}: {rest}")
    return given or (rest or "")


def free_port() -> int:
    """Apart from those that Ray gives its workers, and from those of the system."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port


class Here:
    """The services of a compose file on this machine.

    Args:
        services: as `read` gives them.
        replaced: texts of the file, and what stands for each here.
        folder: for logs.
    """

    def __init__(self, services: Mapping[str, Any], replaced: Mapping[str, str], folder: Path):
        self.services, self.replaced, self.folder = services, dict(replaced), folder
        self.temporary = Path(f"/tmp/dvc-{os.getpid()}")  # sockets of Ray need it short

    def words(self, given: str | list[str]) -> list[str]:
        """A command, ready to run."""
        if isinstance(given, str):
            words = shlex.split(self._here(given))
        else:
            words = [self._here(word) for word in given]
        programs = {
            "deconvoy": [sys.executable, "-m", "service.cli"],
            "python": [sys.executable],
            "ray": [sys.executable, "-m", "ray.scripts.scripts"],
        }
        return [*programs.get(words[0], [words[0]]), *words[1:]]

    def environment(self, service: str, **more: str | None) -> dict[str, str]:
        """That of a service; ``more`` is added, or left out where it is None."""
        given = {
            name: self._here(value)
            for name, value in self.services[service].get("environment", {}).items()
        }
        kept = {"PATH", "LANG", "TMPDIR"} & os.environ.keys()
        own = {name: os.environ[name] for name in kept} | {
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder),
            "RAY_TMPDIR": str(self.temporary),
            "PYTHONUNBUFFERED": "1",
        }
        merged = own | given | more
        return {name: value for name, value in merged.items() if value is not None}

    @contextmanager
    def started(
        self, service: str, apart: bool = False, **more: str | None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Its command, until the end of the block.

        Args:
            apart: in a space of processes of its own, as in a container, where that is allowed.
        """
        words = [*(_alone() if apart else ()), *self.words(self.services[service]["command"])]
        log = self.folder / f"{service}.log"
        with log.open("ab") as sink:
            process = subprocess.Popen(
                words, env=self.environment(service, **more), stdout=sink, stderr=sink,
                stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)

    def run(self, service: str, **more: str | None) -> subprocess.CompletedProcess[str]:
        """Its command, to its end."""
        return subprocess.run(
            self.words(self.services[service]["command"]), env=self.environment(service, **more),
            capture_output=True, text=True, timeout=120, cwd=self.folder,
        )  # fmt: skip

    def healthy(self, service: str) -> bool:
        """What its health check says, run once."""
        kind, *words = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        checked = subprocess.run(
            self.words(words), env=self.environment(service), capture_output=True, timeout=60
        )
        return checked.returncode == 0

    def until_healthy(self, service: str, process: subprocess.Popen[bytes]) -> None:
        def check() -> bool:
            assert process.poll() is None, self.log(service)
            return self.healthy(service)

        wait_for(check, 120.0, lambda: self.log(service))

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text(errors="replace")

    def _here(self, text: str) -> str:
        for there, here in self.replaced.items():
            text = text.replace(there, here)
        return text


def wait_for(true: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < seconds, told()
        time.sleep(0.3)


def _alone() -> list[str]:
    """Before a command: a space of processes of its own, where this user may make one."""
    words = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM"]
    if shutil.which("unshare") is None:
        return []
    tried = subprocess.run([*words, "true"], capture_output=True, timeout=30)
    return words if tried.returncode == 0 else []
