"""The Ray that runs beside a service: found again after a kill, private, and ended."""

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cluster import LocalCluster

pytestmark = pytest.mark.ray


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: sockets have one."""
    place = Path(tempfile.mkdtemp(prefix="dv", dir="/tmp"))
    yield place
    LocalCluster(place).end()
    shutil.rmtree(place, ignore_errors=True)


def listeners_of(pids: list[int]) -> set[str]:
    """Addresses that these processes listen on, from /proc."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(entry))
            except OSError:
                continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].rpartition(":")[0])
    return found


def lives(pid: int) -> bool:
    """One that ended and that nobody has waited for has no command line any more."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = [pid]
    for parent in found:
        found += [child for child, above in pairs if above == parent]
    return found


def test_it_is_started_once_found_again_private_and_ended(home: Path) -> None:
    address = LocalCluster(home).ensure()
    assert address.startswith("127.0.0.1:")
    assert LocalCluster(home).ensure() == address  # as a service that was killed finds it
    assert stat.S_IMODE((home / "ray.token").stat().st_mode) == 0o600
    known = LocalCluster(home)._known()
    assert known is not None
    pids = descendants(known.pid)
    assert len(pids) > 2
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert listeners_of(pids) <= loopback
    LocalCluster(home).end()
    assert LocalCluster(home).address() is None
    begin = time.monotonic()
    while any(map(lives, pids)) and time.monotonic() - begin < 20:
        time.sleep(0.1)
    assert not list(filter(lives, pids))


def test_a_head_that_was_killed_is_replaced(home: Path) -> None:
    first = LocalCluster(home).ensure()
    known = LocalCluster(home)._known()
    assert known is not None
    os.kill(known.pid, signal.SIGKILL)
    while LocalCluster(home).address() is not None:
        time.sleep(0.05)
    assert LocalCluster(home).ensure() != first


def test_a_head_whose_raylet_was_killed_ends_and_is_replaced(home: Path) -> None:
    """What is left of it would take jobs and never work on them."""
    first = LocalCluster(home).ensure()
    known = LocalCluster(home)._known()
    assert known is not None
    (raylet,) = (
        pid
        for pid in descendants(known.pid)
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet")
    )
    os.kill(raylet, signal.SIGKILL)
    begin = time.monotonic()
    while LocalCluster(home).address() is not None:
        assert time.monotonic() - begin < 30
        time.sleep(0.05)
    assert LocalCluster(home).ensure() != first


def test_the_state_of_somebody_elses_process_is_not_trusted(home: Path) -> None:
    (home / "ray.json").write_text(f'{{"pid": {os.getpid()}, "address": "127.0.0.1:1"}}')
    assert LocalCluster(home).address() is None
    LocalCluster(home).end()  # and it is not ended
    (home / "ray.json").write_text("cut sho")
    assert LocalCluster(home).address() is None
