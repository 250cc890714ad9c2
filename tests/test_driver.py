"""A job driven from a thread: what it tells of itself, stopping it, and going on."""

import time
from pathlib import Path

import pytest

import deconvoy
from deconvoy.pace import Pace
from deconvoy.spec import ComputeSpec, JobSpec
from tests.runs import assert_same_results, run_inline, small_spec
from workers.driver import LOG, Driver
from workers.executors import Executor
from workers.executors.inline import InlineExecutor
from workers.orders import Order


def inline(compute: ComputeSpec) -> Executor:
    return InlineExecutor()


def driver_of(spec: JobSpec, url: Path) -> Driver:
    return Driver(Order("a-job", str(url), spec.to_json()), inline)


def driven(driver: Driver) -> Driver:
    driver.start()
    driver.join(120.0)
    return driver


def test_a_driven_job_gives_the_run_that_the_command_line_gives(tmp_path: Path) -> None:
    run_inline(small_spec(), tmp_path / "expected")
    driver = driven(driver_of(small_spec(), tmp_path / "run"))
    status = driver.status()
    assert status.state == "done" and status.error is None
    assert status.progress is not None
    assert (status.progress.stage, status.progress.done) == ("projection", status.progress.total)
    assert_same_results(tmp_path / "run", tmp_path / "expected")


def test_its_log_stays_in_the_run(tmp_path: Path) -> None:
    driven(driver_of(small_spec(), tmp_path / "run"))
    lines = (tmp_path / "run" / LOG).read_text().splitlines()
    assert any("images: 40" in line for line in lines)
    assert lines[-1].endswith("done")


def test_whatever_ends_it_is_told(tmp_path: Path) -> None:
    def exits(compute: ComputeSpec) -> Executor:
        raise SystemExit("gone")

    driver = Driver(Order("a-job", str(tmp_path / "run"), small_spec().to_json()), exits)
    status = driven(driver).status()
    assert status.state == "failed"
    assert status.error == "SystemExit: gone"


def test_a_stopped_job_can_be_taken_up_by_another_driver(tmp_path: Path) -> None:
    run_inline(small_spec(), tmp_path / "expected")
    first = driver_of(small_spec(), tmp_path / "run")
    first.start()
    while first.status().progress is None and first.status().state == "running":
        time.sleep(0.01)
    first.stop()
    first.join(120.0)
    assert first.status().state == "stopped"
    assert deconvoy.open(tmp_path / "run").status == "stopped"
    assert driven(driver_of(small_spec(), tmp_path / "run")).status().state == "done"
    assert_same_results(tmp_path / "run", tmp_path / "expected")


def test_one_stopped_before_it_began_leaves_nothing(tmp_path: Path) -> None:
    driver = driver_of(small_spec(), tmp_path / "run")
    driver.stop()
    assert driven(driver).status().state == "stopped"
    assert not (tmp_path / "run").exists()


def test_a_job_that_is_wrong_fails_with_its_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    spec = small_spec(data={"uri": str(tmp_path / "nowhere")})
    status = driven(driver_of(spec, tmp_path / "run")).status()
    assert status.state == "failed"
    assert status.error is not None and "nowhere" in status.error
    assert not (tmp_path / "run").exists()


def test_the_pace_counts_what_was_done_since_a_stage_began() -> None:
    now = iter([0.0, 2.0, 10.0, 11.0])
    pace = Pace(lambda: next(now))
    first = pace.tell("scan", 100, 500)  # a resumed job
    assert first.rate is None and first.seconds_left is None
    assert pace.tell("scan", 120, 500).rate == pytest.approx(10)
    assert pace.tell("projection", 0, 10).rate is None
    assert pace.tell("projection", 4, 10).seconds_left == pytest.approx(1.5)
