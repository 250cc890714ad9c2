"""The jobs of a service: taken in, stopped, resumed, and told of.

Writes what is wanted into the catalogue; the dispatcher beside the API does it.
"""

import re
import secrets
from collections.abc import Mapping
from typing import Any

import deconvoy
from deconvoy import specs
from deconvoy.errors import DeconvoyError, JobConflict
from deconvoy.specs import Spec
from deconvoy.store import RunStore
from service.admission import admit, require_storable
from service.catalogue import ENDED, Catalogue, Job, NewJob
from service.settings import Settings

LOG = "logs/driver.txt"
"""In a run: what its driver says of it, for people."""

NAME_LENGTH = 40


class Queue:
    """What the API does with jobs."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = settings, catalogue

    def submit(
        self, given: Mapping[str, Any], submitter: str, key: str | None = None
    ) -> tuple[Job, bool]:
        """Take a job in; whether it is a new one.

        Args:
            given: the job spec as JSON.
            submitter: the name of the caller's token.
            key: the same one twice is one job.

        Raises:
            RequestError: the spec is wrong, or asks for what this service may not do.
            KeyReused: the key was used with another spec.
        """
        require_storable(given)
        spec = specs.parse(dict(given))
        admit(spec, self._settings)
        job_id = _id_of(spec)
        url = f"{self._settings.runs_root.rstrip('/')}/{job_id}"
        name = spec.name or spec.network
        new = NewJob(job_id, name, spec.to_json(), url, submitter, key)
        job = self._catalogue.add_job(new)
        return job, job.id == job_id

    def cancel(self, job_id: str) -> Job:
        """Stop a job; its run stays readable and can be resumed.  One that is stopping already goes
        on stopping.

        Raises:
            JobConflict: it has ended.
        """
        if not self._catalogue.move(job_id, "stopped", among=("queued",)):
            self._catalogue.move(job_id, "stopping", among=("starting", "running"))
        job = self._catalogue.job(job_id)
        if job.state in ENDED and job.state != "stopped":
            raise JobConflict(f"The job {job_id!r} is {job.state}, so there is nothing to cancel.")
        return job

    def resume(self, job_id: str) -> Job:
        """Put a job that was stopped, interrupted or failed back into the queue.

        Raises:
            JobConflict: it is at work, done, or failed for a reason that resuming cannot mend.
        """
        job = self._catalogue.job(job_id)
        if job.state == "stopping":
            raise JobConflict(
                f"The job {job_id!r} is stopping: resume it when it has stopped, in a few seconds."
            )
        if job.state not in ENDED or job.state == "done":
            raise JobConflict(f"The job {job_id!r} is {job.state}, so there is nothing to resume.")
        if job.state == "failed":
            self._require_resumable(job)
        admit(specs.parse(job.spec), self._settings)  # roots may have become fewer
        if not self._catalogue.move(job_id, "queued", among=("failed", "stopped", "interrupted")):
            raise JobConflict(f"The job {job_id!r} changed just now: look at it again.")
        return self._catalogue.job(job_id)

    def log(self, job_id: str, after: int = 0) -> list[str]:
        """Lines of its driver from number ``after`` on; the reason alone where there is no run."""
        job = self._catalogue.job(job_id)
        said = RunStore(job.url).lines(LOG) or (job.error or "").splitlines()
        return said[after:]

    def _require_resumable(self, job: Job) -> None:
        try:
            resumable = deconvoy.open(job.url).resumable
        except DeconvoyError:  # it failed before there was a run: nothing has changed since
            resumable = False
        if not resumable:
            raise JobConflict(
                f"The job {job.id!r} failed and resuming it would fail again ({job.error}): submit "
                "a new one."
            )


def _id_of(spec: Spec) -> str:
    """Of the job and its run: for people, and unlike every other."""
    named = spec.name or spec.network.rpartition("/")[2]
    slug = re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")[:NAME_LENGTH].strip("-")
    return f"{slug or 'job'}-{secrets.token_hex(4)}"
