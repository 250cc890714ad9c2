"""SIGKILL for the driver of a study, and then for a worker: the bits are those of a calm one."""

import signal
from pathlib import Path

import pytest

from tests.fire.conftest import Fire
from tests.runs import assert_same_files, committed_in, grants_of, log_of
from tests.studies import long_study, run_study
from tests.test_kills import Strike, held_leases, kill_driver, wait_until_gone
from workers import leasing, undertaking

pytestmark = pytest.mark.ray


def test_a_study_whose_driver_and_then_a_worker_are_killed_has_the_bits_of_a_calm_one(
    fire: Fire, ray_cluster: str, tmp_path: Path
) -> None:
    """(At random moments, with jobs in between, in test_random_kills.py.)"""
    fire.skip_short()
    from workers.executors.ray import RayExecutor

    url = tmp_path / "run"

    def has_put_one_away() -> bool:
        return any((url / "ledger/study").glob("state-*")) and bool(held_leases(url))

    wait_until_gone(kill_driver("create", url, ray_cluster, has_put_one_away, long_study()))
    finished, grants = committed_in(url), grants_of(url)
    assert len(finished) < 4

    strike = Strike(url, "study/", signal.SIGKILL, after=0)
    job, run = undertaking.reopen(str(url))
    resumed = len(log_of(url))

    def observe(_: leasing.Advance) -> None:
        if any(event["event"] == "granted" for event in log_of(url)[resumed:]):
            strike()

    undertaking.execute(job, run, RayExecutor(job.compute), observe)
    assert strike.hit is not None
    last = [e for e in log_of(url) if e["event"] == "granted" and e["item"] == strike.hit["item"]]
    assert last[-1]["pid"] != strike.hit["pid"] and last[-1]["attempt"] == 2
    run_study(long_study(), tmp_path / "calm")
    assert_same_files(tmp_path / "calm", url, "study", "networks", "ledger/study")
    assert all(grants_of(url)[item] == grants[item] for item in finished)
