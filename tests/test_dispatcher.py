"""Jobs from the queue to their end, with real drivers: in threads here, on Ray in other tests."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deconvoy
from deconvoy.errors import ClusterUnreachable, JobConflict, KeyReused, RequestError
from deconvoy.spec import JobSpec
from service import dispatcher
from service.catalogue import Catalogue, Job
from service.dispatcher import ATTEMPTS, Dispatcher, give_up
from service.jobs import Queue
from service.settings import Settings
from tests.runs import assert_same_results, run_inline, small_spec
from workers.driver import Driver
from workers.executors.inline import InlineExecutor
from workers.orders import DriverStatus, Order


class InThreads:
    """The drivers of this process, by the ids of their jobs; they can be made to die or to fall
    silent."""

    def __init__(self) -> None:
        self.drivers: dict[str, Driver] = {}
        self.attempts: list[str] = []
        self.stillborn = self.silent = False

    @property
    def started(self) -> list[str]:
        return [_job_of(attempt) for attempt in self.attempts]

    def start(self, order: Order) -> None:
        self.attempts.append(order.job)
        if not self.stillborn:
            driver = Driver(order, lambda compute: InlineExecutor())
            self.drivers[_job_of(order.job)] = driver
            driver.start()

    def status(self, attempt: str) -> DriverStatus | None:
        self._require_answer()
        return self.drivers[_job_of(attempt)].status() if _job_of(attempt) in self.drivers else None

    def stop(self, attempt: str) -> None:
        self._require_answer()
        if _job_of(attempt) in self.drivers:
            self.drivers[_job_of(attempt)].stop()

    def end(self, attempt: str) -> None:
        driver = self.drivers.pop(_job_of(attempt), None)
        if driver is not None:  # a thread cannot be killed
            driver.stop()
            driver.join(60.0)
            self.silent = False

    def _require_answer(self) -> None:
        if self.silent:
            raise ClusterUnreachable("It does not answer.")


def _job_of(attempt: str) -> str:
    return attempt.rpartition(".")[0]


class Service:
    """A queue, a dispatcher and their catalogue."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, runs=str(home / "runs"), ray="none")
        self.catalogue = Catalogue(self.settings.database_url)
        self.catalogue.upgrade()
        self.queue = Queue(self.settings, self.catalogue)
        self.threads = InThreads()
        self.restart()

    def restart(self) -> None:
        """As after a kill: it knows what the catalogue knows."""
        self.dispatcher = Dispatcher(self.settings, self.catalogue, self.threads)

    def submit(self, spec: JobSpec | None = None, key: str | None = None) -> Job:
        job, _ = self.queue.submit((spec or small_spec()).to_json(), "anna", key)
        return job

    def until(self, job: Job, *states: str, seconds: float = 90.0) -> Job:
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            self.dispatcher.turn()
            now = self.catalogue.job(job.id)
            if now.state in states:
                return now
            time.sleep(0.02)
        raise AssertionError(f"{job.id} is {now.state} ({now.error}), not {states}")

    def until_progress(self, job: Job, is_enough: Callable[[Any], bool]) -> None:
        begin = time.monotonic()
        while time.monotonic() - begin < 90:
            self.dispatcher.turn()
            progress = self.catalogue.job(job.id).progress
            if progress is not None and is_enough(progress):
                return
        raise AssertionError("no progress")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    for driver in made.threads.drivers.values():
        driver.stop()
        driver.join(60.0)
    made.catalogue.close()


def test_a_queued_job_is_run_and_its_end_is_known(service: Service, tmp_path: Path) -> None:
    run_inline(small_spec(), tmp_path / "expected")
    job = service.submit()
    assert job.state == "queued"
    done = service.until(job, "done")
    assert done.error is None and done.started and done.ended
    assert done.progress is not None and done.progress.done == done.progress.total
    assert_same_results(Path(done.url), tmp_path / "expected")
    assert not service.threads.drivers  # its process is not kept


def test_no_more_jobs_run_at_a_time_than_are_allowed(service: Service) -> None:
    jobs = [service.submit() for _ in range(2)]
    service.dispatcher.turn()
    assert [service.catalogue.job(job.id).state for job in jobs] == ["starting", "queued"]
    service.until(jobs[0], "done")
    service.until(jobs[1], "done")
    assert service.threads.started == [job.id for job in jobs]


def test_a_cancelled_job_stops_and_can_be_resumed(service: Service, tmp_path: Path) -> None:
    run_inline(small_spec(), tmp_path / "expected")
    job = service.submit()
    service.until_progress(job, lambda progress: True)
    assert service.queue.cancel(job.id).state == "stopping"
    assert service.queue.cancel(job.id).state in ("stopping", "stopped")  # twice is no error
    service.until(job, "stopped")
    assert deconvoy.open(job.url).status == "stopped"
    assert service.queue.resume(job.id).state == "queued"
    service.until(job, "done")
    assert_same_results(Path(job.url), tmp_path / "expected")


def test_one_cancelled_before_its_turn_never_starts(service: Service) -> None:
    job = service.submit()
    assert service.queue.cancel(job.id).state == "stopped"
    service.dispatcher.turn()
    assert not service.threads.started
    assert not Path(job.url).exists()


def test_what_fails_says_why(service: Service, tmp_path: Path) -> None:
    spec = small_spec(layers=["nowhere"])
    failed = service.until(service.submit(spec), "failed")
    assert failed.error is not None and "nowhere" in failed.error
    assert service.queue.log(failed.id) == [failed.error]
    with pytest.raises(JobConflict, match="would fail again"):
        service.queue.resume(failed.id)


@pytest.mark.parametrize("state", ["starting", "running"])
def test_a_job_whose_driver_died_is_interrupted_and_goes_on_when_resumed(
    service: Service, tmp_path: Path, state: str
) -> None:
    run_inline(small_spec(), tmp_path / "expected")
    job = service.submit()
    service.until_progress(job, lambda progress: True)
    driver = service.threads.drivers.pop(job.id)
    driver.stop()
    driver.join(60.0)
    # As a killed one leaves it: nobody has written that it was stopped.
    deconvoy.store.RunStore(job.url).zarr("r+").attrs.update({"state": {"status": "running"}})
    service.catalogue.move(job.id, state, among=("starting", "running"))
    service.restart()
    interrupted = service.until(job, "interrupted")
    assert interrupted.error is not None and "resume" in interrupted.error
    service.queue.resume(job.id)
    service.until(job, "done")
    assert_same_results(Path(job.url), tmp_path / "expected")


def test_a_service_that_comes_back_finds_its_jobs_still_at_work(service: Service) -> None:
    job = service.submit()
    service.until_progress(job, lambda progress: True)
    service.restart()
    service.until(job, "done")
    assert service.threads.started == [job.id]


def test_one_that_ended_while_nobody_looked_is_known_by_its_run(service: Service) -> None:
    job = service.submit()
    service.dispatcher.turn()
    service.threads.drivers[job.id].join(90.0)
    service.threads.drivers.clear()  # its process is gone, too
    service.restart()
    service.until(job, "done")


def test_a_driver_that_dies_at_once_is_started_again_a_few_times(service: Service) -> None:
    service.threads.stillborn = True
    job = service.submit()
    interrupted = service.until(job, "interrupted")
    assert service.threads.started == [job.id] * ATTEMPTS
    assert interrupted.error is not None and "before there was a run" in interrupted.error


def test_one_resumed_whose_driver_dies_at_once_is_interrupted_and_not_stopped(
    service: Service,
) -> None:
    job = service.submit()
    service.until_progress(job, lambda progress: True)
    service.queue.cancel(job.id)
    service.until(job, "stopped")
    service.threads.stillborn = True
    service.queue.resume(job.id)
    interrupted = service.until(job, "interrupted", "stopped")
    assert interrupted.state == "interrupted" and interrupted.error is not None


def test_one_that_does_not_answer_is_ended_when_it_does_not_stop(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = service.submit()
    service.until(job, "running")
    service.threads.silent = True
    service.queue.cancel(job.id)
    service.dispatcher.turn()
    assert service.catalogue.job(job.id).state == "stopping"
    monkeypatch.setattr(dispatcher, "STOP_SECONDS", 0.0)
    service.until(job, "stopped")


def test_a_second_cancel_has_its_own_time(service: Service) -> None:
    job = service.submit()
    service.until_progress(job, lambda progress: True)
    service.queue.cancel(job.id)
    service.until(job, "stopped")
    service.queue.resume(job.id)
    service.dispatcher.turn()
    assert not service.dispatcher._told_to_stop
    assert service.threads.attempts == [f"{job.id}.1", f"{job.id}.2"]


def test_a_run_that_cannot_be_read_holds_up_no_other_job(service: Service) -> None:
    broken, other = service.submit(), service.submit()
    service.dispatcher.turn()
    service.threads.end(f"{broken.id}.1")
    (Path(broken.url) / "zarr.json").unlink(missing_ok=True)
    Path(broken.url).mkdir(parents=True, exist_ok=True)
    (Path(broken.url) / "zarr.json").write_text("{}")
    service.until(broken, "interrupted")
    service.until(other, "done")


def test_silence_is_no_death(service: Service) -> None:
    job = service.submit()
    service.until(job, "running")
    service.threads.silent = True
    for _ in range(3):
        service.dispatcher.turn()
    assert service.catalogue.job(job.id).state == "running"
    service.threads.silent = False
    service.until(job, "done")


def test_without_a_cluster_what_was_at_work_is_interrupted_and_the_queue_stays(
    service: Service,
) -> None:
    working, waiting = service.submit(), service.submit()
    service.until(working, "running")
    give_up(service.catalogue, "The cluster is gone.")
    assert service.catalogue.job(working.id).state == "interrupted"
    assert service.catalogue.job(waiting.id).state == "queued"


def test_the_same_key_twice_is_one_job(service: Service) -> None:
    first, again = service.submit(key="a"), service.submit(key="a")
    assert first.id == again.id
    with pytest.raises(KeyReused):
        service.submit(small_spec(seed=3), key="a")


def test_ended_jobs_are_not_cancelled_nor_running_ones_resumed(service: Service) -> None:
    job = service.submit()
    with pytest.raises(JobConflict, match="queued"):
        service.queue.resume(job.id)
    service.until(job, "done")
    with pytest.raises(JobConflict, match="nothing to cancel"):
        service.queue.cancel(job.id)
    with pytest.raises(JobConflict, match="nothing to resume"):
        service.queue.resume(job.id)


def test_a_wrong_spec_never_enters_the_queue(service: Service) -> None:
    with pytest.raises(RequestError, match="model"):
        service.queue.submit({"version": 1, "model": {"nam": "x"}}, "anna")
    assert service.catalogue.jobs() == []
