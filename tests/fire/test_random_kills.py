"""SIGKILL for anything at random moments: the job finishes, or is resumed, to the same bits.

Victims are a worker, the driver, the API and Ray's raylet below `deconvoy up`; at that moment a
worker holds a lease, by the ledger's log, and a worker that is struck is the holder.  All the time
a process reads whatever there is.  FIRE_SEED repeats what the rounds from that seed on did, as far
as time allows.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
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

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]

VICTIMS = ("worker", "driver", "API", "raylet")

UNDERTAKINGS: dict[str, Any] = {"job": long_spec(), "study": long_study()}

ROUNDS, KILLS = 10, 5
"""At full length."""

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
        done = committed_in(self.url)  # before its grants: between the two there may be another
        grants = grants_of(self.url)
        self.finished |= {item: grants[item] for item in done}
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


@dataclass
class Score:
    """Of all rounds so far."""

    seeds: list[int] = field(default_factory=list)
    lost: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds until work went on, by victim."""
    kinds: Counter[str] = field(default_factory=Counter)
    reads: int = 0
    """By another process meanwhile, none of half of anything."""

    def figures(self) -> dict[str, Any]:
        """What is told as 0 was asserted to be."""
        found: dict[str, Any] = {
            f"seconds_until_work_goes_on_after_a_killed_{victim}":
            f"{median(seconds):.1f} as a rule, {max(seconds):.1f} at most, of {len(seconds)}"
            for victim, seconds in sorted(self.lost.items())
        }  # fmt: skip
        kills = sum(map(len, self.lost.values()))
        return {
            "seeds": f"{self.seeds[0]} to {self.seeds[-1]}", "kills": kills,
            "of_jobs": self.kinds["job"], "of_studies": self.kinds["study"], **found,
            "reads_meanwhile": self.reads, "half_written_seen": 0,
            "finished_items_computed_again": 0, "lost": 0,
        }  # fmt: skip


@pytest.fixture(scope="module")
def score() -> Score:
    return Score()


@pytest.fixture(scope="module")
def first_seed() -> int:
    return int(os.environ.get("FIRE_SEED", time.time_ns() % 10**6))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all rounds, which is killed itself now and then."""
    with Service(tmp_path_factory.mktemp("struck") / "home") as service:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DECONVOY_HOME", str(service.home))
            patch.setenv("DECONVOY_URL", service.url)
            yield service


@pytest.mark.parametrize("number", range(ROUNDS))
def test_whatever_is_killed_whenever_the_bits_are_those_of_a_calm_run(
    fire: Fire,
    tell: Tell,
    calm: dict[str, Path],
    service: Service,
    score: Score,
    first_seed: int,
    number: int,
) -> None:
    """A round: some kills of jobs, or of studies."""
    if number:
        fire.skip_short()
    seed = first_seed + number
    print(f"FIRE_SEED={seed}")  # which pytest shows where the test fails
    rng = random.Random(seed)
    # Each is struck once in a round, and one of them twice, another one each round.
    left = rng.sample([*VICTIMS, VICTIMS[number % len(VICTIMS)]], fire.of(2, KILLS))
    kind = ("job", "study")[number % 2]
    with deconvoy.Client() as client, reader_of(service.home / "runs") as read:
        while left:
            struck = Struck(service, client, kind)
            while left and struck.strike(left[-1], rng):
                score.lost[left[-1]].append(struck.recover(left[-1]))
                score.kinds[kind] += 1
                left.pop()
            struck.assert_whole(calm[kind])
    assert read["reads"] > 100 and not read["wrong"], read["wrong"][:5]
    score.seeds.append(seed)
    score.reads += read["reads"]
    tell("kills at random moments", **score.figures())
