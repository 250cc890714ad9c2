"""Test what SIGKILL does to a job: nothing, for the bits; one more lease, for the ledger.

A kill goes to a process that is known, from the ledger's log, to hold a lease at that moment; so
that the log, and not luck, says that it hit.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deconvoy.spec import JobSpec
from deconvoy.specs import Spec
from tests.runs import (
    assert_same_results,
    committed_in,
    grants_of,
    log_of,
    resume_inline,
    run_inline,
    small_spec,
)
from workers import leasing, pipeline
from workers.ledger import Ledger

pytestmark = pytest.mark.ray


def long_spec() -> JobSpec:
    """Items of about a second, so that a kill finds them at work."""
    return small_spec(
        data={"uri": "shapes?size=1500&seed=2"},
        layers=["relu3", "relu4"],
        analyses=[{"kind": "top"}, {"kind": "projection", "units": {"sample": 0.5}}],
        compute={"workers": 2, "gpus_per_worker": 0.0, "shard_size": 300, "batch_size": 16},
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("calm") / "run"
    run_inline(
        small_spec(**{**long_spec().to_json(), "compute": {"shard_size": 300, "batch_size": 16}}),
        url,
    )
    return url


def held_leases(url: Path) -> list[dict[str, Any]]:
    """Leases granted and, as far as the log tells, neither committed nor lost; oldest first."""
    held: dict[str, dict[str, Any]] = {}
    for event in log_of(url):
        if event["event"] == "granted":
            held.pop(event["worker"], None)  # of an earlier driver, whose workers had these names
            held[event["worker"]] = event
        elif event["event"] in ("committed", "lost", "replaced"):
            held.pop(event["worker"], None)
    return list(held.values())


class Strike:
    """Sends a signal, once, to the worker that was granted the newest lease of a stage."""

    def __init__(self, url: Path, stage: str, number: signal.Signals, after: int) -> None:
        self.url, self.stage, self.number = url, stage, number
        self.after = after
        """Items of the stage that are committed before it strikes."""
        self.hit: dict[str, Any] | None = None

    def __call__(self) -> None:
        done = [item for item in committed_in(self.url) if item.startswith(self.stage)]
        held = [lease for lease in held_leases(self.url) if lease["item"].startswith(self.stage)]
        if self.hit is None and len(done) >= self.after and held:
            self.hit = held[-1]
            os.kill(self.hit["pid"], self.number)

    def assert_it_hit(self) -> None:
        """The lease was granted again, to another worker, and committed by that attempt alone."""
        assert self.hit is not None, f"no worker held a lease of the {self.stage}"
        item, first = self.hit["item"], self.hit["attempt"]
        granted = [e for e in log_of(self.url) if e["event"] == "granted" and e["item"] == item]
        assert [e["attempt"] for e in granted] == [*range(1, first + 1), first + 1]
        assert granted[-1]["pid"] != self.hit["pid"]
        committed = [e for e in log_of(self.url) if e["event"] == "committed" and e["item"] == item]
        assert [e["attempt"] for e in committed] == [first + 1]
        replaced = [e["worker"] for e in log_of(self.url) if e["event"] == "replaced"]
        assert self.hit["worker"] in replaced


def age(ledger: Ledger, worker: str) -> None:
    """Let the patience with a worker's lease run out."""
    lease = ledger.leases.get(worker)
    if lease is not None:
        ledger.leases[worker] = replace(lease, renewed=lease.renewed - 2 * ledger.patience)


def test_workers_killed_or_hung_at_work_are_replaced_and_leave_no_trace_in_the_bits(
    ray_cluster: str, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.executors.ray import RayExecutor

    ledgers: list[Ledger] = []

    def new_ledger(workers: int) -> Ledger:
        ledgers.append(Ledger(workers=workers))
        return ledgers[-1]

    monkeypatch.setattr(leasing, "Ledger", new_ledger)
    url = tmp_path / "run"
    strikes = [
        Strike(url, "scan/", signal.SIGKILL, after=1),
        Strike(url, "projection/", signal.SIGKILL, after=0),
        Strike(url, "projection/", signal.SIGSTOP, after=1),
    ]

    def observe(_: pipeline.Advance) -> None:
        for strike in strikes:
            strike()
        if strikes[-1].hit:  # stopped, not dead: let its ten minutes be over
            age(ledgers[-1], strikes[-1].hit["worker"])

    spec = long_spec()
    job, run = pipeline.create(spec, str(url))
    pipeline.execute(job, run, RayExecutor(spec.compute), observe)
    for strike in strikes:
        strike.assert_it_hit()
    hit = {strike.hit["item"] for strike in strikes if strike.hit}
    assert {n for item, n in grants_of(url).items() if item not in hit} == {1}
    assert_same_results(calm, url)


def test_a_place_whose_workers_die_over_their_leases_gets_one_that_takes_less_memory(
    ray_cluster: str, calm: Path, tmp_path: Path
) -> None:
    """As the system kills them, one after another: not over every lease of the job."""
    from workers.executors.ray import RayExecutor

    url, spec = tmp_path / "run", long_spec()
    compute = spec.compute.model_copy(update={"workers": 1})

    def kill_it(_: pipeline.Advance) -> None:
        ready = [event for event in log_of(url) if event["event"] == "ready"]
        for lease in held_leases(url):
            if lease["attempt"] == 1 and not ready[-1]["sparing"]:
                with suppress(ProcessLookupError):
                    os.kill(lease["pid"], signal.SIGKILL)

    job, run = pipeline.create(spec, str(url))
    pipeline.execute(job, run, RayExecutor(compute), kill_it)
    ready = [event["sparing"] for event in log_of(url) if event["event"] == "ready"]
    assert ready == [False, False, True]
    assert_same_results(calm, url)


DRIVER = """
import json, sys
from deconvoy import specs
from workers import undertaking
from workers.executors.ray import RayExecutor

verb, url, address, spec = sys.argv[1:]
if verb == "create":
    job, run = undertaking.create(specs.parse(json.loads(spec)), url)
else:
    job, run = undertaking.reopen(url)
executor = RayExecutor(job.compute, address)
undertaking.execute(job, run, executor, lambda advance: None)
"""


def kill_driver(
    verb: str, url: Path, address: str, when: Callable[[], bool], asked: Spec | None = None
) -> list[int]:
    """Start a driver in a process of its own, on the cluster; SIGKILL it when it is time.

    Returns:
        The process ids of its workers.
    """
    spec = (asked or long_spec()).model_dump_json()
    environment = {**os.environ, "RAY_ADDRESS": address}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, verb, str(url), address, spec],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    before = len(log_of(url))
    try:
        while not when():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    return [event["pid"] for event in log_of(url)[before:] if event["event"] == "ready"]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, f"workers {pids} outlive their driver"
        time.sleep(0.1)


def test_a_driver_killed_in_the_scan_and_again_in_the_projection_goes_on_to_the_same_bits(
    ray_cluster: str, calm: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"

    def at_work_on(stage: str) -> bool:
        done = any(item.startswith(stage) for item in committed_in(url))
        return done and any(lease["item"].startswith(stage) for lease in held_leases(url))

    wait_until_gone(kill_driver("create", url, ray_cluster, lambda: at_work_on("scan/")))
    scanned, scans = committed_in(url), grants_of(url)
    assert 0 < len(scanned) < 5

    wait_until_gone(kill_driver("resume", url, ray_cluster, lambda: at_work_on("projection/")))
    finished, grants = committed_in(url), grants_of(url)
    assert scanned < finished

    resume_inline(url)
    assert_same_results(calm, url)
    final = grants_of(url)
    again = [item for item in scanned if final[item] != scans[item]]
    again += [item for item in finished if final[item] != grants[item]]
    assert not again, "finished items were computed again"
