"""A job at a service, as it was when it was asked about, and what can be done with it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, PrivateAttr

from deconvoy.connection import Connection
from deconvoy.errors import JobFailed, JobStopped, RunNotFound
from deconvoy.pace import Progress
from deconvoy.progress import shown
from deconvoy.run import Run
from deconvoy.watching import ENDED, watch


class ClientJob(BaseModel):
    """Frozen: ``refresh``, ``wait``, ``cancel`` and ``resume`` return the job as it is then."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    """Of the job and of its run."""
    name: str
    state: str
    """queued, starting, running, stopping, done, failed, stopped or interrupted"""
    submitter: str
    """The name of the token it came with."""
    error: str | None
    """Why it failed or was interrupted."""
    progress: Progress | None
    created: datetime
    started: datetime | None
    ended: datetime | None
    attempts: int
    spec: dict[str, Any]
    """As ``JobSpec.parse`` takes it."""

    _connection: Connection = PrivateAttr()

    @classmethod
    def of(cls, connection: Connection, told: Any) -> "ClientJob":
        """The job that a service tells of."""
        job = cls.model_validate(told)
        job._connection = connection
        return job

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.state in ENDED

    @property
    def url(self) -> str:
        """Of its run at the service, once there is one."""
        return f"{self._connection.url}/v1/runs/{quote(self.id)}"

    def refresh(self) -> "ClientJob":
        """The job as it is now."""
        return self.of(self._connection, self._connection.get(self._path))

    def wait(self, timeout: float | None = None, progress: bool = False) -> "ClientJob":
        """Wait until it is done, though the service be started anew meanwhile.

        Args:
            timeout: seconds; default: however long it takes.
            progress: show how far it is, on standard error.

        Raises:
            JobFailed: it failed, for the reason that is told.
            JobStopped: somebody cancelled it, or it was interrupted; ``resume`` goes on.
            WaitTimedOut: it goes on, and can be waited for again.
            ServiceUnreachable: the service was away for five minutes.
        """
        job = self
        with _telling(progress) as tell:
            for told in watch(self._connection, self._path, timeout):
                job = self.of(self._connection, told)
                tell(job)
        job.require_done()
        return job

    def require_done(self) -> None:
        """Raises JobFailed or JobStopped where it ended in any other way."""
        reason = f": {self.error}" if self.error else "."
        if self.state == "failed":
            raise JobFailed(f"The job {self.id!r} failed{reason}")
        if self.state == "interrupted":
            raise JobStopped(f"The job {self.id!r} was interrupted{reason}")
        if self.state == "stopped":
            raise JobStopped(
                f"The job {self.id!r} was stopped: `deconvoy resume {self.id}` goes on."
            )

    def cancel(self) -> "ClientJob":
        """Stop it.  What it has found stays readable, and it can be resumed.

        Raises:
            JobConflict: it has ended.
        """
        return self.of(self._connection, self._connection.delete(self._path))

    def resume(self) -> "ClientJob":
        """Go on with it, if it was stopped or interrupted, or failed for want of room.

        Raises:
            JobConflict: there is nothing to resume.
        """
        return self.of(self._connection, self._connection.post(f"{self._path}/resume"))

    def logs(self, after: int = 0) -> list[str]:
        """What its driver says, line by line, from line ``after`` on."""
        # By line feeds alone, as the service counts them.
        text = self._connection.text(f"{self._path}/logs", {"after": after})
        return text.removesuffix("\n").split("\n") if text else []

    def run(self) -> Run:
        """Its run, read through the service.

        Raises:
            RunNotFound: it has not begun.
        """
        try:
            return Run(self.url, self._connection.token)
        except RunNotFound:
            raise RunNotFound(
                f"The job {self.id!r} has no run yet: it was {self.state}; wait for it."
            ) from None

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{quote(self.id, safe='')}"

    def __repr__(self) -> str:
        at = self.progress
        reached = f", {at.stage} {at.done:,} of {at.total:,}" if at is not None else ""
        return f"ClientJob({self.id!r}, {self.state}{reached})"

    __str__ = __repr__


Tell = Callable[[ClientJob], None]


@contextmanager
def _telling(progress: bool) -> Iterator[Tell]:
    """What to tell of each change of a job."""
    if not progress:
        yield lambda job: None
        return
    with shown() as observe:
        before = ""

        def tell(job: ClientJob) -> None:
            nonlocal before
            if job.state != before and job.state in ("queued", "starting", "stopping"):
                sys.stderr.write(f"{job.id} is {job.state}\n")
            before = job.state
            if job.progress is not None:
                observe(job.progress)

        yield tell
