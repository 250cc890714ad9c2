"""The Ray of this machine that runs beside the service: started once, found again, ended.

It is a process of its own (``service.head``), so that jobs go on when the service is killed.  Only
this machine reaches it, with a token that only the user can read.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deconvoy.errors import ClusterUnreachable

START_SECONDS = 120.0
"""Ray takes 5 to 20 s to start on two cores."""

END_SECONDS = 20.0

SECRETS = ("DECONVOY_DATABASE", "DECONVOY_TOKEN")
"""Variables that only the API and the dispatcher need."""

_children: list[subprocess.Popen[bytes]] = []
"""Those started by this process, which nobody waits for: they are to outlive it."""


@dataclass(frozen=True)
class _Head:
    """What the state file says."""

    pid: int
    address: str


class LocalCluster:
    """At most one for each home folder."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._state, self._token, self._log = (
            home / name for name in ("ray.json", "ray.token", "ray.log")
        )
        self._started: subprocess.Popen[bytes] | None = None

    def environment(self) -> dict[str, str]:
        """What processes need to reach it."""
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray listens on the loopback address alone
        }

    def address(self) -> str | None:
        """Of the one that lives."""
        known = self._known()
        return known.address if known is not None and _is_head(known.pid) else None

    def ensure(self) -> str:
        """The address of the one that lives, else of one started now.

        Raises:
            ClusterUnreachable: it did not start.
        """
        if (address := self.address()) is not None:
            return address
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state.unlink(missing_ok=True)
        self._make_token()
        environment = {**without_secrets(os.environ), **self.environment()}
        for other in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):  # of somebody else's cluster
            environment.pop(other, None)
        with self._log.open("ab") as log:
            self._started = process = subprocess.Popen(
                [sys.executable, "-m", "service.head", str(self._state)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _children.append(process)
        begin = time.monotonic()
        while time.monotonic() - begin < START_SECONDS:
            if (address := self.address()) is not None:
                return address
            if process.poll() is not None:
                raise ClusterUnreachable(
                    f"Ray did not start (exit status {process.returncode}): {self._log} says why; "
                    "`deconvoy doctor` checks this machine."
                )
            time.sleep(0.1)
        process.terminate()
        raise ClusterUnreachable(
            f"Ray did not start in {START_SECONDS:.0f} s: {self._log} says how far it came."
        )

    def end(self) -> None:
        """End it and all that runs on it."""
        known = self._known()
        if known is not None:
            pid = known.pid
        elif self._started is not None and self._started.poll() is None:
            pid = self._started.pid  # it is starting and has not said where it is
        else:
            return
        if not _is_head(pid):
            return
        with suppress(ProcessLookupError):  # it may end by itself meanwhile
            os.kill(pid, signal.SIGTERM)
            begin = time.monotonic()
            while _is_head(pid) and time.monotonic() - begin < END_SECONDS:
                time.sleep(0.1)
            if _is_head(pid):
                os.kill(pid, signal.SIGKILL)
        self._state.unlink(missing_ok=True)

    def _known(self) -> "_Head | None":
        try:
            found: Any = json.loads(self._state.read_text(encoding="utf-8"))
            return _Head(int(found["pid"]), str(found["address"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _make_token(self) -> None:
        if self._token.exists() and self._token.stat().st_size:
            return
        self._token.unlink(missing_ok=True)  # of one that was killed before it had written
        descriptor = os.open(self._token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(32))


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """For processes that run the code of jobs, which the catalogue is none of."""
    return {name: value for name, value in environment.items() if name not in SECRETS}


def _is_head(pid: int) -> bool:
    """Whether that process lives and is one of ours: numbers are used again."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"service.head" in words
