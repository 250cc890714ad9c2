"""Start the drivers of queued jobs, and keep the catalogue true: ``python -m service.dispatcher``.

A process beside the API, and the only one of the service that talks to Ray: Ray ends a process that
is attached to a cluster a minute after the cluster is gone, and the API must outlive that.  What it
knows is in the catalogue and in the ledgers of runs, so it may be killed at any time.
"""

import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import deconvoy
from deconvoy.errors import ClusterUnreachable, DeconvoyError, JobNotFound, RunNotFound
from service import launcher, logs
from service.catalogue import ACTIVE, Catalogue, Job
from service.settings import Settings

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.3

UNREACHABLE_SECONDS = 60.0
"""After so long without a cluster its jobs count as interrupted."""

STOP_SECONDS = 60.0
"""A driver that was told to stop and has not is ended."""

ATTEMPTS = 3
"""To start a driver that dies before its run is there."""


@runtime_checkable
class Drivers(Protocol):
    """Those of ``workers.drivers``."""

    def start(self, order: Any, /) -> None: ...
    def status(self, job: str, /) -> Any: ...
    def stop(self, job: str, /) -> None: ...
    def end(self, job: str, /) -> None: ...


class Dispatcher:
    """One turn after another."""

    def __init__(self, settings: Settings, catalogue: Catalogue, drivers: Drivers) -> None:
        self._settings, self._catalogue, self._drivers = settings, catalogue, drivers
        self._told_to_stop: dict[str, float] = {}

    def turn(self) -> None:
        active = self._catalogue.in_states(*ACTIVE)
        stopping = {job.id for job in active if job.state == "stopping"}
        self._told_to_stop = {j: t for j, t in self._told_to_stop.items() if j in stopping}
        for job in active:
            try:
                self._follow(job)
            except (ClusterUnreachable, JobNotFound) as error:
                logger.debug("%s", error)  # it is still loading, or perhaps in the next turn
            except DeconvoyError as error:  # of this job's run; others go on
                logger.error("Job %s: %s", job.id, error)
        while (new := self._catalogue.claim(self._settings.concurrent_jobs)) is not None:
            logger.info("Job %s starts.", new.id)
            roots = self._settings.readable
            self._drivers.start(launcher.order(_attempt_of(new), new.url, new.spec, roots))

    def _follow(self, job: Job) -> None:
        if job.state == "stopping":
            self._stop(job)
        status = self._drivers.status(_attempt_of(job))
        if status is None:
            settle(self._catalogue, job)
            return
        if status.progress is not None and status.progress != job.progress:
            self._catalogue.put_progress(job.id, status.progress)
        if status.state == "running":
            self._catalogue.move(job.id, "running", among=("starting",))
            return
        logger.info("Job %s: %s.", job.id, status.error or status.state)
        error = status.error if status.state == "failed" else None
        # First its process: killed between the two, we find no driver, and ask the run.
        self._drivers.end(_attempt_of(job))
        self._catalogue.move(job.id, status.state, among=ACTIVE, error=error)

    def _stop(self, job: Job) -> None:
        first = self._told_to_stop.setdefault(job.id, time.monotonic())
        if time.monotonic() - first > STOP_SECONDS:
            logger.warning("Job %s does not stop and is ended.", job.id)
            self._drivers.end(_attempt_of(job))
        else:
            with suppress(ClusterUnreachable):
                self._drivers.stop(_attempt_of(job))


def _attempt_of(job: Job) -> str:
    """What its driver is called: one of an earlier attempt is none of this one."""
    return f"{job.id}.{job.attempts}"


def settle(catalogue: Catalogue, job: Job) -> None:
    """Say of a job that nobody works on what its run says: the ledger is the truth."""
    try:
        run = deconvoy.open(job.url)
    except RunNotFound:
        if job.state == "stopping":
            catalogue.move(job.id, "stopped", among=ACTIVE)
        elif job.state == "starting" and job.attempts < ATTEMPTS:
            catalogue.move(job.id, "queued", among=("starting",))
        else:
            died = "Its driver died before there was a run: Ray's logs say why."
            catalogue.move(job.id, "interrupted", among=ACTIVE, error=died)
        return
    except DeconvoyError as error:
        catalogue.move(job.id, "interrupted", among=ACTIVE, error=str(error))
        return
    state = run.attributes.get("state", {}).get("status", "running")
    earlier = state == "stopped" and job.state != "stopping"  # it was resumed, and died at once
    if state != "running" and not earlier:
        catalogue.move(job.id, state, among=ACTIVE, error=run.failure or None)
    elif job.state == "stopping":
        catalogue.move(job.id, "stopped", among=ACTIVE)
    else:
        died = "Its driver died. Nothing committed is lost: resume it."
        catalogue.move(job.id, "interrupted", among=ACTIVE, error=died)


def give_up(catalogue: Catalogue, reason: str) -> None:
    """Say of all jobs at work that their cluster is gone."""
    for job in catalogue.in_states(*ACTIVE):
        logger.warning("Job %s is interrupted: %s", job.id, reason)
        catalogue.move(job.id, "interrupted", among=ACTIVE, error=f"{reason} Resume it.")


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Wait until no other dispatcher of this home is there."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (home / "dispatcher.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Ending:
    """Told to end, or left alone by the API."""

    def __init__(self) -> None:
        self._parent, self._told = os.getppid(), threading.Event()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the API ends us
        signal.signal(signal.SIGTERM, lambda *_: self._told.set())

    def wait(self, seconds: float) -> bool:
        return self._told.wait(seconds) or os.getppid() != self._parent


def main() -> int:
    settings = Settings()
    logs.configure_process(settings.log)
    ending, address = _Ending(), os.environ["RAY_ADDRESS"]
    catalogue = Catalogue(settings.database_url)
    with only_one(settings.home_folder):
        begin = time.monotonic()
        while True:
            try:
                drivers = launcher.drivers(address)
                break
            except DeconvoyError as error:
                logger.warning("%s", error)
                if time.monotonic() - begin > UNREACHABLE_SECONDS:
                    give_up(catalogue, f"The cluster at {address} cannot be reached.")
                if ending.wait(2.0):
                    return 0
        dispatcher = Dispatcher(settings, catalogue, drivers)
        while not ending.wait(TURN_SECONDS):
            dispatcher.turn()
    return 0


if __name__ == "__main__":
    sys.exit(main())
