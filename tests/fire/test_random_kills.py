"""SIGKILL for anything at random moments: the job finishes, or is resumed, to the same bits.

Victims are a worker, the driver, the API and Ray's raylet below `deconvoy up`; at that moment a
worker holds a lease, by the ledger's log, and a worker that is struck is the holder.  All the time
a process reads whatever there is.  FIRE_SEED repeats what a seed did, as far as time allows.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import deconvoy
from deconvoy.client import Client, ClientJob
from tests.fire.conftest import Fire, Tell
from tests.runs import assert_same_files, assert_same_results, committed_in, grants_of, run_inline
from tests.studies import long_study, run_study
from tests.test_kills import held_leases, long_spec
from tests.upped import Service, below, command_of, eventually
from workers.ledger import MAX_ATTEMPTS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]

VICTIMS = ("worker", "driver", "API", "raylet")

UNDERTAKINGS: dict[str, Any] = {"job": long_spec(), "study": long_study()}

WAYS_OUT = ("done", "interrupted", "stopped", "failed")


@pytest.fixture(scope="module")
def calm(fire: Fire, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Undisturbed, on the inline executor."""
    folder = tmp_path_factory.mktemp("calm")
    run_inline(long_spec(), folder / "job")
    if fire.full:
        run_study(long_study(), folder / "study")
    return {kind: folder / kind for kind in UNDERTAKINGS}


@contextmanager
def reader_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Reads all runs there as long as the context lasts; then the dict says what it saw."""
    told: dict[str, Any] = {}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fire.reader", str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield told
        out, _ = process.communicate("", timeout=120)
        told.update(json.loads(out))
    finally:
        process.kill()
        process.communicate()


class Struck:
    """One job or study of the service, and what has been done to it."""

    def __init__(self, service: Service, client: Client, kind: str) -> None:
        self.service, self.kind = service, kind
        self.job = client.submit(UNDERTAKINGS[kind])
        self.finished: dict[str, int] = {}
        """Items that had a marker when something was killed → grants of it by then."""

    @property
    def url(self) -> Path:
        return self.service.home / "runs" / self.job.id

    def has_ended(self) -> bool:
        return self.now().state in WAYS_OUT

    def now(self) -> ClientJob:
        self.job = self.job.refresh()
        return self.job

    def held(self) -> list[dict[str, Any]]:
        """Leases that can be struck: an item that takes down its fourth worker fails the job."""
        if not (self.url / "ledger/log.jsonl").exists():
            return []
        return [
            lease
            for lease in held_leases(self.url)
            if lease["attempt"] < MAX_ATTEMPTS and command_of(lease["pid"])
        ]

    def strike(self, victim: str, rng: random.Random) -> bool:
        """Kill it at a random moment with a lease held; False where the job ended before."""
        until = [0.0]

        def look() -> Any:
            if self.has_ended():
                return "ended"
            if not self.held():
                return None
            until[0] = until[0] or time.monotonic() + rng.uniform(0, 1.5)
            return self.held() if time.monotonic() > until[0] else None

        found = eventually(look, 240.0)
        if found == "ended":
            assert self.job.state == "done", (self.job.state, self.job.error)
            return False
        pid = found[-1]["pid"] if victim == "worker" else self._pid_of(victim)
        grants = grants_of(self.url)
        self.finished |= {item: grants[item] for item in committed_in(self.url)}
        if victim == "API":
            self.service.kill()
            self.service.start()
        else:
            os.kill(pid, signal.SIGKILL)
        return True

    def _pid_of(self, victim: str) -> int:
        if victim == "driver":
            return int((self.url / "ledger/driver.lock").read_text().split()[0])
        if victim == "raylet":
            (pid,) = (p for p in below(self.service.head()) if is_raylet(p))
            return pid
        return self.service.pid

    def recover(self, victim: str) -> float:
        """Resume it, if it was interrupted, until work goes on; how long that took."""
        since, resumed = time.monotonic(), False
        grants = sum(grants_of(self.url).values())

        def goes_on() -> bool:
            nonlocal resumed
            state = self.now().state
            if state == "interrupted":
                self.job.resume()
                resumed = True
            assert state not in ("failed", "stopped"), self.job.error
            return state == "done" or sum(grants_of(self.url).values()) > grants

        eventually(goes_on, 240.0)
        assert not resumed or victim in ("driver", "raylet"), f"the {victim} took the job down"
        return time.monotonic() - since

    def assert_whole(self, calm: Path) -> None:
        eventually(self.has_ended, 300.0)
        assert self.job.state == "done", self.job.error
        if self.kind == "study":
            assert_same_files(calm, self.url, "study", "networks", "ledger/study")
        else:
            assert_same_results(calm, self.url)
        grants = grants_of(self.url)
        again = [item for item, before in self.finished.items() if grants[item] > before]
        assert not again, "finished items were computed again"


def is_raylet(pid: int) -> bool:
    words = command_of(pid).split()
    return bool(words) and words[0].endswith("/raylet")


def test_whatever_is_killed_whenever_the_bits_are_those_of_a_calm_run(
    fire: Fire,
    tell: Tell,
    calm: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = int(os.environ.get("FIRE_SEED", time.time_ns() % 10**6))
    print(f"FIRE_SEED={seed}")  # which pytest shows where the test fails
    rng, count = random.Random(seed), fire.of(2, 50)
    victims = [VICTIMS[n % len(VICTIMS)] for n in range(count)]
    rng.shuffle(victims)
    each = fire.of(2, 5)
    lost: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
    kinds = Counter[str]()
    with Service(tmp_path / "home") as service, reader_of(tmp_path / "home/runs") as read:
        monkeypatch.setenv("DECONVOY_HOME", str(service.home))
        monkeypatch.setenv("DECONVOY_URL", service.url)
        with deconvoy.Client() as client:
            for first in range(0, count, each):
                kind = ("job", "study")[first // each % 2]
                left = victims[first : first + each]
                while left:
                    struck = Struck(service, client, kind)
                    while left and struck.strike(left[-1], rng):
                        lost[left[-1]].append(struck.recover(left[-1]))
                        kinds[kind] += 1
                        left.pop()
                    struck.assert_whole(calm[kind])
    assert read["reads"] > 100 and not read["wrong"], read["wrong"][:5]
    figures = {
        f"seconds_until_work_goes_on_after_a_killed_{victim}": f"{max(seconds):.1f} at most"
        for victim, seconds in lost.items()
        if seconds
    }
    tell(
        "kills at random moments", seed=seed, kills=count, of_jobs=kinds["job"],
        of_studies=kinds["study"], **figures, reads_meanwhile=read["reads"], half_written_seen=0,
        finished_items_computed_again=0, lost=0,
    )  # fmt: skip
